"""What the tabs answer, without Gradio."""

import concurrent.futures
import html.parser
import pathlib
import re

import numpy as np
import pytest

from clip_jax import errors, preprocess, search
from clip_jax.app import (
  answering,
  classifying,
  comparing,
  drawn,
  limits,
  markup,
  searching,
  tabs,
)

TEMPLATES = "a photo of a {}.\na drawing of the {}"


class Read(html.parser.HTMLParser):
  """Collects tags, attributes and text as a browser would."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.attributes, self.text = set(), [], ""
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes += attrs

  def handle_data(self, data):
    self.text += data


OURS = {
  *("div", "p", "span", "bdi", "br", "img", "figure", "figcaption"),
  *("table", "tr", "th", "td", "h3"),
}


def assert_harmless(page):
  """Asserts that a page has our own tags and attributes alone."""
  read = Read(page)
  assert read.tags <= OURS
  for name, value in read.attributes:
    assert name in {"class", "style", "src", "alt", "loading", "scope", "role"}
    if name == "src":
      assert re.match(r"pictures/\d+$|data:image/(png|jpeg);base64,", value)
  controls = (
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200f\u061c"
  )
  assert not set(read.text) & set(controls + "\x00\x1b\x07\r")
  return read


@pytest.fixture
def uploads(tmp_path, make_image):
  """Uploaded files, and what is no upload."""
  room = tmp_path / "uploads"
  (room / "a").mkdir(parents=True)
  for i in range(3):
    (room / "a" / f"{i}.png").write_bytes(make_image(i))
  (room / "a" / "<img src=x onerror=alert(1)>.png").write_bytes(make_image(5))
  (room / "a" / "broken.png").write_bytes(make_image(1)[:200])
  (room / "a" / "page.html").write_bytes(b"<html><script>alert(1)</script>")
  (tmp_path / "secret.png").write_bytes(make_image(9))
  (room / "a" / "link.png").symlink_to(tmp_path / "secret.png")
  return room


@pytest.fixture
def page(engine, index, uploads):
  return tabs.Tabs(engine, uploads=str(uploads), index=index)


def test_probabilities_are_those_of_the_library(engine, clip, make_image):
  image = make_image(2)
  found = classifying.classify(
    engine, engine.read(image, "x"), "cat, dog,car,,cat", TEMPLATES
  )
  want = clip.classify(
    image, ["cat", "dog", "car"], templates=TEMPLATES.splitlines()
  )[0]
  assert found.prompts == 6 and found.kind == "softmax" and found.cut == 0
  order = np.argsort(-want)
  assert found.names == tuple(np.array(["cat", "dog", "car"])[order])
  # The same sums of float32, in batches of another size.
  np.testing.assert_allclose(found.probabilities, want[order], rtol=1e-4)


def test_similarities_and_heat_maps_are_those_of_the_library(
  engine, clip, make_image
):
  images = [make_image(i) for i in range(3)]
  pictures = [engine.read(image, str(i)) for i, image in enumerate(images)]
  texts = ["a cat, and a dog", "a " * 40]
  found = comparing.compare(engine, pictures, "\n".join(texts))
  assert found.cut == 1
  want = clip.similarity(images, [text.strip() for text in texts])
  np.testing.assert_allclose(found.similarity, want, rtol=1e-4)
  maps = comparing.heat(engine, pictures, texts[0])
  for image, values in zip(images, maps, strict=True):
    want = clip.patch_similarity(image, texts[0])
    assert want.shape == (2, 2)
    np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-6)
  with pytest.raises(errors.UserError, match="One text"):
    clip.patch_similarity(images[0], texts)


def test_a_search_finds_what_the_index_does(engine, index, make_image):
  got = searching.search(engine, index, text="a cat", count=5.0)
  assert got == index.search(engine.embed_texts(["a cat"])[0], k=5)
  picture = engine.read(make_image(7), "x")
  got = searching.search(engine, index, text="a cat", picture=picture, count=1)
  assert got[0].captions[1] == "caption 7" and got[0].score > 0.9999


def test_texts_are_embedded_once_and_forgotten_in_order(engine):
  asked = []

  def embed(texts):
    asked.append(texts)
    return np.array([[len(text)] for text in texts])

  cache = answering.TextCache(embed, kept=3)
  assert cache.embed(["a", "bb", "a"]).tolist() == [[1], [2], [1]]
  assert cache.embed(["bb", "ccc"]).tolist() == [[2], [3]]
  assert cache.embed(["dddd"]).tolist() == [[4]]
  assert asked == [["a", "bb"], ["ccc"], ["dddd"]]
  assert len(cache) == 3
  # More than are kept.
  assert cache.embed(list("abcde")).tolist() == [[1]] * 5
  assert len(cache) == 3
  engine.embed_texts(["x", "y"])
  engine.embed_texts(["y", "z"])
  assert engine.clip.encoder.texts == [2, 1]


def test_rows_get_the_pictures_of_their_keys(index, folder, make_image):
  # Some rows first, so that the others' places are known in part.
  pictures = searching.Pictures(index, limits_of_images=limits_of())
  assert pictures.why_not == ""
  good = [i for i in range(12) if i not in (2, 3, 9)]
  for row in (8, 0, 4, 2, 7, 1, 3, 5, 6, 8):
    want = drawn.thumbnail(make_image(good[row]), limits=limits_of())
    assert pictures.thumbnail(row) == want
  for row in (-1, 9, 10**12):
    with pytest.raises(searching.NoPictureError, match="no row"):
      pictures.thumbnail(row)


def test_a_record_with_another_key_is_not_shown(index, folder, request):
  table = pathlib.Path(folder.removeprefix("csv:"))
  whole = table.read_text()
  lines = whole.splitlines()
  request.addfinalizer(lambda: table.write_text(whole))
  table.write_text("\n".join([*lines[:1], *reversed(lines[1:])]))
  pictures = searching.Pictures(index, limits_of_images=limits_of())
  with pytest.raises(searching.NoPictureError, match="no record"):
    pictures.thumbnail(0)
  table.write_text("\n".join(lines[:5]))
  pictures = searching.Pictures(index, limits_of_images=limits_of())
  assert "records are gone" in pictures.why_not


def limits_of():
  return preprocess.DEFAULT_LIMITS


def test_an_index_of_another_model_is_refused(index, engine):
  opened = searching.open_index(str(index.directory), engine)
  assert len(opened) == 9
  engine.clip.__dict__["fingerprint"] = "another"
  with pytest.raises(errors.UserError, match="another model"):
    searching.open_index(str(index.directory), engine)


@pytest.mark.parametrize("suffix", search.SUFFIXES)
def test_a_file_of_another_library_is_searched_by_many(
  engine, index, uploads, tmp_path, suffix
):
  library = {".faiss": "faiss", ".usearch": "usearch.index"}[suffix]
  pytest.importorskip(library, exc_type=ImportError)
  path = tmp_path / f"own{suffix}"
  search.export(index, path)
  with pytest.raises(errors.UserError, match="--keys"):
    searching.open_index(str(path), engine)
  opened = searching.open_index(str(path), engine, keys=str(index.directory))
  page = tabs.Tabs(engine, uploads=str(uploads), index=opened)
  plain = tabs.Tabs(engine, uploads=str(uploads), index=index)
  texts = [f"{name} {i}" for i in range(9) for name in ("cat", "dog")]
  wanted = [_pictures(plain.search(text, None, 3)) for text in texts]
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    found = pool.map(lambda text: page.search(text, None, 3), texts)
    assert [_pictures(each) for each in found] == wanted
  assert page.thumbnail(0) == plain.thumbnail(0)


def _pictures(answer):
  """The pictures that an answer shows, in their order."""
  sources_of = [v for name, v in Read(answer).attributes if name == "src"]
  assert len(sources_of) == 3
  return sources_of


def test_nothing_that_is_typed_becomes_markup(page, uploads, hostile):
  upload = str(uploads / "a" / "0.png")
  bad_name = str(uploads / "a" / "<img src=x onerror=alert(1)>.png")
  for text in hostile:
    for labels, templates in ((text, TEMPLATES), ("a,b", f"{text} {{}}")):
      assert_harmless(page.classify(upload, labels, templates))
    assert_harmless(page.search(text, None, 3))
    read = assert_harmless(page.compare([upload, bad_name], text))
    assert_harmless(page.heat([bad_name], text))
    if "table" in read.tags:
      assert "<img src=x onerror=alert(1)>.png" in read.text


def test_captions_are_shown_as_text(page, hostile):
  read = assert_harmless(page.search("a cat", None, 9))
  shown = " ".join(read.text.split())
  for text in (hostile[0], hostile[1], hostile[4], hostile[7], hostile[8]):
    assert text in shown
  found = {value for name, value in read.attributes if name == "src"}
  assert found == {f"pictures/{row}" for row in range(9)}


@pytest.mark.parametrize(
  "upload",
  [
    *(
      "/etc/passwd",
      "secret.png",
      "../secret.png",
      "a/link.png",
      "a/broken.png",
    ),
    *(
      "a/page.html",
      "a/none.png",
      "a",
      "a/\x00.png",
      "",
    ),
    *(
      5,
      [],
      {"path": "/etc/passwd"},
      b"x",
      True,
      "http://localhost/x.png",
    ),
  ],
)
def test_only_uploaded_pictures_are_read(page, uploads, upload):
  if isinstance(upload, str) and not upload.startswith("/"):
    upload = str(uploads / upload)
  for answer in (
    page.classify(upload, "a,b", TEMPLATES),
    page.search("", upload, 3),
    page.compare([upload], "a"),
    page.heat([upload], "a"),
  ):
    read = assert_harmless(answer)
    assert ("class", "error") in read.attributes
    assert str(uploads) not in read.text


@pytest.mark.parametrize(
  "value", [None, 5, 1.5, [], ["a"], {}, b"a", "", "  \n ,", "x" * 10**6]
)
def test_wrong_values_are_errors_in_words(page, uploads, value):
  upload = str(uploads / "a" / "0.png")
  answers = [
    page.classify(upload, value, TEMPLATES),
    page.classify(upload, "a,b", value),
    page.compare([upload], value),
    page.heat([upload], value),
    page.search(value, None, 3),
    page.watch(value),
  ]
  if value != 5:
    answers.append(page.search("a", None, value))
  for answer in answers:
    read = assert_harmless(answer)
    assert ("class", "error") in read.attributes or value == "  \n ,"
    assert len(read.text) < 2000
  assert page.stamp(value) == ()


@pytest.mark.parametrize("count", [0, -1, 61, 2.5, float("nan"), True, "3"])
def test_a_wrong_number_of_results_is_refused(page, count):
  assert "must be from 1 to 60" in page.search("a", None, count)


def test_too_many_labels_and_pictures_are_refused(page, uploads):
  upload = str(uploads / "a" / "0.png")
  many = ",".join(map(str, range(201)))
  assert "201 labels" in page.classify(upload, many, TEMPLATES)
  fills = "\n".join(f"{i} {{}}" for i in range(100))
  wide = ",".join(map(str, range(41)))
  assert "4,100 texts" in page.classify(upload, wide, fills)
  assert "17 pictures" in page.compare([upload] * 17, "a")
  assert "text must be" not in page.compare([], "a")
  assert "{}" in page.classify(upload, "a,b", "no placeholder")


def test_a_text_that_is_too_long_is_told_with_its_place(page, uploads):
  upload = str(uploads / "a" / "0.png")
  told = "There are 1,001 characters in {}; write at most 1,000."
  long = "x" * 1001
  for answer, place in (
    (page.classify(upload, f"cat\n{long}", TEMPLATES), "one of the labels"),
    (page.classify(upload, "cat", f"{{}} {long[3:]}"), "one of the templates"),
    (page.compare([upload], f"{long}\na"), "one of the texts"),
    (page.search(long, None, 3), "the search"),
  ):
    assert told.format(place) in answer
  whole = 200 * 1001 + 1
  told = page.classify(upload, "x" * whole, TEMPLATES)
  assert f"{whole:,} characters in the labels" in told


def test_labels_never_name_a_file(tmp_path):
  path = tmp_path / "labels.txt"
  path.write_text("secret")
  assert limits.listed(str(path), "labels", most=3) == [str(path)]


def test_too_large_a_file_is_refused(engine, monkeypatch, make_image):
  monkeypatch.setattr(limits, "UPLOAD_BYTES", 500)
  with pytest.raises(errors.UserError, match="picture smaller"):
    engine.read(make_image(0), "x")


def test_without_index_or_pictures_it_says_so(engine, uploads, index, folder):
  assert "without an index" in tabs.Tabs(engine, uploads=str(uploads)).search(
    "a", None, 3
  )
  index.meta["data"] = "folder:/not/here"
  page = tabs.Tabs(engine, uploads=str(uploads), index=index)
  read = assert_harmless(page.search("a", None, 3))
  assert "cannot be opened" in read.text and "/not/here" not in read.text
  assert "img" not in read.tags
  with pytest.raises(searching.NoPictureError):
    page.thumbnail(0)


def test_unforeseen_errors_say_nothing_of_the_server(page, monkeypatch, caplog):
  monkeypatch.setattr(page, "_run", lambda name: 1 / 0)
  assert "log says why" in page.watch("x")
  assert "ZeroDivisionError" in caplog.text


def test_thumbnails_are_small_and_made_anew(make_image):
  for size in ((20, 24), (700, 900), (3, 1)):
    data = make_image(1, size=size)
    made = drawn.thumbnail(data, limits=limits_of())
    assert made != data
    kind = "png" if max(size) < 100 else "jpeg"
    assert drawn.media_type(made) == f"image/{kind}"
    assert drawn.inline(made).startswith(f"data:image/{kind};base64,")
    shown = preprocess.decode(made)
    assert max(shown.size) <= 320


def test_a_heat_map_is_named_as_its_picture_is():
  picture = answering.Picture("a & <b>.png", np.zeros((4, 4, 3), np.uint8))
  read = Read(markup.heat_maps([picture], [np.zeros((2, 2))], "a cat", cut=0))
  named = [value for name, value in read.attributes if name == "alt"]
  assert named == ["a & <b>.png", "Heat map of a & <b>.png"]


def test_a_record_far_behind_is_not_said_to_be_gone(index, folder, monkeypatch):
  pictures = searching.Pictures(index, limits_of_images=limits_of())
  monkeypatch.setattr(searching, "_MOST_TRIES", 1)  # Three are left out.
  with pytest.raises(searching.NoPictureError, match="behind more than 1 that"):
    pictures.thumbnail(8)
  monkeypatch.setattr(searching, "_MOST_TRIES", 3)
  assert pictures.thumbnail(8)
  monkeypatch.setattr(index, "key", lambda row: "another")
  with pytest.raises(searching.NoPictureError, match="any more"):
    pictures.thumbnail(7)


def test_a_heat_map_is_bright_where_values_are_great():
  pixels = np.full((16, 16, 3), 128, np.uint8)
  values = np.array([[0.1, 0.2], [0.3, 0.9]])
  shown = np.asarray(drawn.heat_map(pixels, values), int).sum(axis=2)
  assert shown[-20, -20] == shown.max() and shown[20, 20] == shown.min()
  flat = np.asarray(drawn.heat_map(pixels, np.zeros((2, 2))))
  assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
  assert drawn.ramp(np.array([0.0, 1.0])).tolist() == [
    [68, 1, 84],
    [253, 231, 37],
  ]


def test_bars_stop_at_twenty_and_tell_the_rest():
  found = classifying.Classified(
    names=tuple(map(str, range(30))),
    probabilities=np.linspace(0.06, 0, 30),
    kind="sigmoid",
    prompts=60,
    cut=1,
  )
  read = Read(markup.bars(found))
  assert "10 less probable labels are not shown" in read.text
  assert "Each label is judged by itself" in read.text
  assert "1 text is longer" in read.text


def test_an_index_gives_the_key_of_a_row(index):
  assert [index.key(i) for i in (0, 8)] == [
    hit.key
    for row in (0, 8)
    for hit in search.Index(index.directory).search(index.embeds[row], k=1)
  ]


def test_a_search_and_a_heat_map_tell_of_a_text_that_is_cut(page, uploads):
  upload = str(uploads / "a" / "0.png")
  for text, is_cut in (("a cat", False), ("a " * 40, True)):
    for answer in (page.search(text, None, 3), page.heat([upload], text)):
      assert ("1 text is longer" in Read(answer).text) == is_cut
  told = Read(page.search("a " * 40, upload, 3)).text
  assert "longer" not in told  # The picture goes before the text.
