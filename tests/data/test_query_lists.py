"""Lists of queries: exact counts, the same bytes however the work is split."""

import bz2
import collections
import gzip
import json
import math
import os
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from clip_jax import cli, errors
from clip_jax.data import prepare
from clip_jax.data.curation import corpus, counting, making, queries, wikipedia

WORDS = (
  *("red", "car", "New", "York", "don't", "state-of-the-art", "日本", "हिन्दी"),
  *("émigré", "(red", "car)", "York.", "“car”", "--", "12.5", "a,b", "$5"),
)
NOTHING = "\n".join(["", "  ", "...", "—"])


def _lines(seed, number):
  rng = np.random.default_rng(seed)
  return [
    " ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(number)
  ]


def _slow(lines):
  """Counts of words and of neighbours, by a loop over characters."""

  def is_mark(c):
    return unicodedata.category(c)[0] in "PSZC"

  words, pairs = collections.Counter(), collections.Counter()
  for line in lines:
    for mark in ",.;:?!`":
      line = line.replace(mark, f" {mark} ")
    left = None
    for token in line.split():
      inner = [i for i, c in enumerate(token) if not is_mark(c)]
      if not inner:
        left = None
        continue
      word = token[inner[0] : inner[-1] + 1]
      words[word] += 1
      if left is not None and inner[0] == 0:
        pairs[f"{left} {word}"] += 1
      left = word if inner[-1] == len(token) - 1 else None
  return words, pairs


def _table(path):
  head, *rows = path.read_text("utf-8").splitlines()
  assert head == "query\tsources\tcount\tpmi"
  return {row.split("\t")[0]: row.split("\t")[1:] for row in rows}


def _dump(pages):
  """A dump of pages: (title, namespace, text, whether it redirects)."""
  items = [
    f"<page><title>{title}</title><ns>{space}</ns>"
    f"{'<redirect />' if redirect else ''}"
    f"<revision><text bytes='1'>{text}</text></revision></page>"
    for title, space, text, redirect in pages
  ]
  return (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" '
    f'xml:lang="en"><siteinfo/>{"".join(items)}</mediawiki>'
  ).encode()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """One corpus as files of every kind, with titles and a WordNet."""
  root = tmp_path_factory.mktemp("corpus")
  parts = [_lines(seed, 150) for seed in range(4)]
  texts = ["\n".join(part) + f"\n{NOTHING}\n" for part in parts]
  (root / "a.txt").write_bytes(b"\xef\xbb\xbf" + texts[0].encode())
  (root / "b.txt.gz").write_bytes(gzip.compress(texts[1].encode()))
  column = pa.array([[line] for line in parts[2]])
  numbers = pa.array(range(150))
  table = pa.table({"n": numbers, "caption": column})
  pq.write_table(table, root / "c.parquet", row_group_size=40)
  pages = [
    ("York (city)", 0, texts[3], False),
    ("Old York", 0, "York York York", True),
    ("Talk:York", 1, "York York York", False),
  ]
  (root / "d.xml.bz2").write_bytes(bz2.compress(_dump(pages)))
  (root / "titles.tsv").write_text("Red_Car\t70\nRare_thing\t69\n")
  (root / "wordnet").mkdir()
  for kind, entry in (
    ("noun", "00000001 03 n 02 red_car 0 auto 0 000 | a car"),
    ("verb", "00000001 29 v 01 drive 0 000 00 | go by car"),
    ("adj", "00000001 00 a 01 galore(ip) 0 000 | in plenty"),
    ("adv", "00000001 02 r 01 New 0 000 | anew"),
  ):
    text = f"  1 licence\n{entry}\n"
    (root / "wordnet" / f"data.{kind}").write_text(text)
  return root, [line for part in parts for line in part]


def _inputs(root, order=(0, 1, 2, 3, 4, 5)):
  names = [
    *(f"{root}/a.txt", f"{root}/b.txt.gz", f"{root}/c.parquet"),
    *(
      f"{root}/d.xml.bz2",
      f"titles:{root}/titles.tsv",
      f"wordnet:{root}/wordnet",
    ),
  ]
  return [corpus.open_input(names[i], min_views=70) for i in order]


def test_a_list_is_what_a_slow_loop_counts(files, tmp_path):
  root, lines = files
  rule = making.Rule(min_count=30, min_pmi=0.5)
  out = tmp_path / "queries.txt"
  made = making.make(_inputs(root), out, rule)
  words, pairs = _slow(lines)
  expected = {w: ["words", str(n), ""] for w, n in words.items() if n >= 30}
  for pair, count in pairs.items():
    first, second = (words[word] for word in pair.split(" "))
    share = (count / pairs.total()) / (
      first / words.total() * second / words.total()
    )
    if count >= 30 and math.log2(share) >= 0.5:
      expected[pair] = ["bigrams", str(count), f"{math.log2(share):.4f}"]
  assert 0 < sum(" " in text for text in expected) < len(pairs)
  for name, source in (
    *(("York", "titles"), ("Red Car", "titles")),
    *(("red car", "wordnet"), ("drive", "wordnet"), ("New", "wordnet")),
    ("galore", "wordnet"),
  ):
    of, count, bits = expected.get(name, ["", "", ""])
    expected[name] = [",".join(filter(None, [of, source])), count, bits]
  assert _table(out.with_suffix(".tsv")) == expected
  assert queries.read(out).texts == tuple(sorted(expected))
  assert queries.read(out).digest == made["digest"]
  assert made["words"] == words.total() and made["bigrams"] == pairs.total()
  assert made["texts"] == len(lines) + 3 * 2  # Those of two marks, thrice.
  assert made["queries"] == len(expected) and not made["bad"]
  assert made["sources"]["titles"] == 2 and made["only"]["titles"] == 1


def test_order_spilling_and_parts_make_no_difference(
  files, tmp_path, monkeypatch
):
  root, _ = files
  rule = making.Rule(min_count=3, min_pmi=-5)
  making.make(_inputs(root), tmp_path / "a.txt", rule)
  monkeypatch.setattr(counting, "MOST_KEYS", 7)
  monkeypatch.setattr(corpus, "_PART_BYTES", 100)
  monkeypatch.setattr(corpus, "PIECE_BYTES", 64)
  monkeypatch.setattr(wikipedia, "_PIECE_BYTES", 50)
  making.make(_inputs(root, (5, 3, 1, 0, 4, 2)), tmp_path / "b.txt", rule)
  for suffix in ("txt", "tsv"):
    first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *("a.tsv", "a.txt", "b.tsv", "b.txt"),
  ]


@pytest.mark.slow
def test_processes_make_no_difference(files, tmp_path, capsys):
  root, _ = files
  for workers, order in ((1, (0, 1, 2, 3)), (2, (3, 1, 0, 2))):
    names = ["a.txt", "b.txt.gz", "c.parquet", "d.xml.bz2"]
    paths = [f"{root}/{names[i]}" for i in order]
    out = str(tmp_path / f"{workers}.txt")
    flags = ["--min-count", "3", "--workers", str(workers), "--json"]
    cli.main(["data", "queries", *paths, out, *flags])
    assert json.loads(capsys.readouterr().out)["queries"] > 10
  one, two = (tmp_path / f"{n}.tsv" for n in (1, 2))
  assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size, words", [(0, 40), (100, 500), (10**6, 500)])
def test_a_large_partition_is_parted_before_it_is_added_up(
  tmp_path, size, words
):
  keys = [f"w{i}" for i in range(words)]
  for name in "ab":
    path = tmp_path / name
    table = counting.Table(path, ignore_case=False, most_keys=1)
    table.add(corpus.Piece(" ".join(keys)))
    table.add(corpus.Piece(" ".join(keys[:9])))
  files = {path.name.split(".")[1] for path in tmp_path.iterdir()}
  assert files == {"words", "bigrams"}
  counts = collections.Counter()
  for key, count in counting.merged(tmp_path, "words", merged_bytes=size):
    assert key not in counts
    counts[key] = count
  assert counts == collections.Counter(2 * keys + 2 * keys[:9])
  assert not list(tmp_path.glob("*words*")) and list(tmp_path.iterdir())


def test_what_a_killed_run_has_left_does_not_count_and_goes(tmp_path):
  (tmp_path / "a.txt").write_text("red\n" * 3)
  left = tmp_path / ".q.txt.partial"
  left.mkdir()
  table = counting.Table(left / "7", ignore_case=False, most_keys=1)
  table.add(corpus.Piece("red blue blue blue"))
  source, out = corpus.open_input(f"{tmp_path}/a.txt"), tmp_path / "q.txt"
  with (
    prepare.partial_directory(out),
    pytest.raises(errors.UserError, match="Another process"),
  ):
    making.make([source], out, making.Rule(3))
  left.mkdir(exist_ok=True)
  table.add(corpus.Piece("red blue blue blue"))
  assert making.make([source], out, making.Rule(3))["queries"] == 1
  assert _table(tmp_path / "q.tsv") == {"red": ["words", "3", ""]}
  assert not left.exists()


def test_capitals_are_gone_on_request(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("Red CAR red car Red Car\n")
  out = tmp_path / "q.txt"
  rule = making.Rule(min_count=3, min_pmi=-9, ignore_case=True)
  making.make([corpus.open_input(str(path))], out, rule)
  assert out.read_text() == "car\nred\nred car\n"


def test_what_ends_no_line_of_a_file_ends_no_text(tmp_path):
  table = counting.Table(tmp_path / "t", ignore_case=False, most_keys=99)
  table.add(corpus.Piece("red\u2028dog\x85a\x1cb\x0bc\r\nd e\rf\n\ng"))
  table.flush()
  assert table.totals == counting.Totals(texts=4, words=9, bigrams=5)
  assert ("red dog", 1) in counting.merged(tmp_path, "bigrams")


def test_a_line_that_is_no_utf8_is_counted_and_passed_over(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(b"red\nr\xe9d\nred\n")
  made = making.make(
    [corpus.open_input(str(path))], tmp_path / "q.txt", making.Rule(2)
  )
  assert made["bad"] == {"not_utf8": 1} and made["queries"] == 1


def test_captions_of_any_data_are_read(tmp_path):
  source = corpus.open_input("builtin:digits/test")
  rule = making.Rule(min_count=100, min_pmi=0)
  made = making.make([source], tmp_path / "q.txt", rule)
  assert made["texts"] >= len(source.source)
  assert "handwritten digit" in (tmp_path / "q.txt").read_text().splitlines()


MARKUP = """{{Infobox|name={{small|x}}|}}
'''York''' is a [[city (place)|city]] in [[England]].<ref name="a">[[x]]</ref>
== History ==
* [[File:a.jpg|thumb|A [[map]] of it]]One<br/>line &amp; more &lt; 5
<!-- no {{ --> {| class="t"
| cell {{a}}
|} see [https://x.org its page] or https://y.org/z now <ref name="b" />
<math>x^2</math>[[Category:Cities]][[de:York]] __TOC__ {{never closed
"""


def test_markup_is_stripped():
  assert [line.split() for line in wikipedia.plain(MARKUP).splitlines()] == [
    ["York", "is", "a", "city", "in", "England."],
    ["History"],
    ["One", "line", "&", "more", "<", "5"],
    ["see", "its", "page", "or", "now"],
    ["never", "closed"],
  ]


@pytest.mark.parametrize(
  ("unit", "begin", "end", "left"),
  [
    *(("[[", "", "", ""), ("{{", "", "", ""), ("<ref>", "", "", "")),
    *(("[//", "", "", "[//"), ("<!--", "", "", ""), ("<a", "", "", "<a")),
    *(("'", "", "", ""), ("{{", "", "}}" * 300_000, "")),
    *(("a", "[//", "", "a"), (" ", "[//a", "b", " "), ("a", "[//b ", "", "a")),
  ],
)
def test_hostile_markup_takes_linear_time(unit, begin, end, left):
  # What is quadratic takes hours of this, and does not end.
  number = 300_000
  found = wikipedia.plain(begin + unit * number + end)
  assert found == begin + left * number + end * bool(left)


BOMB = b'<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><m>&b;</m>'


@pytest.mark.parametrize(
  ("name", "data", "said"),
  [
    ("a.xml", BOMB, "document type"),
    ("a.xml", b"<mediawiki>" + b"<a>" * 99, "nested"),
    ("a.xml", _dump([("T", 0, "red", False)])[:-20], "or is damaged"),
    ("a.xml", b"<html></html>", "no page"),
    ("a.xml", b"", "or is damaged"),
    ("a.xml.bz2", bz2.compress(bytes(99))[:-9], "unpacked"),
    ("a.txt.gz", b"no gzip", "unpacked"),
    ("a.txt.gz", gzip.compress(b"red", mtime=0)[:-4], "unpacked"),
    ("a.parquet", b"PAR1 no", "Parquet"),
    ("a.txt", b"red", "min_count"),
    ("a.txt", b"", "min_count"),
  ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, data, said):
  path = tmp_path / name
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match=said):
    making.make(
      [corpus.open_input(str(path))], tmp_path / "q.txt", making.Rule()
    )
  assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
  "column",
  [
    pa.array(["red car"], pa.string_view()),
    pa.array(["red car"]).dictionary_encode(),
    pa.array([["red car"]], pa.list_(pa.string_view())),
    pa.array([["red car"]], pa.large_list(pa.large_string())),
    pa.array([["red car"]], pa.list_(pa.string(), 1)),
    pa.array([["red car"]], pa.list_view(pa.string())),
  ],
  ids=lambda column: str(column.type),
)
def test_texts_of_any_type_are_read(tmp_path, column):
  structs = pa.array([[{"text": "blue"}]])  # A list that has texts further in.
  table = pa.table({"text": column, "n": pa.array([3]), "deep": structs})
  pq.write_table(table, tmp_path / "a.parquet")
  inputs = [corpus.open_input(f"{tmp_path}/a.parquet")]
  making.make(inputs, tmp_path / "q.txt", making.Rule(1))
  assert queries.read(tmp_path / "q.txt").texts == ("car", "red")


@pytest.mark.parametrize("column", [None, "text"])
def test_columns_of_one_name_or_of_structures_are_no_texts(tmp_path, column):
  structs = pa.array([[{"text": "blue"}]])
  columns = [pa.array(["red"]), pa.array(["red"]), structs]
  table = pa.table(columns, names=["text", "text", "deep"])
  pq.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(errors.UserError, match="'text', 'text', 'deep'"):
    corpus.open_input(f"{tmp_path}/a.parquet", column=column)


def test_a_page_beyond_the_limit_is_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(wikipedia, "MAX_TEXT", 10)
  pages = [("Long", 0, "red " * 99, False), ("Short", 0, "red", False)]
  (tmp_path / "a.xml").write_bytes(_dump(pages))
  out = tmp_path / "q.txt"
  made = making.make(
    [corpus.open_input(f"{tmp_path}/a.xml")], out, making.Rule(1)
  )
  assert made["bad"] == {"too_large": 1}
  assert out.read_text() == "Long\nShort\nred\n"


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["{}/none.txt", "{}/q.txt"], "does not exist"),
    (["{}", "{}/q.txt"], "directory"),
    (["{}/a.txt", "{}/a.txt", "{}/q.txt"], "twice"),
    (["{}/a.txt", "{}/q.json"], "suffix"),
    (["{}/a.txt", "{}/q.tsv"], "suffix"),
    (["{}/a.txt", "{}/q.txt", "--min-count", "2"], "in 1 text of 1 word: no"),
    (["{}/a.txt", "{}/a.txt"], "overwritten"),
    (["{}/a.txt", "{}/no/q.txt"], "no directory"),
    (["wordnet:{}", "{}/q.txt"], "data.noun"),
    (["{}/pipe", "{}/q.txt"], "regular file"),
    (["titles:{}/pipe", "{}/q.txt"], "regular file"),
    (["{}/a.txt", "{}/q.txt", "--min-pmi", "nan"], "min_pmi"),
    (["titles:{}/a.txt", "{}/q.txt", "--min-views", "3"], "views"),
    (["https://x.org/a.txt", "{}/q.txt"], "download"),
    (["builtin:nothing", "{}/q.txt"], "built-in"),
    (["{}/c.parquet", "{}/q.txt", "--column", "x"], "column"),
  ],
)
def test_wrong_use_says_what_to_do(tmp_path, capsys, words, said):
  (tmp_path / "a.txt").write_text("red\n")
  os.mkfifo(tmp_path / "pipe")
  pq.write_table(pa.table({"t": ["a"], "u": ["b"]}), tmp_path / "c.parquet")
  with pytest.raises(SystemExit) as ended:
    cli.main(["data", "queries", *(w.format(tmp_path) for w in words)])
  assert ended.value.code == 1
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["犬、" * 40, "ab" * 80, "é" * 33 + "a" * 32])
def test_a_line_without_spaces_is_cut_between_characters(
  tmp_path, monkeypatch, text
):
  monkeypatch.setattr(corpus, "PIECE_BYTES", 16)
  path = tmp_path / "a.txt"
  path.write_text(f"{text}\nred dog\n", "utf-8")
  size = path.stat().st_size
  for stop in (1, 16, 32, 33, size):
    pieces = list(corpus.Lines(str(path)).read(0, stop))
    pieces += corpus.Lines(str(path)).read(stop, size) if stop < size else []
    assert not any(piece.bad for piece in pieces)
    read = "".join(piece.text for piece in pieces)
    assert read.split() == [text, "red", "dog"]


def test_the_header_of_a_list_of_titles_is_no_title(tmp_path):
  path = tmp_path / "titles"
  path.write_text("page_title\nA_b_(c)\npage_title_2\n")
  out = tmp_path / "q.txt"
  making.make([corpus.open_input(f"titles:{path}")], out, making.Rule())
  assert out.read_text() == "A b\npage title 2\n"


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["queries", "a.txt", "q", "--min-views", "70"], "goes with titles:FILE"),
    (["queries", "a.txt", "q", "--column", "x"], "goes with a file"),
    (["queries", "parquet:a.parquet", "q", "--column", "x"], "goes with a"),
    (["filter", "a", "o", "--min-side", "1", "--threads", "3"], "score-model"),
    (["filter", "a", "o", "--min-side", "1", "--batch-size", "3"], "score-mod"),
    (["dedupe", "a", "o", "--batch-size", "3"], "--by semantic"),
  ],
)
def test_a_flag_that_would_do_nothing_is_wrong_use(capsys, words, said):
  with pytest.raises(SystemExit) as ended:
    cli.main(["data", *words])
  assert ended.value.code == 2
  assert said in capsys.readouterr().err


def test_a_table_is_written_when_it_is_full_not_with_each_part(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(corpus, "_PART_BYTES", 8)
  (tmp_path / "a.txt").write_text("red dog\n" * 50)
  source = corpus.open_input(f"{tmp_path}/a.txt")
  seen = []
  monkeypatch.setattr(
    *(counting.Table, "flush"),
    lambda self, flush=counting.Table.flush: seen.append(flush(self)),
  )
  made = making.make([source], tmp_path / "q.txt", making.Rule(50, -9))
  assert len(source.parts()) == 50 and len(seen) == 1
  assert made["texts"] == 50 and made["queries"] == 3


def test_a_reference_to_no_character_is_no_error():
  found = wikipedia.plain(f"red&#{'1' * 5000};dog &#82;")
  assert found == "red\ufffddog R"


def test_the_list_that_is_read_is_the_one_that_was_made(tmp_path):
  """Spaces of any kind around a title are no part of it."""
  titles = [
    "Red car",
    "\u00a0Red car",
    "Red car\u2003",
    "\x1f",
    "Blue\u00a0car",
  ]
  (tmp_path / "titles").write_text("\n".join(titles), "utf-8")
  inputs = [corpus.open_input(f"titles:{tmp_path}/titles")]
  made = making.make(inputs, tmp_path / "q.txt", making.Rule())
  found = queries.read(tmp_path / "q.txt")
  assert found.texts == ("Blue\u00a0car", "Red car")
  assert (made["digest"], made["queries"]) == (found.digest, len(found.texts))
