"""tools/data: hostile drawings, titles and splits, and what is written."""

import importlib
import io
import json
import os
import pathlib
import random
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

import model_kinds
from clip_jax import config as config_lib
from clip_jax import convert, errors, loading, sharding
from clip_jax.data import sources
from clip_jax.train import loop, metric_log

TOOLS = pathlib.Path(__file__).parents[1] / "tools" / "data"
SVG = 'xmlns="http://www.w3.org/2000/svg"'
XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
INK = '<rect x="2" y="2" width="6" height="3" fill="red"/>'


@pytest.fixture(scope="module")
def tool():
  """tools/data/openclipart.py; as a program it finds the files beside it."""
  sys.path.insert(0, str(TOOLS))  # Processes that are started inherit it.
  yield importlib.import_module("openclipart")
  sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def drawings(tool):
  return tool.drawings


@pytest.fixture(scope="module")
def titles(tool):
  return tool.titles


def _svg(body=INK, *, title="", keywords=(), creator="", head="", more=""):
  subject = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
  return f"""<?xml version="1.0" encoding="UTF-8"?>
{head}<svg {SVG} {XLINK} width="10" height="10" {more}><metadata><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
xmlns:cc="http://web.resource.org/cc/"
xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag>{subject}</rdf:Bag></dc:subject><dc:creator><cc:Agent>
<dc:title>{creator}</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF>
</metadata>{body}</svg>""".encode()


def test_a_drawing_tells_its_title_keywords_and_artist(drawings):
  data = _svg(
    title="Fish &amp;amp;\n  chips",
    keywords=("food", "", "fish"),
    creator="A. B.",
  )
  assert drawings.read_words(data) == drawings.Words(
    title="Fish & chips", keywords=("food", "fish"), people=("A. B.",)
  )
  own = f"<svg {SVG}><title>Own</title><g><title>Not this</title></g></svg>"
  assert drawings.read_words(own.encode()).title == "Own"


def test_entities_as_illustrator_writes_them_are_replaced(drawings):
  head = '<!DOCTYPE svg [<!ENTITY it "http://example.org/"><!ENTITY t "Cat">]>'
  data = _svg(title="&t;", head=head, more='xmlns:x="&it;"')
  assert drawings.read_words(data).title == "Cat"


_BOMB = '<!ENTITY a "haha">' + "".join(
  f'<!ENTITY {b} "{f"&{a};" * 10}">'
  for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (_svg(title="&j;", head=f"<!DOCTYPE svg [{_BOMB}]>"), "HOSTILE"),
    (
      _svg(
        title="&a;" * 9000,
        head=f'<!DOCTYPE svg [<!ENTITY a "{"x" * 2000}">]>',
      ),
      "HOSTILE",
    ),
    (_svg("<g>" * 5000 + "</g>" * 5000), "HOSTILE"),
    (b"", "NOT_XML"),
    (b"\x89PNG\r\n", "NOT_XML"),
    (_svg()[:-9], "NOT_XML"),
    (b'<?xml version="1.0" encoding="klingon"?><svg/>', "NOT_XML"),
  ],
  ids=("nested", "long", "deep", "empty", "image", "cut", "encoding"),
)
def test_what_would_exhaust_a_reader_is_refused(drawings, data, reason):
  with pytest.raises(drawings.UnusableError) as error:
    drawings.read_words(data)
  assert str(error.value) == getattr(drawings, reason)


def test_an_entity_of_a_file_is_not_read(drawings, tmp_path):
  secret = tmp_path / "secret"
  secret.write_text("secret")
  head = f'<!DOCTYPE svg [<!ENTITY s SYSTEM "file://{secret}">]>'
  assert "secret" not in drawings.read_words(_svg(title="&s;", head=head)).title


@pytest.fixture(scope="module")
def reader(drawings):
  """One process for all hostile drawings, of 2 seconds each."""
  pytest.importorskip("resvg_py")
  with drawings.Reader(24, seconds=1) as reader:
    yield reader


def _pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_drawing_is_cropped_to_a_white_square(reader):
  pixels = _pixels(reader.read(_svg()).png)
  assert pixels.shape == (24, 24, 3)
  red = pixels[..., 1] < 128
  rows, columns = np.nonzero(red.any(1))[0], np.nonzero(red.any(0))[0]
  # 6 to 3, in the middle, with a margin of 3 %.
  assert len(columns) in (21, 22, 23) and len(rows) in (10, 11, 12)
  assert abs(rows[0] + rows[-1] - 23) <= 1
  assert (pixels[0] == 255).all() and (pixels[-1] == 255).all()


def _hostile(tmp_path):
  inner = tmp_path / "in.png"
  Image.new("RGB", (8, 8), "blue").save(inner)
  uses = "".join(
    f'<g id="g{i + 1}">' + f'<use xlink:href="#g{i}"/>' * 10 + "</g>"
    for i in range(9)
  )
  return {
    **{
      name: _svg(f'<image width="10" height="10" xlink:href="{link}"/>')
      for name, link in {
        "absolute": inner,
        "file": inner.as_uri(),
        "http": "http://127.0.0.1:9/in.png",
      }.items()
    },
    "external entity": _svg(
      "<text>&s;</text>",
      head=f'<!DOCTYPE svg [<!ENTITY s SYSTEM "{inner.as_uri()}">]>',
    ),
    "nested entities": _svg(head=f"<!DOCTYPE svg [{_BOMB}]>"),
    "no size": f'<svg {SVG} width="0" height="0">{INK}</svg>'.encode(),
    "a line": _svg('<path d="M0 0H9" fill="none"/>'),
    "broken": _svg('<path d="M0 0Lqq"/>'),
    "endless uses": _svg(f'<g id="g0">{INK}</g>{uses}'),
    "own pattern": _svg(
      '<pattern id="p" width="1e-9" height="1e-9" patternUnits='
      f'"userSpaceOnUse">{INK}</pattern><rect width="9" height="9" '
      'fill="url(#p)"/>'
    ),
  }


def test_hostile_drawings_cost_only_themselves(reader, drawings, tmp_path):
  for name, data in _hostile(tmp_path).items():
    try:
      pixels = _pixels(reader.read(data).png)
    except drawings.UnusableError:
      assert reader.read(_svg()).png  # Those that follow are drawn.
    else:
      pytest.fail(f"{name} is drawn as {pixels.mean((0, 1))}")


def test_a_huge_size_is_only_a_proportion(reader):
  shape = '<rect width="5e8" height="1e9"/>'
  data = f'<svg {SVG} width="1e9" height="1e9">{shape}</svg>'
  assert _pixels(reader.read(data.encode()).png).shape == (24, 24, 3)


def _words(drawings, titles_of):
  return [drawings.Words(title=title) for title in titles_of]


def test_a_title_of_a_series_is_replaced_by_the_name_of_the_file(
  drawings, titles
):
  paths = [f"icons/{'abcdefghijklmnop'[i]}x_0{i % 9}.svg" for i in range(14)]
  words = _words(
    drawings, ["The Theme (2004)"] * 13 + ["Clip art - AppleTree2"]
  )
  named = titles.name_all(paths, words)
  assert [(one.title, one.own) for one in named[-2:]] == [
    ("mx", False),
    ("Apple Tree", True),
  ]
  assert "title the theme" in named[0].series & named[12].series


def test_titles_that_cannot_be_read_give_way_to_files_and_keywords(
  tool, drawings, titles
):
  known = tool.known_words()
  assert {"the", "apple", "hammer"} <= known and "chiave" not in known
  named = titles.name_all(
    ["a/big_hammer.svg", "a/martello.svg", "a/chiave.svg", "a/apple.svg"],
    [
      drawings.Words(
        title="Martello grosso",
        keywords=("tool", "big hammer", "martello grosso"),
      ),
      drawings.Words(title="Martello", keywords=("tool", "work")),
      drawings.Words(title="Chiave", keywords=("chiave",)),
      drawings.Words(title="The Apple", keywords=("fruit",)),
    ],
    known=known,
  )
  assert [(one.title, one.own, one.keywords) for one in named] == [
    ("big hammer", False, ("tool",)),
    ("tool, work", False, ()),
    ("", False, ()),
    ("The Apple", True, ("fruit",)),
  ]
  assert titles.captions(named[1]) == ["tool, work"]
  # A title that takes another's place is kept out of the other splits, too.
  assert "title big hammer" in named[0].series


def test_keywords_that_name_an_artist_or_a_series_are_no_captions(
  drawings, titles
):
  words = drawings.Words(
    title="Cat",
    people=("Ann Other",),
    keywords=(
      *(
        "Ann Other",
        "other",
        "Carl",
        "a@b.example",
        "lemon_theme",
        "HASH(0x8)",
      ),
      *("cat", "big_cat", "", "Pet"),
    ),
  )
  other = drawings.Words(title="Dog", people=("Carl",))
  named, _ = titles.name_all(["a/cat_ann_ot.svg", "b/dog.svg"], [words, other])
  assert named.keywords == ("big cat", "pet")
  assert titles.captions(named) == ["Cat", "Cat, big cat, pet"]


def test_captions_are_cut_between_words(titles):
  long = titles.Named("word " * 40, True, ("x" * 70, "y"), frozenset())
  assert all(len(x) <= titles.LONGEST for x in titles.captions(long))
  short = titles.Named("a", True, ("x" * 70, "y"), frozenset())
  assert titles.captions(short) == ["a", "a, y"]


def _random_names(titles, rng, count):
  """Names of which each title is one of 250, and each series one of 300."""
  names = []
  for _ in range(count):
    number = rng.randrange(250)
    title = f"{'abcdefghij'[number % 10] * 2} {'klmno' * (number // 10)}x"
    series = {f"title {title}", f"series {rng.randrange(300)}"}
    names.append(titles.Named(title, rng.random() < 0.8, (), frozenset(series)))
  return names


@pytest.mark.parametrize("by", ["series", "title"])
def test_no_title_and_no_series_is_in_two_splits(titles, by):
  rng = random.Random(0)
  names, paths = _random_names(titles, rng, 400), [f"{i}" for i in range(400)]
  held_out = {"validation": 17, "test": 23}
  splits = titles.split(paths, names, held_out, by=by)
  found = {}
  for name, split in zip(names, splits, strict=True):
    if split is not None:
      for series in name.series:
        found.setdefault(series, set()).add(split)
  shared = {series for series, own in found.items() if len(own) > 1}
  assert not any(series.startswith("title ") for series in shared)
  assert bool(shared) == (by == "title")
  for split, count in held_out.items():
    own = [n for n, s in zip(names, splits, strict=True) if s == split]
    assert len(own) == len({n.title for n in own}) == count
    assert all(n.own for n in own)
  # The order of the files changes nothing.
  mixed = rng.sample(range(400), 400)
  again = titles.split(
    [paths[i] for i in mixed], [names[i] for i in mixed], held_out, by=by
  )
  by_title = {(paths[i], s) for i, s in enumerate(splits) if s}
  assert {(paths[i], s) for i, s in zip(mixed, again, strict=True) if s} == (
    by_title
  )
  with pytest.raises(ValueError, match="test"):
    titles.split(paths[:9], names[:9], {"test": 50}, by=by)


@pytest.mark.parametrize(("by", "held_out"), [("series", 2), ("title", 4)])
def test_titles_that_differ_in_numbers_are_one_title_of_a_series(
  drawings, titles, by, held_out
):
  names = ("Switch 3750 1", "Switch 3750 2", "Pie", "Pie (B and W)")
  paths = [f"a/{letter}.svg" for letter in "wxyz"]
  named = titles.name_all(paths, _words(drawings, names))
  splits = titles.split(paths, named, {"test": held_out}, by=by)
  assert splits.count("test") == held_out
  assert splits.count(None) == 4 - held_out


def test_a_title_without_a_word_names_nothing(drawings, titles):
  paths = ["a/letter_m.svg", "a/first.svg", "a/sign.svg"]
  words = _words(drawings, ["M", "03 - 1", "EU flag"])
  assert [(one.title, one.own) for one in titles.name_all(paths, words)] == [
    ("letter", False),
    ("first", False),
    ("EU flag", True),
  ]


def test_groups_are_those_of_a_slow_search(titles):
  rng = random.Random(1)
  series = [{rng.randrange(90) for _ in range(2)} for _ in range(60)]
  groups = titles.group(series)
  for start in range(60):
    reached, edge = {start}, [start]
    while edge:
      last = edge.pop()
      new = {i for i in range(60) if series[i] & series[last]} - reached
      reached |= new
      edge += new
    assert {i for i in range(60) if groups[i] == groups[start]} == reached


def _folder(root):
  root.mkdir()
  for number, name in enumerate(
    ("cat", "dog", "cow", "pig", "hen", "ape", "bee", "elk")
  ):
    ink = f'<rect width="{number + 1}" height="3"/>'
    (root / f"{name}.svg").write_bytes(
      _svg(ink, title=name.title(), keywords=("animal",), creator="Ann Other")
    )
  (root / "copy.svg").write_bytes(
    _svg('<rect width="1" height="3"/>', title="X")
  )
  (root / "empty.svg").write_bytes(_svg("", title="Nothing"))
  (root / "unnamed.svg").write_bytes(_svg())
  (root / "link.svg").symlink_to("cat.svg")
  (root / "readme.txt").write_text("no drawing")
  os.mkfifo(root / "pipe.svg")
  return root


def _package(path, folder):
  """Writes a Debian package by hand."""
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w:xz") as tar:
    for file in sorted(folder.glob("*.svg")):
      if not file.is_fifo():
        tar.add(file, f"./usr/share/openclipart/svg/{file.name}")
  parts = {
    "debian-binary": b"2.0\n",
    "control.tar.xz": b"odd",
    "data.tar.xz": 0,
  }
  with path.open("wb") as file:
    file.write(b"!<arch>\n")
    for name, content in parts.items():
      content = content or data.getvalue()
      header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
      file.write(header.encode() + content + b"\n" * (len(content) % 2))
  return path


def test_a_package_and_its_folder_give_the_same_bytes(tool, tmp_path, capsys):
  pytest.importorskip("resvg_py")
  folder = _folder(tmp_path / "svg")
  package = _package(tmp_path / "openclipart-svg_1.deb", folder)
  given = ["--size", "16", "--held-out", "2", "--processes", "1", "--json"]
  accounts = []
  for source, out in ((folder, "a"), (package, "b")):
    tool.main([str(source), "--out", str(tmp_path / out), *given])
    accounts.append(json.loads(capsys.readouterr().out))
  one, two = ({**account, "source": ""} for account in accounts)
  assert one == two
  assert one["drawings"] == {"test": 2, "train": 4, "validation": 2}
  assert one["left_out"] == {
    tool.drawings.BLANK: 1,
    tool.LINK: 1,
    tool.DUPLICATE: 1,
    tool.NO_TITLE: 1,
  }
  assert one["files"] == 12
  tars = sorted(path.name for path in (tmp_path / "a").glob("*.tar"))
  assert len(tars) == 5
  for name in tars:
    assert (tmp_path / "a" / name).read_bytes() == (
      tmp_path / "b" / name
    ).read_bytes()
  train = sources.open_source(f"wds:{tmp_path}/a/train-*.tar?captions=lines")
  texts = [train[i].texts for i in range(len(train))]
  assert len(train) == 4
  assert all(y == f"{x}, animal" for x, y in texts), texts
  test = sources.open_source(f"wds:{tmp_path}/a/test-00000.tar")
  assert {len(test[i].texts) for i in range(2)} == {1}


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda path: path / "none.deb", "There is no"),
    (
      lambda path: path / "file.deb",
      "neither a directory nor a Debian package",
    ),
    (lambda path: path / "cut.deb", "is damaged"),
    (lambda path: path / "empty", "has no SVG file"),
  ],
)
def test_wrong_sources_are_told(tool, tmp_path, make, says):
  pytest.importorskip("resvg_py")
  (tmp_path / "file.deb").write_bytes(b"no package")
  (tmp_path / "empty").mkdir()
  folder = tmp_path / "one"
  folder.mkdir()
  (folder / "a.svg").write_bytes(_svg())
  _package(tmp_path / "cut.deb", folder)
  with (tmp_path / "cut.deb").open("r+b") as file:
    file.truncate(300)
  with pytest.raises(errors.UserError, match=says):
    tool.main([str(make(tmp_path)), "--out", str(tmp_path / "out")])
  assert not (tmp_path / "out").exists()
  assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("size", ["7", "2049", "0000000099999999", "x", "8.5"])
def test_sizes_out_of_bounds_are_refused(tool, capsys, size):
  with pytest.raises(SystemExit):
    tool.main(["svg", "--out", "made", "--size", size])
  assert f"{size!r} is no number from 8 to 2048" in capsys.readouterr().err


def test_a_missing_library_is_told_by_its_extra(tool, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "resvg_py", None)
  with pytest.raises(errors.UserError, match=r"\[svg\]"):
    tool.main([str(TOOLS), "--out", str(tmp_path / "out")])


@pytest.fixture(scope="module")
def pairs(tool, tmp_path_factory):
  """Four drawings to train on, and two of each other kind."""
  pytest.importorskip("resvg_py")
  root = tmp_path_factory.mktemp("pairs")
  tool.make(
    _folder(root / "svg"), root / "made", size=16, held_out=2, processes=1
  )
  return root / "made"


@pytest.mark.slow
def test_the_config_trains_on_drawings_beside_a_locked_text_tower(
  pairs, tmp_path
):
  text = model_kinds.sentence_directory(tmp_path / "text")
  config = config_lib.load(
    TOOLS.parents[1] / "configs" / "openclipart.py",
    [
      f"init.text={text}",
      f"data.train=wds:{pairs}/train-*.tar?captions=lines",
      "model_overrides.embed_dim=16",
      'model_overrides.image={"width": 16, "depths": [1], "image_size": 16}',
      "batch_size=8",
      "steps=2",
      "optim.warmup_steps=1",
      f"report=wds:{pairs}/test-00000.tar",
      *(
        f"evals.{name}.data=wds:{pairs}/{name}-00000.tar"
        for name in ("validation", "test", "test_keywords")
      ),
    ],
  )
  loop.train(config, tmp_path / "run")
  assert (tmp_path / "run" / "report.png").is_file()
  lines = (tmp_path / "run" / metric_log.METRICS).read_text().splitlines()
  last = json.loads(lines[-1])
  assert last["eval/test/text_to_image/r@5"] == 1.0, last  # Of two.
  clip = loading.load(tmp_path / "run")
  flat, _ = jax.tree_util.tree_flatten_with_path(clip.variables)
  arrays = {sharding.path_name(path): array for path, array in flat}
  start = convert.open_model(text).leaves
  towers = {path for path in start if path.startswith("params/text/")}
  assert towers <= arrays.keys() and towers
  for path in towers:
    np.testing.assert_array_equal(arrays[path], start[path].read())
