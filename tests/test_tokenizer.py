import concurrent.futures
import hashlib
import html
import importlib.resources
import itertools
import json
import pathlib
import pickle
import unicodedata

import ftfy
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import by_path
from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.tokenizer import clip_bpe

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden" / "clip_bpe.json").read_text()
)
MERGES = (
  importlib.resources.files("clip_jax") / "assets" / tokenizer_lib.MERGES_FILE
)
seeded = hypothesis.settings(
  derandomize=True, deadline=None, max_examples=200, database=None
)


class Oracle:
  """The published algorithm, written as plainly and as slowly as it reads."""

  def __init__(self):
    rules = MERGES.read_text(encoding="utf-8").split("\n")[1:-1]
    self.merges = [tuple(rule.split(" ")) for rule in rules]
    self.rank = {pair: rank for rank, pair in enumerate(self.merges)}
    plain = [
      b
      for b in range(256)
      if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255
    ]
    odd = [b for b in range(256) if b not in plain]
    self.letter = {b: chr(b) for b in plain}
    self.letter |= {b: chr(256 + i) for i, b in enumerate(odd)}
    singles = [self.letter[b] for b in plain + odd]
    vocab = singles + [s + "</w>" for s in singles]
    vocab += [a + b for a, b in self.merges]
    self.id = {token: i for i, token in enumerate(vocab)}

  def clean(self, text):
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.split()).strip().lower()

  def words(self, text):
    """Cuts at white space and between letters, digits and anything else."""
    words, i = [], 0
    while i < len(text):
      # The long s is the one other letter that equals one of these in any case.
      after = text[i + 1 : i + 3].lower().replace("\u017f", "s")
      if text[i] == "'" and after[:1] in ("s", "t", "m", "d"):
        end = i + 2
      elif text[i] == "'" and after in ("re", "ve", "ll"):
        end = i + 3
      else:
        kind, end = self.kind(text[i]), i + 1
        while (
          kind in "LX"
          and text[end : end + 1]
          and (self.kind(text[end]) == kind)
        ):
          end += 1
      if self.kind(text[i]) != " ":
        words.append(text[i:end])
      i = end
    return words

  def kind(self, character):
    if character.isspace():
      return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "X"

  def word_ids(self, word):
    parts = [self.letter[b] for b in word.encode()]
    parts[-1] += "</w>"
    while True:
      ranks = [self.rank.get(pair) for pair in itertools.pairwise(parts)]
      known = [rank for rank in ranks if rank is not None]
      if not known:
        return [self.id[part] for part in parts]
      i = ranks.index(min(known))
      parts[i : i + 2] = [parts[i] + parts[i + 1]]

  def __call__(self, text, context_length=77):
    ids = [i for w in self.words(self.clean(text)) for i in self.word_ids(w)]
    ids = [49406, *ids[: context_length - 2], 49407]
    return ids + [0] * (context_length - len(ids))


@pytest.fixture(scope="module")
def oracle():
  return Oracle()


def cleaned(text):
  return " ".join(filter(None, tokenizer_lib.clean_clip(text)))


@pytest.mark.parametrize(
  "row", GOLDEN["rows"], ids=lambda r: ascii(r["text"])[:30]
)
def test_ids_equal_those_of_openais_tokenizer(row):
  expected = row["ids"] + [0] * (77 - len(row["ids"]))
  actual = tokenizer_lib.make_tokenizer()(row["text"])
  assert actual.dtype == np.int32
  assert actual.tolist() == [expected]


@pytest.mark.parametrize(
  "count", [4000, pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_ids_of_odd_captions_equal_openais(count):
  script = by_path.load("tools/golden/clip_bpe.py")
  golden = json.loads(script.GOLDEN.read_text())
  captions = script.captions()
  assert script.text_digest(captions) == golden["captions"]
  rows = tokenizer_lib.make_tokenizer()(captions[:count]).tolist()
  actual, expected = script.digests(rows), golden["rows"].split()
  differing = [
    i * script.CHUNK
    for i, (a, b) in enumerate(zip(actual, expected, strict=False))
    if a != b
  ]
  assert len(actual) == count // script.CHUNK
  assert differing == [], "captions from these on"


def test_the_merges_are_openais():
  # The first 48,894 of bpe_simple_vocab_16e6.txt and its version line.
  assert hashlib.sha256(MERGES.read_bytes()).hexdigest() == (
    "685491abbdad36159d094ecdc23bebc0dd53f8d1df35c4d74ef6036db2ba7572"
  )


# Pieces with a meaning for some step, joined at random; and any characters that
# this Python's Unicode knows (regex may know newer ones).
WORDS = ["a photo of ", "the", "Cats ", "'s", "'RE", "'\u017f", "_", "...", "½"]
MARKUP = ["&amp;", "&lt;", "&", "#", "x27;", "3", "12 ", "<", "\x1b[1m"]
REPAIRED = [
  "é",
  "e\u0301",
  "Ã©",
  "â€œ",
  "Ã ",
  "\ufb01",
  "\uff21",
  "\ud800",
  "\0",
]
SPACES = ["\n", "\r\n", "\t", "\x1c", "\x85", "\xa0", "\u2028"]
OTHERS = ["👍🏽", "漢字", "İ", "Σ"]
PIECES = st.sampled_from([*WORDS, *MARKUP, *REPAIRED, *SPACES, *OTHERS])
CAPTIONS = st.one_of(
  st.lists(PIECES, max_size=20).map("".join),
  st.text(st.characters(exclude_categories=["Cn"]), max_size=30),
)


@seeded
@hypothesis.given(text=CAPTIONS, context_length=st.sampled_from([3, 9, 77]))
def test_ids_equal_those_of_the_slow_oracle(oracle, text, context_length):
  tokenizer = tokenizer_lib.make_tokenizer(context_length=context_length)
  assert tokenizer(text)[0].tolist() == oracle(text, context_length)


@seeded
@hypothesis.given(texts=st.lists(st.text(max_size=50), max_size=3))
def test_every_row_is_start_text_end_and_zeros(texts):
  ids = tokenizer_lib.make_tokenizer(context_length=11)(texts)
  assert ids.shape == (len(texts), 11)
  for row in ids.tolist():
    end = row.index(49407)
    assert row[0] == 49406
    assert all(0 <= i < 49406 for i in row[1:end])
    assert not any(row[end + 1 :])


def test_a_long_text_keeps_the_end_token():
  ids = tokenizer_lib.make_tokenizer(context_length=5)(
    "one two three four five"
  )
  np.testing.assert_array_equal(ids[0, [0, -1]], [49406, 49407])
  assert tokenizer_lib.make_tokenizer().decode(ids[0]) == "one two three"


@pytest.mark.parametrize(
  "typed",
  ["<|endoftext|>", "<|startoftext|>", "<start_of_text>", "&lt;|endoftext|>"],
)
def test_a_typed_control_token_is_text(typed):
  tokenizer = tokenizer_lib.make_tokenizer()
  row = tokenizer(f"a {typed} b")[0].tolist()
  assert row.count(49406) == row.count(49407) == 1
  assert (
    tokenizer.decode(row).replace(" ", "") == "a" + html.unescape(typed) + "b"
  )


@pytest.mark.parametrize(
  "text",
  [
    "a" * 1_000_000,
    "thequickbrown" * 80_000,
    "é" * 300_000,
    " " * 1_000_000 + "cat",
    "\n" * 300_000 + "cat",
    "\u0300\u0316" * 150_000,
    "e" + "\u0f73" * 100_000,
    "\0" * 1_000_000,
    "\ud800" * 100_000,
    "&" + "amp;" * 100_000,
    "\x1b[" * 50_000 + "m" * 50_000,
    "Ã ".strip() * 100_000,
    "👨\u200d" * 100_000,
  ],
  ids=lambda text: ascii(text[:2]),
)
def test_hostile_captions_take_linear_time(text):
  # Each of them would take minutes to days in quadratic time.
  ids = tokenizer_lib.make_tokenizer()(text)[0]
  assert ids[0] == 49406
  assert 49407 in ids


@pytest.mark.parametrize(
  ("text", "same_as"),
  [
    ("&#" + "0" * 5000 + "65;b", "Ab"),
    ("&#" + "9" * 5000 + ";b", "\ufffdb"),
    ("&#x" + "0" * 5000 + "41;b", "Ab"),
  ],
)
def test_references_may_have_any_number_of_digits(text, same_as):
  tokenizer = tokenizer_lib.make_tokenizer()
  np.testing.assert_array_equal(tokenizer(text), tokenizer(same_as))


@pytest.mark.parametrize("depth", [1, 2, 5, 12])
@pytest.mark.parametrize("tail", ["", "\nb &lt;", " <", "\n<\n&amp;amp;amp;"])
def test_nested_references_are_cleaned_as_by_the_reference(oracle, depth, tail):
  text = "x &" + "amp;" * depth + "lt;i" + tail
  assert cleaned(text) == oracle.clean(text)


@seeded
@hypothesis.given(
  marks=st.lists(
    st.sampled_from("\u0300\u0301\u0316\u0338\u0344\u0345\u0f73\u0903\u20d0"),
    min_size=120,
    max_size=200,
  ),
  before=st.sampled_from(["", "e", "ǖ", "="]),
)
def test_long_runs_of_marks_are_composed_as_by_unicode(oracle, marks, before):
  text = before + "".join(marks) + "a"
  assert cleaned(text) == oracle.clean(text)


def test_lines_longer_than_a_segment_stay_whole(oracle):
  # ftfy repairs a million characters at a time; the word across must not break.
  text = "é" + " " * 999_996 + "photograph\nnext"
  assert cleaned(text) == oracle.clean(text) == "é photograph next"


def test_decode_returns_the_text_up_to_the_end_token():
  tokenizer = tokenizer_lib.make_tokenizer()
  assert tokenizer.decode(tokenizer("A Café, 漢 42")[0]) == "a café , 漢 4 2"
  assert tokenizer.decode([320, 49407, 320]) == "a"
  with pytest.raises(errors.UserError, match="49408"):
    tokenizer.decode([49408])


def test_one_string_is_one_row_and_none_are_none():
  tokenizer = tokenizer_lib.make_tokenizer()
  assert tokenizer("a cat").shape == (1, 77)
  assert tokenizer([]).shape == (0, 77)
  assert tokenizer.vocab_size == 49408


def test_a_pickle_is_small_and_equal():
  tokenizer = tokenizer_lib.make_tokenizer(context_length=13)
  tokenizer("builds the encoder")
  data = pickle.dumps(tokenizer)
  assert len(data) < 500
  assert pickle.loads(data) == tokenizer
  assert pickle.loads(data).fingerprint == tokenizer.fingerprint


def test_the_fingerprint_tells_settings_apart():
  fingerprints = {
    tokenizer_lib.make_tokenizer(context_length=n).fingerprint for n in (13, 77)
  }
  assert len(fingerprints) == 2
  assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


def test_threads_share_one_encoder():
  tokenizer = tokenizer_lib.make_tokenizer()
  texts = [row["text"] for row in GOLDEN["rows"]]
  clip_bpe._engine.cache_clear()  # So that they race to build it.
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    results = list(pool.map(lambda _: tokenizer(texts), range(4)))
  for result in results:
    np.testing.assert_array_equal(result, tokenizer(texts))


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match="clip_bpe"):
    tokenizer_lib.make_tokenizer("clip_bqe")
  with pytest.raises(errors.UserError, match="Did you mean 'hf_clip'"):
    tokenizer_lib.make_tokenizer(cleaning="hf_klip")
  with pytest.raises(errors.UserError, match=r"Known: .*pad_id"):
    tokenizer_lib.make_tokenizer(padding="left")
  with pytest.raises(errors.UserError, match="0 or more"):
    tokenizer_lib.make_tokenizer(pad_id=-1)
  with pytest.raises(
    errors.UserError, match="context_length='77' must be a wh"
  ):
    tokenizer_lib.make_tokenizer(context_length="77")
  with pytest.raises(errors.UserError, match="pad_id=True must be an id"):
    tokenizer_lib.make_tokenizer(pad_id=True)
  with pytest.raises(errors.UserError, match="not clip_bpe's 49407"):
    tokenizer_lib.make_tokenizer(end_id=2)
  with pytest.raises(errors.UserError, match="has no file"):
    tokenizer_lib.make_tokenizer(file="vocab.json")
  with pytest.raises(errors.UserError, match="left out for the others"):
    tokenizer_lib.make_tokenizer(lowercase=True)
  with pytest.raises(errors.UserError, match="at least 3"):
    tokenizer_lib.make_tokenizer(context_length=2)
  with pytest.raises(errors.UserError, match="got bytes"):
    tokenizer_lib.make_tokenizer()([b"a cat"])


@pytest.mark.parametrize("value", [None, [None], {}, 5, "openay"])
def test_a_cleaning_that_is_none_is_refused(value):
  with pytest.raises(errors.UserError, match="Unknown cleaning"):
    tokenizer_lib.make_tokenizer(cleaning=value)
