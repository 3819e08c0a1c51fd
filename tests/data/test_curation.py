"""Curation: each decision equals that of a slow loop written from the paper."""

import collections
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from scipy import stats

import made_data
import memory_source
from clip_jax import cli, errors, preprocess
from clip_jax.data import prepare, sources
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  balancing,
  curate,
  language,
  matching,
  queries,
)

WORDS = (
  *("dog", "Dog", "cat", "hot dog", "new york", "St. Louis", "U.S.", "a"),
  *("fish & chips", "what?", "Ωμέγα", "страна", "犬", "שלום", "émigré", "12.5"),
)
PIECES = (
  *("dog", "Dog", "hot", "cat", "new", "york", "St.", "Louis", "U.S.", "a"),
  *(
    "dogs",
    ",",
    "?",
    "what",
    "Ωμέγα",
    "страна",
    "犬",
    "שלום",
    "émigré",
    "fish",
  ),
  *("&", "chips", "12.5", "\t", "\n", " ", "`", "york.", "what?", "fish &"),
)
BITS = 2**64 - 1


def _naive(texts, entries):
  """MetaCLIP's matching, as its paper describes it: substrings in a loop."""

  def spaced(text):
    for mark in ",.;:?!`":
      text = text.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
      text = text.replace(blank, " ")
    return text

  return [
    number
    for number, entry in enumerate(entries)
    if any(f" {spaced(entry).strip(' ')} " in f" {spaced(t)} " for t in texts)
  ]


def _texts(rng, number):
  return [
    rng.choice(["", " "]) + " ".join(rng.choice(PIECES, rng.integers(1, 9)))
    for _ in range(number)
  ]


def test_matches_are_those_of_substrings_between_spaces():
  rng = np.random.default_rng(0)
  matcher = matching.Matcher(WORDS)
  found = collections.Counter()
  for text in _texts(rng, 3000):
    numbers = matcher.find([text, "nothing"])
    assert numbers == _naive([text, "nothing"], WORDS), text
    found.update(numbers)
  assert len(found) == len(WORDS)  # None of the words was never there.


def test_capitals_make_no_difference_on_request():
  assert matching.Matcher(["dog"]).find(["A Dog."]) == []
  found = matching.Matcher(["dog", "DOG"], ignore_case=True).find(["A Dog."])
  assert found == [0, 1]


def _mix(x):
  x = (x + 0x9E3779B97F4A7C15) & BITS
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
  return x ^ (x >> 31)


def _kept_by_hand(names, texts, entries, limit, seed):
  """Which pairs stay, by a loop over pairs and queries in Python's numbers."""
  found = [_naive([text], entries) for text in texts]
  counts = collections.Counter(n for numbers in found for n in numbers)
  stays = []
  for name, text, numbers in zip(names, texts, found, strict=True):
    pair = balancing.hash_text(f"{name}\0{text}", seed=seed)
    draws = [
      (_mix(_mix(pair) ^ balancing.hash_text(entries[n])) >> 11) / 2**53
      for n in numbers
    ]
    chances = [min(1, limit / counts[n]) for n in numbers]
    if any(d < p for d, p in zip(draws, chances, strict=True)):
      stays.append(name)
  return stays, counts


def _source(names, texts, image, bad=()):
  records = [
    record_lib.Record(image, (text,), name)
    for name, text in zip(names, texts, strict=True)
  ]
  return memory_source.MemorySource(
    records, dict.fromkeys(bad, "missing_image")
  )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  from PIL import Image

  path = tmp_path_factory.mktemp("image") / "a.png"
  Image.new("RGB", (3, 2)).save(path)
  rng = np.random.default_rng(1)
  texts = _texts(rng, 1300)
  names = [f"{i:05d}" for i in range(len(texts))]
  return names, texts, path.read_bytes()


@pytest.mark.parametrize("seed", [0, 5, -1])
def test_the_pairs_that_stay_are_those_of_a_loop(seed, pairs, tmp_path):
  names, texts, image = pairs
  rule = curate.Rule(queries.Queries(WORDS), max_per_query=30, seed=seed)
  found = curate.curate(_source(names, texts, image), tmp_path / "out", rule)
  want, counts = _kept_by_hand(names, texts, WORDS, 30, seed)
  assert made_data.keys(tmp_path / "out") == want
  assert found["kept"] == len(want)
  rows = (tmp_path / "out" / "queries.tsv").read_text().splitlines()[1:]
  table = {query: int(n) for query, n, _ in (row.split("\t") for row in rows)}
  assert table == {word: counts[i] for i, word in enumerate(WORDS)}
  assert found["top"][0]["before"] == max(counts.values())


def test_order_and_processes_change_nothing(pairs, tmp_path):
  names, texts, image = pairs
  rule = curate.Rule(queries.Queries(WORDS), max_per_query=25)
  prepare.prepare(_source(names, texts, image), tmp_path / "pairs")
  # Of files: another process cannot import what a test defines.
  source = sources.open_source(f"arrayrecord:{tmp_path / 'pairs'}")
  for workers in (1, 2):
    out = tmp_path / f"{workers}"
    curate.curate(source, out, rule, workers=workers)
  assert made_data.content(tmp_path / "1") == made_data.content(tmp_path / "2")
  order = np.random.default_rng(2).permutation(len(names))
  shuffled = _source(
    [names[i] for i in order], [texts[i] for i in order], image
  )
  turned = curate.Rule(queries.Queries(WORDS[::-1]), max_per_query=25)
  curate.curate(shuffled, tmp_path / "shuffled", turned)
  assert sorted(made_data.keys(tmp_path / "shuffled")) == made_data.keys(
    tmp_path / "1"
  )


def _parquet(path, rows, **options):
  """Writes pairs of image and captions as a table without names."""
  images, texts = zip(*rows, strict=True)
  table = pa.table({"image": images, "caption": texts})
  path.parent.mkdir(exist_ok=True)
  pq.write_table(table, path, **options)


def test_neither_rows_nor_files_of_a_table_decide(tmp_path, png):
  rng = np.random.default_rng(5)
  rows = [
    (png(i), [f"a dog {i}", f"the cat {i % 3}", "a"][: 1 + i % 3])
    for i in range(90)
  ]
  _parquet(tmp_path / "one" / "a.parquet", rows, row_group_size=20)
  turned = [(image, texts[::-1]) for image, texts in rows]
  turned = [turned[i] for i in rng.permutation(len(rows))]
  for name, part in (("b", turned[:37]), ("c", turned[37:])):
    _parquet(tmp_path / "two" / f"{name}.parquet", part)
  rule = curate.Rule(queries.Queries(("dog", "cat", "a")), max_per_query=10)
  found = {}
  for name in ("one", "two"):
    source = sources.open_source(f"parquet:{tmp_path / name}")
    curate.curate(source, tmp_path / f"out-{name}", rule)
    kept = sources.open_source(f"arrayrecord:{tmp_path / f'out-{name}'}")
    found[name] = {
      (kept[i].image, *sorted(kept[i].texts)) for i in range(len(kept))
    }
  assert found["one"] == found["two"]
  assert 10 < len(found["one"]) < 60


def test_the_order_of_the_rows_of_an_image_decides_nothing(tmp_path, png):
  rows = [f"{i % 40}.png,a dog {i}" for i in range(80)]
  for i in range(40):
    (tmp_path / f"{i}.png").write_bytes(png(i))
  rule = curate.Rule(queries.Queries(("dog",)), max_per_query=15)
  kept = []
  for name, some in (("one", rows), ("two", rows[::-1])):
    table = tmp_path / f"{name}.csv"
    table.write_text("\n".join(["image,caption", *some]))
    source = sources.open_source(f"csv:{table}")
    curate.curate(source, tmp_path / name, rule)
    kept.append(sorted(made_data.keys(tmp_path / name)))
  assert kept[0] == kept[1]
  assert 5 < len(kept[0]) < 30


def test_an_interrupted_run_goes_on_and_so_does_a_failed_one(pairs, tmp_path):
  names, texts, image = pairs
  source = _source(names, texts, image)
  rule = curate.Rule(queries.Queries(WORDS), max_per_query=25)
  curate.curate(source, tmp_path / "whole", rule)

  def interrupt(done):
    if done > 300:
      raise KeyboardInterrupt

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      curate.curate(source, tmp_path / "out", rule, on_record=interrupt)
  assert not (tmp_path / "out").exists()
  done = []
  curate.curate(source, tmp_path / "out", rule, on_record=done.append)
  assert done[0] > 300
  assert made_data.content(tmp_path / "out") == made_data.content(
    tmp_path / "whole"
  )
  rule = curate.Rule(queries.Queries(("no such word",)), max_per_query=25)
  with pytest.raises(errors.UserError, match="None of the"):
    curate.curate(source, tmp_path / "failed", rule)
  hidden = ".failed.partial"
  assert sorted(p.name for p in tmp_path.iterdir()) == [hidden, "out", "whole"]
  rule = curate.Rule(queries.Queries(WORDS), size=10**6)
  for _ in range(2):
    done = []
    with pytest.raises(errors.UserError, match=f"same OUT goes.*{hidden}'"):
      curate.curate(source, tmp_path / "failed", rule, on_record=done.append)
  assert not done  # Nothing is read again for another size.
  rule = curate.Rule(queries.Queries(WORDS), size=50)
  curate.curate(source, tmp_path / "failed", rule, on_record=done.append)
  assert not done
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    *("failed", "out", "whole"),
  ]


def test_each_query_keeps_its_share_and_rare_ones_all():
  rng = np.random.default_rng(3)
  number = 6000
  rows = [[0] + [1] * (i % 3 == 0) + [2] * (i < 40) for i in range(number)]
  lengths = list(map(len, rows))
  matches = balancing.Matches(
    rng.integers(0, 2**63, number).astype(np.uint64),
    np.concatenate([[0], np.cumsum(lengths)]),
    np.concatenate(rows).astype(np.uint32),
  )
  counts = matches.counts(3)
  assert counts.tolist() == [number, 2000, 40]
  threshold = 300
  kept = []
  for seed in range(20):
    hashes = np.array(
      [balancing.hash_text(f"q{i}") for i in range(3)], np.uint64
    )
    seeded = balancing.Matches(
      np.array(
        [balancing.hash_text(str(p), seed=seed) for p in matches.pairs],
        np.uint64,
      ),
      matches.starts,
      matches.queries,
    )
    stays = balancing.kept(seeded, hashes, threshold)
    assert stays[:40].all()
    kept.append(stays)
  # Pairs that have the first query alone are kept by its own draws only.
  alone = np.array([row == [0] for row in rows])
  low, high = stats.binom.interval(0.999, 20 * alone.sum(), 300 / number)
  assert low <= sum(stays[alone].sum() for stays in kept) <= high
  both = np.array([row == [0, 1] for row in rows])
  share = 1 - (1 - 300 / number) * (1 - 300 / 2000)
  low, high = stats.binom.interval(0.999, 20 * both.sum(), share)
  assert low <= sum(stays[both].sum() for stays in kept) <= high
  expected = balancing.expected_size(matches, counts, threshold)
  assert abs(np.mean([s.sum() for s in kept]) - expected) < 30
  # The limit of a size is found from the mean, not from one draw.
  (limit,) = balancing.limits_of_size(
    matches,
    counts,
    1000,
    limits=lambda limit: [limit],
    each=lambda found: found[0],
    highest=float(counts.max()),
  )
  assert balancing.expected_size(matches, counts, limit) == pytest.approx(1000)


@pytest.mark.parametrize(
  ("share", "threshold"), [(0.01, 1), (0.03, 2), (0.07, 4), (0.071, 93)]
)
def test_a_tail_has_exactly_the_share_that_is_asked_for(share, threshold):
  assert 0.07 * 100 > 7  # As floats have it.
  counts = np.array([93, 1, 0, 4, 2])
  assert balancing.threshold_of_tail(counts, share) == threshold


def test_the_entropy_of_one_query_has_no_sign():
  assert str(balancing.entropy(np.array([0, 6]))) == "0.0"
  assert balancing.entropy(np.array([1, 0, 1, 2])) == 1.5


def test_every_pair_is_accounted_for(pairs, tmp_path):
  names, texts, image = pairs
  source = _source(names, texts, image, bad=set(names[::7]))
  rule = curate.Rule(queries.Queries(("cat", "U.S.")), size=80)
  found = curate.curate(source, tmp_path / "out", rule)
  assert (
    found["kept"] + sum(found["dropped"].values()) == found["pairs"] == 1300
  )
  assert found["dropped"]["missing_image"] == len(names[::7])
  assert found["expected"] == pytest.approx(80)
  assert not set(made_data.keys(tmp_path / "out")) & set(names[::7])
  # Asked for again, nothing is done; asked for otherwise, nothing is lost.
  again = curate.curate(source, tmp_path / "out", rule)
  assert again == found | {"written": False}
  other = curate.Rule(rule.queries, size=81)
  with pytest.raises(errors.UserError, match="nothing is overwritten"):
    curate.curate(source, tmp_path / "out", other)


def test_where_none_stays_every_pair_is_accounted_for(pairs, tmp_path):
  names, texts, image = pairs
  source = _source(names, texts, image, bad=set(names[::7]))
  rule = curate.Rule(queries.Queries(("cat",)), max_per_query=1e-6)
  with pytest.raises(errors.UserError, match="ask for more") as refused:
    curate.curate(source, tmp_path / "out", rule)
  said = refused.value.payload
  assert sum(said["dropped"].values()) == said["pairs"] == 1300
  assert said["dropped"]["balanced_away"] == said["matched"] > 0
  assert said["kept"] == 0


@pytest.mark.parametrize("ignore_case", [False, True])
def test_capitals_are_named_only_where_they_count(ignore_case, tmp_path, pairs):
  rule = curate.Rule(
    queries.Queries(("zebra",)), max_per_query=1, ignore_case=ignore_case
  )
  with pytest.raises(errors.UserError, match="first of 1 query is") as refused:
    curate.curate(_source(*pairs), tmp_path / "out", rule)
  assert ("Capitals" in str(refused.value)) != ignore_case


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("q.txt", b" \n\n", "holds no query"),
    ("q.txt", b"dog\ncaf\xe9\n", "Line 2 .* is not UTF-8"),
    ("q.txt", b"x" * 1001, "a query of 1001 characters"),
    ("q.json", b'{"dog": 1}', "must hold a JSON list"),
    ("q.json", b'["dog", 3]', "Entry 2 .* is no text: 3"),
    ("q.json", b'["\\ud800"]', "Entry 1 .* is no text"),
  ],
)
def test_a_list_that_is_none_is_refused(name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    queries.read(tmp_path / name)


def test_lists_are_text_or_json(tmp_path):
  (tmp_path / "q.txt").write_bytes("\ufeffdog\r\n hot dog \ndog\n".encode())
  (tmp_path / "q.json").write_text('["hot dog", "dog"]')
  text, listed = (
    queries.read(tmp_path / f"q.{end}") for end in ("txt", "json")
  )
  assert (text.texts, text.repeated) == (("dog", "hot dog"), 1)
  assert text.digest == listed.digest


def test_a_query_stands_on_one_line(tmp_path, pairs):
  broken = ["hot\ndog", "new\tyork", "dog\r", "hot dog"]
  (tmp_path / "q.json").write_text(json.dumps(broken))
  found = queries.read(tmp_path / "q.json")
  assert found.texts == ("hot dog", "new york", "dog")
  assert found.repeated == 1
  names, texts, image = pairs
  # A list that was not read from a file, too.
  rule = curate.Rule(queries.Queries(tuple(broken)), max_per_query=30)
  curate.curate(_source(names, texts, image), tmp_path / "out", rule)
  head, *rows = (tmp_path / "out" / "queries.tsv").read_text().splitlines()
  assert head == "query\tbefore\tafter"
  assert {row.count("\t") for row in rows} == {2}


def test_the_command_line_curates(tmp_path, capsys, png):
  for i in range(51):
    (tmp_path / f"{i}.png").write_bytes(png(0))
  rows = [f"{i}.png,a dog" for i in range(50)]
  rows += ["50.png,a fish", "50.png,an odd fish", "missing.png,x"]
  table = tmp_path / "pairs.csv"
  table.write_text("\n".join(["image,caption", *rows]))
  (tmp_path / "q.txt").write_text("dog\nfish\ncow\n")
  command = ["data", "curate", f"csv:{table}", str(tmp_path / "out")]
  command += ["--queries", str(tmp_path / "q.txt")]
  assert cli.run([*command, "--max-per-query", "5", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["pairs"], found["matched"], found["queries"]) == (52, 51, 3)
  assert found["threshold"] == 5
  assert 1 < found["kept"] < 20
  assert found["dropped"]["missing_file"] == 1
  keys = made_data.keys(tmp_path / "out")
  assert len(keys) == found["kept"]
  # Of an image with several captions all stay.
  last = sources.open_source(f"arrayrecord:{tmp_path / 'out'}")[len(keys) - 1]
  assert last.texts == ("a fish", "an odd fish")
  assert cli.run([*command, "--max-per-query", "5"]) == 0
  assert "Already there: " in capsys.readouterr().out
  with pytest.raises(SystemExit, match="2"):
    cli.run([*command, "--max-per-query", "5", "--size", "9"])
  (tmp_path / "q.txt").write_text("Dog\n")
  command[3] = str(tmp_path / "other")
  assert cli.run([*command, "--size", "9", "--json"]) == 1
  said = capsys.readouterr()
  assert "pairs stays; dropped: 1 missing_file, 51 no_query." in said.err
  dropped = {"missing_file": 1, "no_query": 51}
  account = {"pairs": 52, "matched": 0, "kept": 0, "dropped": dropped}
  assert json.loads(said.out) == account
  assert cli.run([*command, "--size", "51", "--ignore-case"]) == 1
  assert "only 50 match" in capsys.readouterr().err
  assert not (tmp_path / "other").exists()


def test_queries_that_differ_in_capitals_are_one_where_these_do_not_count():
  listed = queries.Queries(("Dog", "cat", "dog"), repeated=1)
  rule = curate.Rule(listed, size=1, ignore_case=True)
  assert rule.lists == (queries.Queries(("Dog", "cat"), repeated=2),)
  assert curate.Rule(listed, size=1).lists == (listed,)
  with pytest.raises(errors.UserError, match="63 bits"):
    curate.Rule(listed, size=1, seed=10**70)


# By language: its name, queries, pieces of its captions.
LANGUAGES = {
  "en": (
    ("the dog", "cat", "house of cards"),
    ("the dog", "a cat", "and", "is in the garden", "a house of cards"),
  ),
  "ru": (
    ("собака", "большой дом"),
    ("собака", "кошка", "стоит", "где река", "большой дом", "собаками"),
  ),
  "zh": (
    ("猫", "黑猫", "iPhone手机", "公园"),
    (
      "黑猫",
      "在",
      "公园里",
      "睡觉",
      "一只猫",
      "我的iPhone手机",
      "。",
      "很好看",
    ),
  ),
  "ja": (
    ("犬", "東京タワー"),
    ("犬が", "東京タワーの", "前で", "走っている", "きれいな"),
  ),
  "th": (("แมว", "ทะเล"), ("แมว", "นอนอยู่", "ริมทะเล", "สวยงาม", "วันนี้")),
  "ko": (
    ("고양이", "서울 타워"),
    ("고양이", "고양이가", "서울 타워", "앞에", "앉아 있다"),
  ),
}
UNSPACED = {"zh", "ja", "th"}


def _worldwide(number):
  """Captions of several languages, each with the language that it is in."""
  rng = np.random.default_rng(1)
  found = []
  for _ in range(number):
    code = rng.choice(list(LANGUAGES))
    pieces = rng.choice(LANGUAGES[code][1], rng.integers(3, 7))
    found.append((str(code), ("" if code in UNSPACED else " ").join(pieces)))
  return found


def _is_in(query, text):
  """MetaCLIP 2's rule: spaces go around the ends that are written with them."""
  row = [re.escape(query)]
  if query[0].isascii() or ord(query[0]) < 0x0E00 or "가" <= query[0] <= "힣":
    row.insert(0, r"(?<![^\s.])(?<![A-Za-z])")
  if (
    query[-1].isascii() or ord(query[-1]) < 0x0E00 or "가" <= query[-1] <= "힣"
  ):
    row.append(r"(?![^\s.])")
  return re.search("".join(row), text) is not None


def test_each_language_has_its_list_and_its_tail(tmp_path, png, monkeypatch):
  spoken = _worldwide(1500)
  monkeypatch.setattr(language, "of", dict(map(reversed, spoken)).__getitem__)
  names = [f"{i}" for i in range(len(spoken))]
  source = _source(names, [text for _, text in spoken], png(0))
  lists = {
    code: queries.Queries(entries) for code, (entries, _) in LANGUAGES.items()
  }
  matched = collections.Counter()
  pairs_of = collections.Counter()
  for code, text in spoken:
    here = [
      q for q in LANGUAGES[code][0] if _is_in(q, text.replace("我的", " "))
    ]
    matched.update((code, query) for query in here)
    pairs_of[code] += bool(here)
  rule = curate.Rule(lists, max_per_query=40, seed=3)
  found = curate.curate(source, tmp_path / "out", rule)
  rows = (tmp_path / "out" / "queries.tsv").read_text().splitlines()
  assert rows[0] == "query\tbefore\tafter\tlanguage"
  told = {
    (r[3], r[0]): int(r[1]) for r in (row.split("\t") for row in rows[1:])
  }
  assert {k: n for k, n in told.items() if n} == dict(matched)
  by_code = {each["language"]: each for each in found["languages"]}
  assert {c: each["matched"] for c, each in by_code.items()} == dict(pairs_of)
  assert by_code["en"]["threshold"] == found["threshold"] == 40
  tail = by_code["en"]["tail_share"]
  for code, (entries, _) in LANGUAGES.items():
    counts = sorted(matched[code, query] for query in entries)
    below = np.cumsum(counts) / sum(counts)
    if code != "en":
      assert by_code[code]["threshold"] == counts[np.argmax(below >= tail)]
  assert sum(each["kept"] for each in by_code.values()) == found["kept"]


def test_where_no_language_fits_it_is_said_that_languages_count(
  tmp_path, png, monkeypatch
):
  monkeypatch.setattr(language, "check", lambda codes: None)
  monkeypatch.setattr(language, "of", lambda text: "fr")
  rule = curate.Rule({"en": queries.Queries(("cat",))}, max_per_query=1)
  with pytest.raises(errors.UserError, match="language that it seems"):
    curate.curate(_source(["0"], ["a cat"], png(0)), tmp_path / "o", rule)


def test_languages_of_few_queries_keep_the_size_that_is_asked_for(
  tmp_path, png, monkeypatch
):
  """The limits of other languages move in steps, from query to query."""
  spoken = _worldwide(900)
  monkeypatch.setattr(language, "of", dict(map(reversed, spoken)).__getitem__)
  names = [f"{i}" for i in range(len(spoken))]
  source = _source(names, [text for _, text in spoken], png(0))
  lists = {c: queries.Queries(found) for c, (found, _) in LANGUAGES.items()}

  def made(size):
    rule = curate.Rule(lists, size=size)
    return curate.curate(source, tmp_path / f"{size}", rule)

  with pytest.raises(
    errors.UserError, match=r"the others keep some (\d+)"
  ) as it:
    made(10)
  least = int(re.findall(r"some (\d+)", str(it.value))[0])
  shares, before = [], 0.0
  for size in range(least + 3, 701, 25):
    found = made(size)
    assert found["expected"] == pytest.approx(size)
    assert found["threshold"] >= before
    before = found["threshold"]
    shares.append([each["threshold"] for each in found["languages"]])
  assert (np.diff(shares, axis=0) >= 0).all()
  assert found["matched"] > 701


def test_real_languages_are_told_apart(png):
  examine = curate._Examine(
    curate.Rule(
      {
        "en": queries.Queries(("dog", "cat")),
        "de": queries.Queries(("Hund", "Katze")),
        "ja": queries.Queries(("犬",)),
      },
      tail_share=0.06,
    ),
    preprocess.DEFAULT_LIMITS,
  )
  texts = (
    "The dog and the cat are playing in the garden behind our house",
    "Der Hund und die Katze spielen im Garten hinter unserem Haus",
    "庭で遊んでいる犬です",
  )
  for text, numbers in zip(texts, ([0, 1], [2, 3], [4]), strict=True):
    record = sources.Record(image=png(0), texts=(text,), key="x")
    assert examine(record)["queries"] == numbers


@pytest.mark.parametrize(
  ("flags", "code", "message"),
  [
    (
      ["--queries", "en=q.txt", "--queries", "q.txt"],
      1,
      "each is LANGUAGE=FILE",
    ),
    (["--queries", "en=q.txt", "--queries", "en=q.txt"], 1, "after another of"),
    (["--queries", "zz=q.txt"], 1, "language 'zz'"),
    (["--queries", "de=q.txt"], 1, "The only pair does not stay"),
  ],
)
def test_lists_of_languages_that_are_wrong(
  flags, code, message, tmp_path, monkeypatch, capsys, png
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "0.png").write_bytes(png(0))
  (tmp_path / "p.csv").write_text("image,caption\n0.png,a dog in the park")
  (tmp_path / "q.txt").write_text("Hund\n")
  command = ["data", "curate", "csv:p.csv", "out", "--tail-share", "0.06"]
  assert cli.run([*command, *flags]) == code
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
