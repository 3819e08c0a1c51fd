import hashlib
import shlex
import sys

import numpy as np
import pytest

import bucket_stand_in
from clip_jax import cli, errors, search
from clip_jax.search import exchange, index_files

SUFFIXES = search.SUFFIXES


def units(seed, rows, dim=16):
  x = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(directory, embeds, dtype="float32"):
  with search.Builder(
    directory, model="/models/m", fingerprint="f00d", dtype=dtype
  ) as builder:
    names = range(len(embeds))
    builder.add(embeds, [search.Entry(f"k{i}", (f"c {i}",)) for i in names])
  return search.Index(directory)


@pytest.fixture(params=SUFFIXES)
def suffix(request):
  library = {".faiss": "faiss", ".usearch": "usearch.index"}[request.param]
  pytest.importorskip(library, exc_type=ImportError)
  return request.param


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_an_exported_index_finds_what_its_index_finds(tmp_path, suffix, dtype):
  embeds, queries = units(0, 90), units(1, 7)
  embeds[40] = embeds[20]  # Of equal scores the earlier row comes first.
  queries[0] = embeds[20]
  index = make(tmp_path / "index", embeds, dtype)
  path = tmp_path / f"index{suffix}"
  search.export(index, path)
  assert sorted(entry.name for entry in tmp_path.iterdir()) == [
    "index",
    path.name,
    f"{path.name}.sha256",
  ]
  exported = search.open_index(path)
  # float16 of usearch has 11 bits; a flat index differs by rounding of sums.
  atol = 2e-3 if suffix == ".usearch" else 1e-6
  for k in (1, 5, 90, 200):
    many = exported.search_many(queries, k=k)
    for hits, own in zip(many, index.search_many(queries, k=k), strict=True):
      # Of equal ones a graph may drop the earlier.
      if suffix == ".faiss" or (dtype == "float32" and own[0].index != 20):
        assert [hit.index for hit in hits] == [hit.index for hit in own]
        assert [hit.key for hit in hits] == [hit.key for hit in own]
      np.testing.assert_allclose(
        [hit.score for hit in hits], [hit.score for hit in own], atol=atol
      )
    one = exported.search(queries[1], k=k)
    assert [hit.index for hit in one] == [hit.index for hit in many[1]]


def test_a_file_of_another_index_is_refused(tmp_path, suffix):
  path = tmp_path / f"a{suffix}"
  search.export(make(tmp_path / "a", units(0, 20)), path)
  for name, embeds, message in (
    ("rows", units(0, 21), "has 20 vectors of 16 numbers"),
    ("dims", units(0, 20, dim=8), "has 20 of 8"),
    ("other", units(1, 20), "other vectors"),
  ):
    make(tmp_path / name, embeds)
    with pytest.raises(errors.UserError, match=message):
      search.open_index(path, keys=tmp_path / name)
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(errors.UserError, match="is damaged, or was replaced"):
    search.open_index(path)
  (tmp_path / f"a{suffix}.sha256").unlink()
  with pytest.raises(errors.UserError, match="cannot be read as an index of"):
    search.open_index(path)
  path.rename(tmp_path / f"alone{suffix}")
  with pytest.raises(errors.UserError, match="--keys"):
    search.open_index(tmp_path / f"alone{suffix}")


def test_a_damaged_file_does_not_reach_its_library(
  tmp_path, monkeypatch, suffix
):
  """usearch ends the process for some bytes that differ."""
  path = tmp_path / f"a{suffix}"
  index = make(tmp_path / "a", units(0, 20))
  search.export(index, path)
  whole = path.read_bytes()
  kind = "_Faiss" if suffix == ".faiss" else "_Usearch"
  opened = getattr(exchange, kind)
  reached = []
  monkeypatch.setattr(
    exchange, kind, lambda path: reached.append(path) or opened(path)
  )
  for at in range(0, len(whole), 97):
    damaged = bytearray(whole)
    damaged[at] ^= 1 << at % 8
    path.write_bytes(damaged)
    with pytest.raises(errors.UserError, match=f"not what a{suffix}.sha256"):
      search.open_index(path)
  path.write_bytes(whole)
  (tmp_path / f"a{suffix}.sha256").write_text("no digest\n")
  with pytest.raises(errors.UserError, match="Remove a"):
    search.open_index(path)
  assert not reached
  search.export(index, path)  # Over what is there.
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  beside = tmp_path / f"a{suffix}.sha256"
  assert beside.read_text() == f"{digest}  {path.name}\n"
  search.open_index(path)
  beside.unlink()  # As for a file that another program made.
  search.open_index(path)
  assert len(reached) == 2


def test_what_is_to_be_typed_is_quoted(tmp_path, suffix):
  path = tmp_path / f"my index{suffix}"
  index = make(tmp_path / "my index", units(0, 20))
  with pytest.raises(errors.UserError) as missing:
    search.open_index(path)
  assert f"`clip-jax search INDEX --export '{path}'`" in str(missing.value)
  search.export(index, path)
  make(tmp_path / "my other", units(1, 20))
  with pytest.raises(errors.UserError) as other:
    search.open_index(path, keys=tmp_path / "my other")
  words = shlex.split(str(other.value).split("`")[1])
  assert words == [
    *("clip-jax", "search", str(tmp_path / "my other")),
    *("--export", str(path)),
  ]


def test_a_damaged_file_in_a_bucket_is_told(tmp_path, monkeypatch, suffix):
  name = f"a{suffix}"
  search.export(make(tmp_path / "a", units(0, 20)), tmp_path / name)
  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    for file in (*(tmp_path / "a").iterdir(), *tmp_path.glob("a.*")):
      place = file.relative_to(tmp_path)
      store.put("data-1", f"x/{place}", file.read_bytes())
    opened = search.open_index(f"gs://data-1/x/{name}")
    assert [x.key for x in opened.search(units(0, 20)[3], k=1)] == ["k3"]
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[-1] ^= 4
    store.put("data-1", f"x/{name}", bytes(damaged))
    with pytest.raises(errors.UserError, match=f"not what {name}.sha256"):
      search.open_index(f"gs://data-1/x/{name}")
    del store.objects["data-1"][f"x/{name}.sha256"]
    store.put("data-1", f"x/{name}", (tmp_path / name).read_bytes())
    search.open_index(f"gs://data-1/x/{name}")


def test_an_export_that_fails_leaves_the_file_that_was_there(
  tmp_path, monkeypatch, suffix
):
  path = tmp_path / f"a{suffix}"
  index = make(tmp_path / "a", units(0, 20))
  search.export(index, path)
  before = {x.name: x.read_bytes() for x in tmp_path.glob("a.*")}

  def fail(file):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(index_files, "sha256", fail)
    with pytest.raises(OSError, match="No space"):
      search.export(index, path)
  assert {x.name: x.read_bytes() for x in tmp_path.glob("a.*")} == before
  search.open_index(path)


def test_another_metric_and_wrong_identifiers_are_refused(tmp_path):
  faiss = pytest.importorskip("faiss")
  embeds = units(0, 20)
  make(tmp_path / "a", embeds)
  path = str(tmp_path / "a.faiss")
  of_l2 = faiss.IndexFlatL2(16)
  of_l2.add(embeds)
  faiss.write_index(of_l2, path)
  with pytest.raises(errors.UserError, match="not the inner product"):
    search.open_index(path)
  shifted = faiss.IndexIDMap(faiss.IndexFlatIP(16))
  shifted.add_with_ids(embeds, np.arange(5, 25))
  faiss.write_index(shifted, path)
  with pytest.raises(errors.UserError, match="are no rows of"):
    search.open_index(path)


def test_an_approximate_index_may_find_fewer(tmp_path):
  faiss = pytest.importorskip("faiss")
  embeds = units(0, 80)
  index = make(tmp_path / "a", embeds)
  lists = faiss.IndexFlatIP(16)
  lists.add(embeds[:8])
  made = faiss.IndexIVFFlat(lists, 16, 8, faiss.METRIC_INNER_PRODUCT)
  made.is_trained = True
  made.add(embeds)
  faiss.write_index(made, str(tmp_path / "a.faiss"))
  hits = search.open_index(tmp_path / "a.faiss").search(embeds[0], k=80)
  assert 0 < len(hits) < 80
  exact = {hit.index: hit.score for hit in index.search(embeds[0], k=80)}
  for hit in hits:  # Rounding of float32 sums.
    assert hit.score == pytest.approx(exact[hit.index], abs=1e-6)


KINDS = ("IVF8,Flat", "HNSW8", "SQ8", "IVF8,PQ8x4", "PCA8,Flat", "Flat")


@pytest.mark.filterwarnings("ignore:.*swig.*:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_index_is_known_by_what_it_finds(tmp_path, kind):
  faiss = pytest.importorskip("faiss")
  embeds = units(0, 300)
  embeds[200:220] = embeds[7]  # One picture many times.
  index = make(tmp_path / "a", embeds)

  def write(vectors):
    made = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    made.add(vectors)
    faiss.write_index(made, str(tmp_path / "a.faiss"))

  write(embeds)
  hits = search.open_index(tmp_path / "a.faiss").search(embeds[7], k=5)
  assert {hit.index for hit in hits} <= {7, *range(200, 220)} or "," in kind
  for other in (units(1, 300), np.roll(embeds, 100, axis=0)):
    write(other)
    with pytest.raises(errors.UserError, match="other vectors than index"):
      search.open_index(tmp_path / "a.faiss")
  assert len(index) == 300


@pytest.mark.parametrize(
  "name, message",
  [
    ("a.npy", "must end in .faiss or .usearch"),
    ("no/a.faiss", "is in no directory"),
    ("dir.faiss", "is a directory"),
  ],
)
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name, message):
  (tmp_path / "dir.faiss").mkdir()
  index = make(tmp_path / "a", units(0, 4))
  with pytest.raises(errors.UserError, match=message):
    search.export(index, tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, suffix):
  for name in ("faiss", "usearch", "usearch.index"):
    monkeypatch.setitem(sys.modules, name, None)
  index = make(tmp_path / "a", units(0, 4))
  path = tmp_path / f"a{suffix}"
  with pytest.raises(errors.UserError, match=r"jax-clip\[search\]"):
    search.export(index, path)
  assert not path.exists()
  path.write_bytes(b"x")
  with pytest.raises(errors.UserError, match=r"jax-clip\[search\]"):
    search.open_index(path)


def test_the_command_exports_and_says_what_does_not_go_together(
  tmp_path, suffix, capsys
):
  make(tmp_path / "a", units(0, 20))
  path = tmp_path / f"a{suffix}"
  cli.main(["search", str(tmp_path / "a"), "--export", str(path)])
  assert "20 embeddings of 16 numbers" in capsys.readouterr().out
  assert len(search.open_index(path)) == 20
  for arguments, message in (
    ([str(tmp_path / "a"), "x", "--export", str(path)], "leave out TEXT"),
    ([str(tmp_path / "a"), "x", "--keys", str(tmp_path)], "has its own"),
    ([str(tmp_path / f"none{suffix}"), "x"], "does not exist"),
    ([str(path), "x"], "Cannot load the model"),
  ):
    with pytest.raises(SystemExit):
      cli.main(["search", *arguments])
    assert message in capsys.readouterr().err
