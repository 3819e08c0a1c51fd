"""Statistics of a source: each number equals that of a slow loop."""

import collections
import io
import itertools
import json
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, errors, preprocess, tokenizer, whole_files
from clip_jax.data import record as record_lib
from clip_jax.data.curation import language
from clip_jax.data.statistics import scripts, summary
from clip_jax.results import data_page, html_page, report_files

TEXTS = (
  *("a red car", "a red car", "Ein rotes Auto", "красная машина", "赤い車です"),
  *(
    "빨간 자동차",
    "سيارة حمراء",
    "<script>alert(1)</script>",
    "12 + 3",
    "a\nb",
  ),
  *("लाल गाड़ी", "κόκκινο αμάξι", "word " * 90, "𐌰𐌱", "x \u202e y"),
)
SIZES = ((9, 11), (32, 7), (400, 300), (64, 64))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # To be turned by a quarter.


def _encoded(size, form, mode, colour, **options):
  buffer = io.BytesIO()
  Image.new(mode, size, colour).save(buffer, form, **options)
  return buffer.getvalue()


IMAGES = [
  _encoded(size, form, mode, colour)
  for size in SIZES
  for form, mode in (("PNG", "L"), ("PNG", "RGB"), ("JPEG", "RGB"))
  for colour in (0, 99)
]


class Pairs:
  """Records in memory; every seventh is bad, and so is a broken image."""

  class_names = templates = None
  fingerprint = "pairs"

  def __init__(self, number):
    rng = np.random.default_rng(0)
    self.images = [IMAGES[i] for i in rng.integers(len(IMAGES), size=number)]
    self.images[2] = b"no image"
    self.images[3] = _encoded((20, 10), "JPEG", "RGB", 5, exif=EXIF)
    self.texts = [
      tuple(rng.choice(TEXTS, rng.integers(1, 4))) for _ in range(number)
    ]

  def __len__(self):
    return len(self.images)

  def __getitem__(self, slot):
    if slot % 7 == 6:
      raise record_lib.BadRecord("missing_image", f"{slot}")
    texts = tuple(map(str, self.texts[slot]))
    return record_lib.Record(self.images[slot], texts, f"{slot:03d}")


def _percentile(values, p):
  """The least value that at least p percent of all do not exceed."""
  values = sorted(values)
  return next(v for i, v in enumerate(values, 1) if i >= p / 100 * len(values))


def _check(found, values):
  assert found["min"] == min(values) and found["max"] == max(values)
  assert found["mean"] == pytest.approx(sum(values) / len(values), rel=1e-12)
  for p, value in found["percentiles"].items():
    assert value == _percentile(values, int(p))
  if "histogram" in found:
    edges = [*found["histogram"]["from"], float("inf")]
    assert found["histogram"]["counts"] == [
      sum(low <= value < high for value in values)
      for low, high in itertools.pairwise(edges)
    ]


def _script_by_name(text):
  """The script by the first words of characters' names."""
  letters = [unicodedata.name(c).split() for c in text if c.isalpha()]
  short = {"CJK": "Han", "GOTHIC": "other"}
  names = [short.get(words[0], words[0].capitalize()) for words in letters]
  counts = collections.Counter(names)
  return min(counts, key=lambda n: (-counts[n], n), default="none")


@pytest.fixture(scope="module")
def pairs():
  return Pairs(120)


@pytest.fixture(scope="module")
def found(pairs):
  return summary.summarize(summary.look(pairs), pairs)


def _good(pairs):
  for slot in range(len(pairs)):
    if slot % 7 != 6 and slot != 2:
      yield pairs[slot]


def test_lengths_of_captions_are_those_of_a_loop(pairs, found):
  records = list(_good(pairs))
  texts = [text for record in records for text in record.texts]
  captions = found["captions"]
  assert captions["number"] == len(texts)
  _check(captions["per_record"], [len(record.texts) for record in records])
  _check(captions["characters"], [len(text) for text in texts])
  _check(captions["words"], [len(text.split()) for text in texts])
  tokens, cut = [], 0
  short = tokenizer.make_tokenizer("clip_bpe", context_length=77)
  for text in texts:
    for length in range(3, 200):
      made = tokenizer.make_tokenizer("clip_bpe", context_length=length)
      if not made.rows([text]).cut[0]:
        break
    tokens.append(length)
    cut += bool(short.rows([text]).cut[0])
  _check(captions["tokens"], tokens)
  assert cut > 0
  assert captions["cut"] == cut and captions["cut_share"] == cut / len(texts)
  counts = collections.Counter(map(_script_by_name, texts))
  assert captions["scripts"] == dict(counts)
  assert list(captions["scripts"].values()) == sorted(
    counts.values(), reverse=True
  )


def test_sizes_of_images_are_those_of_a_loop(pairs, found):
  records, images = list(_good(pairs)), found["images"]
  opened = [preprocess.decode(record.image) for record in records]
  _check(images["bytes"], [len(record.image) for record in records])
  _check(images["width"], [image.width for image in opened])
  _check(images["height"], [image.height for image in opened])
  _check(images["shortest_side"], [min(image.size) for image in opened])
  _check(images["aspect"], [image.width / image.height for image in opened])
  forms = [Image.open(io.BytesIO(record.image)) for record in records]
  assert images["formats"] == dict(collections.Counter(f.format for f in forms))
  assert images["modes"] == dict(collections.Counter(f.mode for f in forms))
  assert opened[2].size == (10, 20)  # The one that is turned.


def test_repeats_and_bad_records_are_those_of_a_loop(pairs, found):
  records = list(_good(pairs))
  assert found["bad"] == {"not_an_image": 1, "missing_image": 17}
  assert found["good"] == len(records) == found["records"] - 18
  texts = collections.Counter(text for r in records for text in r.texts)
  captions = found["captions"]
  assert captions["different"] == len(texts)
  assert captions["repeated"] == texts.total() - len(texts)
  top = {entry["caption"]: entry["count"] for entry in captions["top"]}
  assert top == {text: n for text, n in texts.items() if n > 1}
  first, counts = {}, collections.Counter()
  for record in records:
    first.setdefault(record.image, record.key)
    counts[record.image] += 1
  top = [(entry["key"], entry["count"]) for entry in found["images"]["top"]]
  expected = sorted(
    ((first[i], n) for i, n in counts.items() if n > 1),
    key=lambda entry: (-entry[1], entry[0]),
  )
  assert top == expected[:20]


def test_only_decoding_finds_damage_behind_a_header():
  pairs = Pairs(5)
  pairs.images = [image[:-30] for image in [IMAGES[12]] * 5]
  assert summary.look(pairs).good.all()
  assert not summary.look(pairs, decode=True).good.any()


def test_languages_of_captions_are_those_of_a_loop(pairs, found):
  library = pytest.importorskip("py3langid")
  assert found["captions"]["languages"] is None
  seen = summary.look(pairs, by_language=True)
  counts = summary.summarize(seen, pairs)["captions"].pop("languages")
  texts = [text for record in _good(pairs) for text in record.texts]
  want = collections.Counter(
    library.classify(text)[0] if any(map(str.isalpha, text)) else "none"
    for text in texts
  )
  assert counts == want and counts["none"] > 0
  assert {"de", "ru", "ja", "ko", "ar"} < counts.keys()
  assert list(counts.values()) == sorted(want.values(), reverse=True)


def test_languages_need_their_library(folder, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "py3langid", None)
  language.known.cache_clear()
  with pytest.raises(SystemExit) as ended:
    cli.main(["data", "stats", f"folder:{folder}", "--languages"])
  assert ended.value.code == 1
  assert "jax-clip[language]" in capsys.readouterr().err


def test_languages_are_told_as_text_and_on_the_page(folder, tmp_path, capsys):
  pytest.importorskip("py3langid")
  out = tmp_path / "look"
  command = ["data", "stats", f"folder:{folder}", "--languages"]
  cli.main([*command, "--out", str(out)])
  written = json.loads((out / "stats.json").read_text("utf-8"))
  counts = written["captions"]["languages"]
  said = ", ".join(f"{n} {code}" for code, n in counts.items())
  assert f"languages: {said}" in capsys.readouterr().out
  page = (out / "index.html").read_text("utf-8")
  assert "Scripts, languages, formats" in page


def test_scripts_are_sorted_and_apart():
  edges = [edge for pair in scripts._RANGES for edge in pair]
  assert edges == sorted(edges) and len(set(edges)) == len(edges)


def test_a_source_without_a_good_record_has_numbers(tmp_path):
  pairs = Pairs(4)
  pairs.images = [b"no"] * 4
  found = summary.look(pairs)
  numbers = summary.summarize(found, pairs)
  assert numbers["good"] == 0 and numbers["images"]["bytes"]["min"] is None
  assert summary.samples(found, pairs, 9) == []
  json.dumps(numbers, allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("pairs")
  for i, text in enumerate(TEXTS):
    name = f"<b>{i}&'" if i % 2 else f"{i}"
    (root / f"{name}.png").write_bytes(_encoded(SIZES[i % 4], "PNG", "L", i))
    (root / f"{name}.txt").write_text(text)
  return root


def test_the_page_escapes_what_is_in_the_data(folder, tmp_path, capsys):
  out = tmp_path / "look"
  cli.main(["data", "stats", f"folder:{folder}", "--out", str(out), "--json"])
  printed = json.loads(capsys.readouterr().out)
  page = (out / "index.html").read_text("utf-8")
  assert "<script" not in page and "<b>" not in page and "\u202e" not in page
  assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;1&amp;&#x27;" in page
  assert page.count("data:image/png;base64,") == 4
  written = json.loads((out / "stats.json").read_text("utf-8"))
  assert printed["captions"] == written["captions"]
  with Image.open(out / "contact_sheet.png") as sheet:
    assert sheet.getpixel((7 + 55, 7 + 55)) < (20,) * 3


@pytest.mark.slow
def test_processes_give_the_same_page(folder, tmp_path, capsys):
  for workers in ("1", "2"):
    out = tmp_path / workers
    flags = ["--out", str(out), "--workers", workers, "--decode"]
    cli.main(["data", "stats", f"folder:{folder}", *flags])
  for path in (tmp_path / "1").iterdir():
    assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_what_cannot_be_measured_is_said(folder, tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  for words, said, code in (
    (["folder:/nowhere"], "/nowhere", 1),
    ([f"folder:{folder}", "--out", str(tmp_path)], "other files", 1),
    ([f"folder:{folder}", "--out", f"{tmp_path}/file"], "is a file", 1),
    ([f"folder:{folder}", "--out", "gs://a/b"], "remote", 1),
    ([f"folder:{folder}", "--workers", "0"], "at least 1", 2),
    ([f"folder:{folder}", "--max-pixels", "1"], "too_many_pixels", 1),
  ):
    with pytest.raises(SystemExit) as ended:
      cli.main(["data", "stats", *words])
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert said in printed.err + printed.out


def test_a_page_that_was_interrupted_is_replaced_and_no_report(
  folder, tmp_path, monkeypatch, capsys
):
  out, written = tmp_path / "look", []

  def write(path, data, write=whole_files.write):
    if written:
      raise KeyboardInterrupt
    written.append(path.name)
    write(path, data)

  words = ["data", "stats", f"folder:{folder}", "--out", str(out)]
  with monkeypatch.context() as patch:
    patch.setattr(whole_files, "write", write)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
      cli.main(words)
  assert written == ["index.html"]
  (out / ".index.html.00.partial").write_bytes(b"cut")
  cli.main(words)
  with pytest.raises(errors.UserError, match="than a report"):
    report_files.check_replaceable(out)
  (out / "index.html").write_text(html_page.document("Report", []))
  with pytest.raises(errors.UserError, match="than a page of data"):
    data_page.check(str(out))
  report_files.check_replaceable(out)
