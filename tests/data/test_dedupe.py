"""Duplicates: each decision equals a slow loop's; planted ones are found."""

import collections
import hashlib
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

import image_bytes
import made_data
import memory_source
from clip_jax import cli, errors, preprocess
from clip_jax.data import prepare, sources
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  dedupe,
  findings,
  hamming,
  image_hash,
  likeness,
  linking,
)
from clip_jax.search import clusters


def _drawing(seed, size=48):
  rng = np.random.default_rng(seed)
  image = Image.new("RGB", (size, size + 6), tuple(rng.integers(90, 256, 3)))
  draw = ImageDraw.Draw(image)
  for _ in range(5):
    x, y, w, h = rng.integers(0, size // 2 + 6, 4)
    colour = tuple(rng.integers(0, 256, 3).tolist())
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape([x, y, x + w + 6, y + h + 6], fill=colour)
  return image


COPIES = {
  "recaptioned": lambda image: image_bytes.encode(image),
  "recompressed": lambda image: image_bytes.encode(image, "JPEG", quality=60),
  "smaller": lambda image: image_bytes.encode(image.resize((36, 41), 3)),
  "darker": lambda image: image_bytes.encode(
    image.point(lambda v: int(v * 0.9))
  ),
  "mirrored": lambda image: image_bytes.encode(image.transpose(0)),
}


def _source(records):
  """Returns a source in which keys with "bad" are bad."""
  bad = {r.key: "missing_image" for r in records if r.key.startswith("bad")}
  return memory_source.MemorySource(records, bad)


def _record(key, image):
  return record_lib.Record(image, (f"caption of {key}",), key)


@pytest.fixture(scope="module")
def planted():
  """A source, and the original of each copy."""
  records, originals = [], {}
  for number in range(72):
    image = _drawing(number)
    records.append(_record(f"{number:03d}", image_bytes.encode(image)))
    for kind, copy in list(COPIES.items())[number % 6 :][:1]:
      key = f"{number:03d}_{kind}"
      originals[key] = f"{number:03d}"
      records.append(_record(key, copy(image)))
  records += [_record(f"bad{i}", b"") for i in range(3)]
  # Nothing to see on them: near nothing, whatever their hash.
  grey = [Image.new("RGB", (20, 20), (v, v, v)) for v in (40, 90, 140)]
  records += [
    _record(f"grey{i}", image_bytes.encode(x)) for i, x in enumerate(grey)
  ]
  order = np.random.default_rng(0).permutation(len(records))
  return _source([records[i] for i in order]), originals


def _table(path):
  return [line.split("\t") for line in path.read_text().splitlines()[1:]]


RULE = likeness.Rule(mirrored=True)


def _groups(keys, near):
  """Connects keys in a loop; returns the sets."""
  sets = {key: {key} for key in keys}
  for a, b in itertools.combinations(keys, 2):
    if near(a, b) and sets[a] is not sets[b]:
      sets[a] |= sets[b]
      for key in sets[b]:
        sets[key] = sets[a]
  return {frozenset(s) for s in sets.values()}


def _look(record):
  return image_hash.of(preprocess.decode(record.image))


def _by_hand(records, rule):
  """Returns the keys that stay, and those dropped by kind."""
  good = {r.key: r for r in records if not r.key.startswith("bad")}
  looks = {key: _look(record) for key, record in good.items()}
  left, dropped = list(good), collections.Counter()

  def alike(a, b, bits, thumb):
    rows = [x.astype(float).ravel() for x in (thumb, looks[b].thumb)]
    return (
      bits ^ looks[b].bits
    ).bit_count() <= rule.max_distance and np.corrcoef(*rows)[0, 1] >= 0.99

  def near(a, b):
    if looks[a].flat or looks[b].flat:
      return False
    turned = [(x, y) for x, y in ((a, b), (b, a))]
    return alike(a, b, looks[a].bits, looks[a].thumb) or (
      rule.mirrored
      and any(
        alike(x, y, looks[x].mirrored, looks[x].thumb[:, ::-1])
        for x, y in turned
      )
    )

  def rank(key):
    record = good[key]
    width, height = Image.open(io.BytesIO(record.image)).size
    name = "\0".join((key, *record.texts)).encode()
    digest = hashlib.blake2b(name, digest_size=8, key=b"0").digest()
    smallest = int.from_bytes(digest, "little")
    return -width * height, -len(record.image), smallest

  for kind, is_near in (
    ("exact", lambda a, b: good[a].image == good[b].image),
    ("near", near),
  ):
    for group in _groups(left, is_near):
      for key in sorted(group, key=rank)[1:]:
        left.remove(key)
        dropped[kind] += 1
  return left, dict(dropped)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_stays_is_what_a_loop_keeps(mirrored, planted, tmp_path):
  source, originals = planted
  rule = likeness.Rule(mirrored=mirrored)
  found = dedupe.dedupe(source, tmp_path / "o", rule)
  want, dropped = _by_hand(source.records, rule)
  assert made_data.keys(tmp_path / "o") == want
  assert found["dropped"] == {"missing_image": 3, **dropped}
  assert found["kept"] + sum(found["dropped"].values()) == found["pairs"]
  rows = _table(tmp_path / "o" / "duplicates.tsv")
  assert len(rows) == sum(dropped.values())
  assert {row[0] for row in rows}.isdisjoint(want)
  assert {row[1] for row in rows} <= set(want)
  # What was planted is found, and (nearly) nothing else.
  pairs = {frozenset(row[:2]) for row in rows}
  planted_pairs = {
    frozenset(pair)
    for pair in originals.items()
    if mirrored or not pair[0].endswith("mirrored")
  }
  assert len(pairs & planted_pairs) >= 0.95 * len(planted_pairs)
  assert len(pairs & planted_pairs) >= 0.95 * len(pairs)
  assert all(row[2] == "exact" for row in rows if "recaptioned" in row[0])


@pytest.mark.parametrize(
  "workers", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_order_processes_and_interruptions_change_nothing(
  workers, planted, tmp_path
):
  source, _ = planted
  prepare.prepare(source, tmp_path / "pairs")
  opened = sources.open_source(f"arrayrecord:{tmp_path / 'pairs'}")
  dedupe.dedupe(opened, tmp_path / "o", RULE)
  work = linking.Work(workers=2)
  if workers:
    dedupe.dedupe(opened, tmp_path / "again", RULE, work=work)
    assert made_data.content(tmp_path / "again") == made_data.content(
      tmp_path / "o"
    )
    return

  def interrupt(what, done, total):
    raise KeyboardInterrupt

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      dedupe.dedupe(
        opened,
        tmp_path / "again",
        RULE,
        work=linking.Work(on_record=interrupt),
      )
  done = []
  work = linking.Work(on_record=lambda what, n, total: done.append(n))
  dedupe.dedupe(opened, tmp_path / "again", RULE, work=work)
  assert done[0] > 2 * 64
  assert made_data.content(tmp_path / "again") == made_data.content(
    tmp_path / "o"
  )
  again = dedupe.dedupe(opened, tmp_path / "again", RULE)
  assert not again["written"]
  order = np.random.default_rng(1).permutation(len(source))
  turned = _source([source.records[i] for i in order])
  dedupe.dedupe(turned, tmp_path / "turned", RULE)
  assert sorted(made_data.keys(tmp_path / "turned")) == sorted(
    made_data.keys(tmp_path / "o")
  )


def test_the_first_near_hash_is_that_of_all_pairs(monkeypatch):
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
  hashes[100:200] = hashes[100]  # A clump, which the next lines spread.
  queries = hashes[rng.integers(0, 300, 250)].copy()
  for some in (hashes[100:200], *14 * [queries]):  # Flips of single bits.
    bits = np.uint64(1) << rng.integers(0, 64, len(some)).astype(np.uint64)
    some ^= np.where(rng.random(len(some)) < 0.6, bits, 0).astype(np.uint64)
  distances = np.bitwise_count(queries[:, None] ^ hashes[None])
  none, before = np.full(250, 300), rng.integers(0, 301, 250)

  def confirm(i, j):
    return (i + j) % 3 > 0

  for most, at_once in ((0, 2**22), (1, 7), (3, 100), (7, 2**22), (12, 999)):
    monkeypatch.setattr(hamming, "_AT_ONCE", at_once)
    near = (distances <= most) & confirm(*np.indices(distances.shape))
    want = np.where(near.any(axis=1), near.argmax(axis=1), 300)
    for found in (none, before):
      got = hamming.first(queries, hashes, most, confirm=confirm, found=found)
      assert np.array_equal(got, np.minimum(want, found))
  assert np.array_equal(none, np.full(250, 300))  # It is not changed.
  assert 100 < np.count_nonzero(want < 300) < 250
  few = dict(confirm=confirm, found=none[:0])
  assert not len(hamming.first(queries[:0], hashes, 3, **few))
  few["found"] = none * 0  # No hash is before the first.
  assert not hamming.first(queries, hashes[:0], 3, **few).any()
  with pytest.raises(errors.UserError, match="give 0 to 12"):
    hamming.first(queries, hashes, 13, **few)


def test_a_clump_of_two_sets_is_searched_without_all_its_pairs(monkeypatch):
  monkeypatch.setattr(hamming, "_AT_ONCE", 2**12)
  rng, number = np.random.default_rng(0), 3000
  sets = []
  for _ in range(2):
    hashes = np.zeros(number, np.uint64)
    for _ in range(2):
      hashes ^= np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)
    sets.append(hashes)
  asked = []

  def confirm(i, j):
    asked.append(len(i))
    return np.ones(len(i), bool)

  none = np.full(number, number)
  found = hamming.first(*sets, 6, confirm=confirm, found=none)
  assert (found < number).all()
  assert sum(asked) < 40 * number and max(asked) <= 2**12 + 8
  # The same of embeddings: at most one pair for each of either set.
  monkeypatch.setattr(clusters, "_ROWS", 256)
  embeds = np.ones((700, 1), np.float32)
  pairs = clusters.near_between(embeds, embeds[:600], similarity=0.9)
  assert len(pairs) == 1300 and (pairs.min(axis=1) == 0).all()


@pytest.mark.parametrize("join", [False, True])
def test_images_of_one_hash_are_compared_once_and_in_bounded_memory(
  monkeypatch, join
):
  monkeypatch.setattr(hamming, "_AT_ONCE", 500)
  monkeypatch.setattr(hamming, "_JOINED_AT_ONCE", 500)
  # Two in three have one hash, the others that but for bits of two parts.
  hashes = np.full(90, 0x123456789ABCDEF0, np.uint64)
  hashes[::3] ^= np.uint64(0x1000300000000)
  seen, sizes = collections.Counter(), []

  def confirm(i, j):
    sizes.append(len(i))
    seen.update(zip(i.tolist(), j.tolist(), strict=True))
    return np.zeros(len(i), bool)

  if join:
    hamming.join(hashes, hashes, 6, np.arange(90), confirm=confirm)
    pairs = set(itertools.permutations(range(90), 2))
  else:
    found = np.full(90, 90)
    hamming.first(hashes, hashes, 6, confirm=confirm, found=found)
    pairs = set(itertools.product(range(90), repeat=2))
  assert set(seen) == pairs and set(seen.values()) == {1}
  assert max(sizes) <= 500 + 90  # A block ends with a whole row.


def test_hashes_are_joined_as_all_pairs_join_them(monkeypatch):
  rng = np.random.default_rng(2)
  hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
  hashes[:150] = hashes[0]  # A clump, within a group of fewer, and others.
  hashes[150:300] = hashes[150:180].repeat(5)
  for _ in range(4):
    bits = np.uint64(1) << rng.integers(0, 64, 400).astype(np.uint64)
    hashes ^= np.where(np.arange(400) < 300, bits, 0).astype(np.uint64)
  hashes = rng.permutation(hashes)
  for most, at_once in ((0, 5), (3, 50), (5, 1000), (8, 2**18)):
    monkeypatch.setattr(hamming, "_JOINED_AT_ONCE", at_once)
    labels = np.arange(400)
    labels[7] = 3

    def confirm(i, j):
      return (i < j) & ((i + j) % 5 > 0)

    got = hamming.join(hashes, hashes, most, labels, confirm=confirm)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= most
    pairs = np.argwhere(near)
    pairs = np.append(pairs[confirm(*pairs.T)], [[3, 7]], axis=0)
    want = likeness.groups(pairs, 400)
    assert np.array_equal(_first(got), _first(want))
    assert len(set(want.tolist())) < 400 or not most
  nothing = np.zeros(0, np.int64)
  assert not len(hamming.join(hashes[:0], hashes[:0], 3, nothing, confirm=None))


def test_variants_of_one_look_are_joined_without_all_their_pairs(monkeypatch):
  monkeypatch.setattr(hamming, "_JOINED_AT_ONCE", 2**12)
  rng, number = np.random.default_rng(0), 3000
  hashes = np.zeros(number, np.uint64)
  for _ in range(3):
    hashes ^= np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)
  asked = []

  def confirm(i, j):
    asked.append(len(i))
    return i < j

  labels = np.arange(number)
  labels = hamming.join(hashes, hashes, 6, labels, confirm=confirm)
  assert not labels.any()
  assert sum(asked) < 60 * number  # Of 1500 each.


def test_looks_of_two_sets_are_named_without_all_their_pairs():
  rng = np.random.default_rng(0)
  mine, theirs = rng.integers(-1, 9, 60), rng.integers(-1, 7, 50)
  places = rng.permutation(50)
  near = rng.random((9, 7)) < 0.2
  known = [np.isin(np.arange(n), x) for n, x in ((9, mine), (7, theirs))]
  pairs = np.argwhere(near & known[0][:, None] & known[1])
  found = likeness._named(mine, theirs, pairs, places)
  whole = near[mine[:, None], theirs] & (mine >= 0)[:, None] & (theirs >= 0)
  assert whole[tuple(found.T)].all() and len(found) <= 110
  assert set(found[:, 1]) == set(np.flatnonzero(whole.any(0)))
  for i in range(60):
    js = found[found[:, 0] == i, 1]
    want = np.flatnonzero(whole[i])
    assert len(js) > 0 or not len(want)
    assert places[js].min(initial=99) == places[want].min(initial=99)


@pytest.mark.parametrize("swapped", [False, True])
def test_mirror_images_are_near_from_either_side(swapped):
  rng = np.random.default_rng(0)
  a, b, c = (int(x) for x in rng.integers(0, 2**63, 3))
  thumb = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
  # The second one's mirror image has the hash of the first, and none else.
  rows = [(a, b, thumb), (c, a, thumb[:, ::-1])][:: -1 if swapped else 1]
  bits, mirrored = (np.array([r[i] for r in rows], np.uint64) for i in (0, 1))
  thumbs = np.stack([row[2] for row in rows])
  both = likeness.Nodes(bits, mirrored, thumbs, of=np.arange(2))
  rule = likeness.Rule(max_distance=2, mirrored=True)
  assert both.labels(rule).tolist() == [0, 0]
  assert both.labels(likeness.Rule(max_distance=2)).tolist() == [0, 1]
  first, second = (
    likeness.Nodes(bits[i], mirrored[i], thumbs[i], of=np.arange(1))
    for i in (slice(1), slice(1, 2))
  )
  assert first.near(second, np.arange(1), rule).tolist() == [[0, 0]]
  columns = {"bits": bits, "mirrored": mirrored}
  found = findings.Found(0, 2, columns, {}, {}, np.full(2, -1, np.int32))
  for mirrors, wanted in ((True, 0), (False, (a ^ c).bit_count())):
    far = likeness.distance(
      found, np.array([0]), found, np.array([1]), mirrored=mirrors
    )
    assert far == [wanted]


def test_a_mirror_image_has_the_mirrored_hash():
  for seed in range(20):
    image = _drawing(seed)
    look, turned = image_hash.of(image), image_hash.of(image.transpose(0))
    assert turned.bits == look.mirrored
    assert not look.flat
  assert image_hash.of(Image.new("L", (9, 9), 77)).flat


class Model:
  """Embeds an image by the colour of its corner, on a circle."""

  fingerprint = "a model"

  def __init__(self):
    self.images = 0

  def needed_preprocess(self):
    return preprocess.Preprocess(8, mean=(0, 0, 0), std=(1, 1, 1))

  def embed_images(self, images):
    self.images += len(images)
    angle = images[:, 0, 0, 0] / 255 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

  def embed_texts(self, texts):
    raise AssertionError


def _plain(levels):
  """A source of plain images, one of each level of red."""
  return _source(
    [
      _record(
        f"{i}", image_bytes.encode(Image.new("RGB", (8 + i, 9), (level, 0, 0)))
      )
      for i, level in enumerate(levels)
    ]
  )


def _semantic(model, similarity, clusters_=1):
  return likeness.Semantic(
    model,
    clusters.near_within,
    clusters.near_between,
    min_similarity=similarity,
    clusters=clusters_,
  )


def test_semantic_groups_are_transitive(tmp_path):
  # Steps of 10 are near, and so is the end of a row of them to its start.
  source = _plain([0, 10, 20, 30, 100, 110, 200])
  similarity = float(np.cos(11 / 255 * np.pi))
  rule = likeness.Rule(
    exact=False, max_distance=None, semantic=_semantic(Model(), similarity)
  )
  found = dedupe.dedupe(source, tmp_path / "o", rule)
  assert made_data.keys(tmp_path / "o") == [
    "3",
    "5",
    "6",
  ]  # The largest of each.
  assert found["dropped"] == {"semantic": 4}
  assert found["groups"] == {"semantic": 2}
  assert found["largest_group"] == 4
  rows = {row[0]: row for row in _table(tmp_path / "o" / "duplicates.tsv")}
  assert rows["0"][1:3] == ["3", "semantic"]
  far = 1 - np.cos(30 / 255 * np.pi)
  assert float(rows["0"][3]) == pytest.approx(far, abs=1e-5)


def test_what_an_evaluation_set_has_goes_and_is_told(tmp_path):
  source = _plain([0, 10, 50, 100, 200, 203])
  against = _plain([255, 200, 12, 90])
  # Of exact bytes: example "1" is of another size; take one that is not.
  against.records[3] = _record("same", source.records[3].image)
  model = Model()
  similarity = float(np.cos(4 / 255 * np.pi))
  rule = likeness.Rule(max_distance=None, semantic=_semantic(model, similarity))
  found = dedupe.dedupe(source, tmp_path / "o", rule, against=against)
  assert made_data.keys(tmp_path / "o") == ["0", "2"]
  assert found["dropped"] == {"overlap": 4}
  assert found["overlap"] == {
    "examples": 4,
    "bad": {},
    "found": 3,
    "share": 0.75,
    "pairs": 4,
    "by": {"exact": 1, "semantic": 3},
    "keys": ["1", "2", "same"],
  }
  rows = [row[:3] for row in _table(tmp_path / "o" / "overlap.tsv")]
  assert rows == [
    ["1", "2", "semantic"],
    ["3", "same", "exact"],
    ["4", "1", "semantic"],
    ["5", "1", "semantic"],
  ]
  # Only told: the same tables, and no records.
  told = dedupe.dedupe(
    source, tmp_path / "r", rule, against=against, report_only=True
  )
  names = sorted(path.name for path in (tmp_path / "r").iterdir())
  assert names == ["duplicates.tsv", "overlap.tsv", "report.json"]
  assert told["overlap"] == found["overlap"]
  again = dedupe.dedupe(
    source, tmp_path / "r", rule, against=against, report_only=True
  )
  assert again == told | {"written": False}
  with pytest.raises(errors.UserError, match="nothing is overwritten"):
    dedupe.dedupe(source, tmp_path / "r", rule, against=against)
  with pytest.raises(errors.UserError, match="nothing is overwritten"):
    dedupe.dedupe(source, tmp_path / "r", rule, report_only=True)


def test_an_evaluation_set_that_cannot_be_compared_is_told(tmp_path, capsys):
  good, cut = _record("0", image_bytes.encode(_drawing(0))), b"\x89PNG cut"
  prepare.prepare(_source([good]), tmp_path / "pairs")
  bad = [_record(f"b{i}", cut) for i in range(2)]
  with pytest.raises(errors.UserError, match="compared: 2 not_an_image"):
    dedupe.dedupe(
      _source([good]),
      tmp_path / "o",
      likeness.Rule(),
      against=_source(bad),
      report_only=True,
    )
  other = _record("1", image_bytes.encode(_drawing(1)))
  prepare.prepare(_source([other, *bad]), tmp_path / "test")
  against = f"arrayrecord:{tmp_path / 'test'}"
  command = ["data", "dedupe", f"arrayrecord:{tmp_path / 'pairs'}"]
  assert cli.run([*command, str(tmp_path / "o"), "--against", against]) == 0
  said = capsys.readouterr().out
  assert f"not compared, as bad, of {against}: 2 not_an_image" in said


def test_looks_link_two_sets_as_a_loop_does(planted, tmp_path):
  source, _ = planted
  half = _source(source.records[::2])
  other = _source(source.records[1::2])
  rule = likeness.Rule(exact=False, max_distance=4)
  found = dedupe.dedupe(
    half, tmp_path / "o", rule, against=other, report_only=True
  )
  looks = [
    {r.key: _look(r) for r in s.records if not r.key.startswith("bad")}
    for s in (half, other)
  ]
  want = collections.defaultdict(set)
  for (a, x), (b, y) in itertools.product(*(side.items() for side in looks)):
    rows = [z.thumb.astype(float).ravel() for z in (x, y)]
    if (
      not (x.flat or y.flat)
      and (x.bits ^ y.bits).bit_count() <= 4
      and np.corrcoef(*rows)[0, 1] >= 0.99
    ):
      want[a].add(b)
  rows = _table(tmp_path / "o" / "overlap.tsv")
  assert {row[0] for row in rows} == set(want)
  assert all(row[1] in want[row[0]] for row in rows)
  assert found["overlap"]["found"] == len(set().union(*want.values()))


def test_clusters_find_what_all_pairs_of_a_cluster_do():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(6, 16))
  embeds = centres[rng.integers(0, 6, 300)] + 0.2 * rng.normal(size=(300, 16))
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  embeds = embeds.astype(np.float32)
  numbers = clusters.assign(embeds, clusters.kmeans(embeds, 5))
  assert len(set(numbers.tolist())) > 3
  cosines = embeds.astype(np.float64) @ embeds.T.astype(np.float64)
  similarity = 0.93
  # No pair is so near the limit that rounding decides.
  assert np.abs(cosines - similarity).min() > 1e-6
  near = (cosines >= similarity) & (numbers[:, None] == numbers[None])
  pairs = clusters.near_within(embeds, similarity=similarity, clusters=5)
  want = likeness.groups(np.argwhere(near), 300)
  assert np.array_equal(_first(likeness.groups(pairs, 300)), _first(want))
  assert len(set(want.tolist())) < 290
  between = clusters.near_between(
    embeds[:70], embeds[70:80], similarity=similarity
  )
  whole = cosines[:70, 70:80] >= similarity
  rows, cols = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
  firsts = [
    *zip(rows, whole[rows].argmax(axis=1), strict=True),
    *zip(whole[:, cols].argmax(axis=0), cols, strict=True),
  ]
  assert np.array_equal(between, firsts) and 0 < len(rows) < 70
  empty = clusters.near_within(embeds[:0], similarity=similarity)
  assert empty.shape == (0, 2)


def test_equal_embeddings_are_near_at_a_similarity_of_one():
  rng = np.random.default_rng(0)
  embeds = rng.normal(size=(60, 64)).astype(np.float32)
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  twice = np.concatenate([embeds, embeds])
  # Many a cosine with itself is below one, as float32 rounds it.
  assert (np.einsum("ne,ne->n", embeds, embeds) < 1).any()
  pairs = clusters.near_within(twice, similarity=1.0)
  assert pairs.tolist() == [[i, i + 60] for i in range(60)]
  between = clusters.near_between(embeds, embeds, similarity=1.0)
  assert between.tolist() == [[i, i] for i in range(60)] * 2


def test_equal_embeddings_are_joined_block_by_block(monkeypatch):
  monkeypatch.setattr(clusters, "_ROWS", 64)
  rng = np.random.default_rng(1)
  # Two clumps, and a chain of which only neighbours are near.
  angles = np.concatenate(
    [np.zeros(99), np.full(50, 3), 1 + np.arange(80) / 80]
  )
  angles = rng.permutation(angles)
  embeds = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  cosine = float(np.cos(1.5 / 80))
  want = likeness.groups(np.argwhere(embeds @ embeds.T >= cosine), len(embeds))
  pairs = clusters.near_within(embeds, similarity=cosine, clusters=1)
  assert len(pairs) == len(embeds) - 3 and (pairs[:, 0] < pairs[:, 1]).all()
  got = likeness.groups(pairs, len(embeds))
  assert np.array_equal(_first(got), _first(want))


def _first(labels):
  """Names each group by its first member."""
  _, first, of = np.unique(labels, return_index=True, return_inverse=True)
  return first[of]


def test_the_command_line_dedupes(planted, tmp_path, capsys):
  source, _ = planted
  prepare.prepare(_source(source.records[:60]), tmp_path / "pairs")
  prepare.prepare(_source(source.records[50:70]), tmp_path / "test")
  command = ["data", "dedupe", f"arrayrecord:{tmp_path / 'pairs'}"]
  command += [str(tmp_path / "o"), "--max-distance", "4"]
  command += ["--against", f"arrayrecord:{tmp_path / 'test'}"]
  assert cli.run([*command, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["kept"] + sum(found["dropped"].values()) == found["pairs"] == 60
  assert found["dropped"]["overlap"] >= 10
  assert found["overlap"]["against"] == f"arrayrecord:{tmp_path / 'test'}"
  assert found["max_distance"] == 4
  assert cli.run(command) == 0
  assert "Already there: " in capsys.readouterr().out
  for wrong in (
    ["--by", "exact,semantic"],
    ["--by", "exact", "--mirrored"],
    ["--by", "alike"],
    ["--clusters", "3"],
    ["--beam-options", "x"],
  ):
    with pytest.raises(SystemExit, match="2"):
      cli.run([*command[:4], *wrong])
  capsys.readouterr()
  assert cli.run([*command[:4], "--max-distance", "40"]) == 1
  assert "give 0 to 12" in capsys.readouterr().err
