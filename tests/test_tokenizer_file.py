"""Tokenizers that come with a model, beside the libraries that define them."""

import concurrent.futures
import html
import io
import json
import pickle
import random
import re
import string
import subprocess
import sys
import threading
import time
import warnings

import ftfy
import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers

import by_path
from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import tokenizer_files
from clip_jax.tokenizer import tokenizing

LENGTH = 24
UNIGRAM, BPE, VOCAB = "spiece.model", "bpe.model", "vocab.txt"
JSON = "tokenizer.json"


@pytest.fixture(scope="module")
def captions():
  return by_path.load("tools/golden/clip_bpe.py").captions()[:2500]


def train_sentencepiece(lines, **options):
  file = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=file,
    minloglevel=2,
    num_threads=1,
    **options,
  )
  return file.getvalue()


@pytest.fixture(scope="module")
def directory(captions, tmp_path_factory):
  """One of each kind, with the control ids of SigLIP, SigLIP 2, T5 and BERT."""
  path = tmp_path_factory.mktemp("tokenizers")
  ascii_words = (
    " ".join(word for word in caption.split() if word.isascii())
    for caption in captions
  )
  lines = [line for line in ascii_words if line]
  lines += ["naïve café straße ひらがな 漢字"] * 20
  (path / UNIGRAM).write_bytes(
    train_sentencepiece(
      lines, vocab_size=300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )
  )
  (path / BPE).write_bytes(
    train_sentencepiece(
      lines,
      vocab_size=520,
      model_type="bpe",
      byte_fallback=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
      **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
    )
  )
  trainer = tokenizers.BertWordPieceTokenizer(lowercase=True)
  trainer.train_from_iterator(lines, vocab_size=600, show_progress=False)
  vocabulary = trainer.get_vocab()
  tokens = sorted(vocabulary, key=vocabulary.get)
  (path / VOCAB).write_text("\n".join(tokens) + "\n", "utf-8")
  save_json(path, "gemma", BPE, "tokenizer.model", "GemmaTokenizer")
  save_json(path, "t5", UNIGRAM, UNIGRAM, "T5Tokenizer")
  return path


# What the configuration files of published checkpoints say.
CONFIGS = {
  "GemmaTokenizer": {
    "add_bos_token": False,
    "add_eos_token": True,
    **{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "unk_token": "<unk>",
  },
  "T5Tokenizer": {"extra_ids": 0},
}


def save_json(path, name, model, as_name, class_name):
  """Writes transformers' `tokenizer.json` of a `.model`."""
  source = path / f"{name}_source"
  source.mkdir()
  (source / as_name).write_bytes((path / model).read_bytes())
  (source / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": class_name, **CONFIGS[class_name]})
  )
  cls = getattr(transformers, class_name)
  options = {"extra_ids": 0} if class_name == "T5Tokenizer" else {}
  cls.from_pretrained(str(source), **options).save_pretrained(str(path / name))


FIELDS = {
  "siglip": {
    "kind": "sentencepiece",
    "cleaning": "hf_siglip",
    "pad_id": 1,
    "start_id": None,
    "end_id": 1,
    "file": UNIGRAM,
  },
  "siglip2": {
    "kind": "hf_json",
    "cleaning": "hf_lower",
    "pad_id": 0,
    "start_id": None,
    "end_id": 1,
    "file": JSON,
  },
  "t5": {
    "kind": "hf_json",
    "cleaning": "none",
    "pad_id": 0,
    "start_id": None,
    "end_id": 1,
    "file": JSON,
  },
  "bert": {
    "kind": "wordpiece",
    "cleaning": "none",
    "pad_id": 0,
    "start_id": 2,
    "end_id": 3,
    "file": VOCAB,
    "lowercase": True,
  },
}
FOLDERS = {"siglip2": "gemma", "t5": "t5"}
FAMILIES = tuple(FIELDS)


def make(family, directory, **changes):
  changes = {"context_length": LENGTH, **changes}
  return tokenizer_lib.make_tokenizer(
    directory=directory / FOLDERS.get(family, "."),
    **{**FIELDS[family], **changes},
  )


def huggingface(family, directory):
  if family == "siglip":
    return transformers.SiglipTokenizer(str(directory / UNIGRAM))
  if family == "siglip2":
    return transformers.Siglip2Tokenizer.from_pretrained(
      str(directory / "gemma"), padding_side="right"
    )
  if family == "t5":
    return transformers.T5Tokenizer.from_pretrained(
      str(directory / "t5"), extra_ids=0
    )
  return transformers.BertTokenizer(vocab=read_vocabulary(directory))


def read_vocabulary(directory):
  tokens = (directory / VOCAB).read_text("utf-8").splitlines()
  return {token: i for i, token in enumerate(tokens)}


def huggingface_rows(tokenizer, texts, length=LENGTH):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return tokenizer(
      texts, padding="max_length", truncation=True, max_length=length
    )["input_ids"]


def assert_same(actual, expected, texts):
  for row, other, text in zip(actual.tolist(), expected, texts, strict=True):
    assert row == list(other), ascii(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_those_of_transformers(family, directory, captions):
  expected = huggingface_rows(huggingface(family, directory), captions)
  actual = make(family, directory)(captions)
  assert actual.dtype == np.int32
  assert_same(actual, expected, captions)
  # Some rows are full, and some are not.
  assert (actual[:, -1] == FIELDS[family]["pad_id"]).sum() > 100


def test_cased_wordpieces_equal_those_of_transformers(directory, captions):
  other = transformers.BertTokenizer(
    vocab=read_vocabulary(directory), do_lower_case=False
  )
  actual = make("bert", directory, lowercase=False)(captions)
  assert_same(actual, huggingface_rows(other, captions), captions)


def test_ids_equal_those_of_transformers_clip(captions):
  merges = tokenizer_lib.merges_text().splitlines()[1:]
  other = transformers.CLIPTokenizer(
    vocab=tokenizer_lib.vocabulary(),
    merges=[tuple(line.split(" ")) for line in merges],
  )
  texts = [
    *captions,
    "'\u017f it'\u017f",
    "\x1c\x85\u2028",
    "\uff11\uff12 Ⅷ ½",
    "e\u0301",
  ]
  tokenizer = tokenizer_lib.make_tokenizer(
    context_length=LENGTH, cleaning="hf_clip", pad_id=tokenizer_lib.END_ID
  )
  assert_same(tokenizer(texts), huggingface_rows(other, texts), texts)
  # It is another cleaning than OpenAI's.
  plain = tokenizer_lib.make_tokenizer(context_length=LENGTH)
  assert (plain(texts) != tokenizer(texts)).any()


PUNCTUATION = str.maketrans("", "", string.punctuation)


def repaired(text):
  return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def canonical(text):
  text = text.replace("_", " ").translate(PUNCTUATION).lower()
  return re.sub(r"\s+", " ", text).strip()


def siglip(text):
  text = "\u2581" + text.replace("\u2581", " ")
  text = re.sub(r"\s+", " ", text.lower().translate(PUNCTUATION))
  return text.strip()


CLEAN = {
  "canonicalize": canonical,
  "canonicalize_ftfy": lambda text: canonical(repaired(text)),
  "whitespace_ftfy": lambda text: " ".join(repaired(text).split()).strip(),
  "clip": lambda text: " ".join(repaired(text).split()).strip().lower(),
  "lower": str.lower,
  "hf_lower": lambda text: "".join(c.lower() for c in text),
  "lower_ascii": lambda text: re.sub(
    "[A-Z]", lambda match: chr(ord(match.group()) + 32), text
  ),
  "none": lambda text: text,
}


@pytest.mark.parametrize("name", CLEAN)
def test_each_cleaning_equals_plain_code(name, captions):
  clean = tokenizer_lib.CLEANINGS[name]
  for text in [*captions, "ΑΣ-ΒΣ_x", "İ", " a\n\n_b ", "_", ""]:
    actual = " ".join(line for line in clean(text) if line)
    assert actual == CLEAN[name](text), ascii(text)


def test_every_cleaning_is_tested():
  others = {"hf_clip", "hf_siglip"}  # Through transformers' tokenizers, above.
  assert CLEAN.keys() | others == tokenizer_lib.CLEANINGS.keys()


def test_siglips_cleaning_differs_between_hosts():
  clean = {
    name: "".join(tokenizer_lib.CLEANINGS[name]("Snow_Leopard, İ!"))
    for name in ("hf_siglip", "canonicalize", "lower_ascii")
  }
  assert clean["hf_siglip"] == "snowleopard i\u0307"
  assert clean["canonicalize"] == "snow leopard i\u0307"
  assert clean["lower_ascii"] == "snow_leopard, İ!"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_keeps_the_end_id_last(family, directory):
  fields = FIELDS[family]
  ids = make(family, directory)(["cat " * 100, "cat", ""])
  assert (ids[0] != fields["pad_id"])[:-1].all()
  assert ids[0, -1] == fields["end_id"]
  controls = [
    i for i in (fields["start_id"], fields["end_id"]) if i is not None
  ]
  empty = [*controls, *[fields["pad_id"]] * (LENGTH - len(controls))]
  assert ids[2].tolist() == empty
  # Padding is on the right, also of what is shorter than the row.
  assert ids[1, -1] == fields["pad_id"]
  shorter = make(family, directory, context_length=8)(["cat " * 100])
  np.testing.assert_array_equal(shorter[0, :-1], ids[0, :7])


def test_no_control_ids_are_needed(directory):
  # big_vision's BERT has no end; CLIPA's is the padding.
  none = make("bert", directory, start_id=None, end_id=None)("cat")[0]
  clipa = make("bert", directory, end_id=0)(["cat", "cat " * 99])
  both = make("bert", directory)(["cat", "cat " * 99])
  np.testing.assert_array_equal(none[:-1], np.where(both == 3, 0, both)[0, 1:])
  np.testing.assert_array_equal(clipa, np.where(both == 3, 0, both))
  with pytest.raises(errors.UserError, match="at least 3"):
    make("bert", directory, context_length=2)
  assert make("siglip", directory, context_length=2)("cat")[0, 1] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "typed", ["<eos>", "</s>", "<pad>", "<bos>", "[SEP]", "[CLS]", "[PAD]"]
)
def test_a_typed_control_token_is_text(family, typed, directory):
  tokenizer = make(family, directory, context_length=64)
  row = tokenizer(f"a {typed} b")[0].tolist()
  fields = FIELDS[family]
  if fields["start_id"] is not None:
    assert row.count(fields["start_id"]) == 1
  text = row[: row.index(fields["end_id"])]
  rest = row[len(text) + 1 :]
  assert set(rest) == {fields["pad_id"]}
  assert fields["pad_id"] not in text
  after = tokenizer("b")[0].tolist()
  assert text[-1] == after[after.index(fields["end_id"]) - 1]  # The "b".


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_returns_the_text_up_to_the_end(family, directory):
  tokenizer = make(family, directory)
  assert tokenizer.decode(tokenizer("a photo of the cat")[0]) == (
    "a photo of the cat"
  )
  assert tokenizer.vocab_size > 200
  with pytest.raises(errors.UserError, match="outside the"):
    tokenizer.decode([10**6])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "text",
  [
    *("a" * 200_000, "thequickbrown" * 16_000, " " * 200_000 + "cat"),
    *("\u0300\u0316" * 40_000, "e" + "\u0f73" * 40_000, "\0" * 200_000),
    *("\ud800" * 50_000, "👨\u200d" * 40_000, "\u2581" * 100_000),
    *("_" * 200_000, "a " * 100_000, "İ" * 100_000, "\ufdfa" * 30_000),
  ],
  ids=lambda text: ascii(text[:2]),
)
def test_hostile_captions_take_linear_time(family, text, directory):
  # Each would take minutes to hours in quadratic time.
  ids = make(family, directory)(text)[0]
  assert FIELDS[family]["end_id"] in ids


def test_without_its_file_a_tokenizer_says_what_is_missing(tmp_path):
  tokenizer = make("siglip", tmp_path)
  for action in (
    lambda: tokenizer("a cat"),
    lambda: tokenizer.vocab_size,
    tokenizer.files,
  ):
    with pytest.raises(errors.UserError, match=r"'spiece\.model'.* is missing"):
      action()
  assert len(tokenizer.fingerprint) == 64
  nowhere = tokenizer_lib.make_tokenizer(
    **FIELDS["siglip"], context_length=LENGTH
  )
  assert nowhere == tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_directory_keeps_the_tokenizer(family, directory, tmp_path):
  tokenizer = make(family, directory)
  for name, data in tokenizer.files().items():
    (tmp_path / name).write_bytes(data)
  spec = json.loads(json.dumps(tokenizer.to_dict()))
  again = tokenizer_lib.make_tokenizer(
    **spec, context_length=LENGTH, directory=tmp_path
  )
  assert again == tokenizer
  assert again.fingerprint == tokenizer.fingerprint
  texts = ["A cat's café", "漢字 42"]
  np.testing.assert_array_equal(again(texts), tokenizer(texts))
  from_memory = tokenizer_lib.make_tokenizer(
    **spec, context_length=LENGTH, contents=tokenizer.files()
  )
  assert from_memory == tokenizer
  assert from_memory.files() == tokenizer.files()
  copy = pickle.loads(pickle.dumps(from_memory))
  np.testing.assert_array_equal(copy(texts), tokenizer(texts))


def test_clips_own_needs_no_file(tmp_path):
  tokenizer = tokenizer_lib.make_tokenizer(directory=tmp_path)
  assert tokenizer.files() == {}
  assert tokenizer == tokenizer_lib.make_tokenizer(**tokenizer.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickle_holds_no_file(family, directory):
  tokenizer = make(family, directory)
  tokenizer("builds the engine")
  data = pickle.dumps(tokenizer)
  assert len(data) < 1000
  copy = pickle.loads(data)
  assert copy == tokenizer
  np.testing.assert_array_equal(copy("a cat"), tokenizer("a cat"))


def test_the_fingerprint_covers_the_files_bytes(directory, tmp_path):
  model = train_sentencepiece(["a cat", "the dogs"] * 9, vocab_size=14)
  (tmp_path / UNIGRAM).write_bytes(model)
  prints = {
    make("siglip", directory).fingerprint,
    make("siglip", tmp_path).fingerprint,
    make("siglip", tmp_path, pad_id=0).fingerprint,
    make("siglip", tmp_path, context_length=9).fingerprint,
    make("siglip", tmp_path, cleaning="lower").fingerprint,
  }
  assert len(prints) == 5


def test_a_file_that_changed_is_not_used(directory, tmp_path):
  path = tmp_path / UNIGRAM
  path.write_bytes((directory / UNIGRAM).read_bytes() + b"\x20")
  tokenizer = make("siglip", tmp_path)
  path.write_bytes((directory / UNIGRAM).read_bytes())
  with pytest.raises(errors.UserError, match="has changed"):
    tokenizer("a cat")


@pytest.mark.parametrize(
  "name",
  [
    "",
    ".",
    "..",
    "../a",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:a",
    "a\0b",
    "a" * 300,
  ],
)
def test_a_files_name_leads_nowhere_else(name, tmp_path):
  with pytest.raises(errors.UserError, match="plain name"):
    make("siglip", tmp_path, file=name)


def test_a_link_is_followed_and_a_directory_refused(directory, tmp_path):
  # The Hub's cache is made of links.
  (tmp_path / UNIGRAM).symlink_to(directory / UNIGRAM)
  assert make("siglip", tmp_path) == make("siglip", directory)
  (tmp_path / VOCAB).mkdir()
  with pytest.raises(errors.UserError, match="is not a file"):
    make("bert", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_file_says_what_to_do(family, tmp_path):
  path = tmp_path / FOLDERS.get(family, "") / FIELDS[family]["file"]
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(b"junk")
  words = f"{path.name} is no valid file.*Fetch or make it again"
  with pytest.raises(errors.UserError, match=words):
    make(family, tmp_path)(["a"])


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_files_raise_nothing_but_user_errors(
  family, directory, tmp_path, capfd
):
  name = FIELDS[family]["file"]
  data = (directory / FOLDERS.get(family, ".") / name).read_bytes()
  rng = random.Random(family)
  path = tmp_path / name
  (tmp_path / FOLDERS.get(family, "x")).symlink_to(tmp_path)
  for damaged in [
    b"",
    b"\0",
    data[:99],
    *(mutate(data, rng) for _ in range(60)),
  ]:
    path.write_bytes(damaged)
    try:
      ids = make(family, tmp_path)("Hello the café 漢字")
      assert ids.shape == (1, LENGTH)
    except errors.UserError as error:
      assert name in str(error)
  capfd.readouterr()  # The libraries write to stderr.


def mutate(data, rng):
  damaged = bytearray(data)
  for _ in range(rng.choice([1, 3, 10])):
    at = rng.randrange(len(damaged))
    if rng.random() < 0.7:
      damaged[at] = rng.choice([0, 255, 127, rng.randrange(256)])
    else:
      del damaged[at : at + rng.randrange(1, 40)]
  return bytes(damaged)


def test_the_controls_of_a_json_file_are_read_from_it(directory):
  for name in ("gemma", "t5"):
    data = (directory / name / JSON).read_bytes()
    assert tokenizer_lib.read_json(data).controls() == ((), (1,))
  bert = transformers.BertTokenizer(vocab=read_vocabulary(directory))
  data = bert.backend_tokenizer.to_str().encode()
  assert tokenizer_lib.read_json(data).controls() == ((2,), (3,))


def test_a_json_file_with_padding_and_a_length_obeys_the_fields(directory):
  engine = tokenizers.Tokenizer.from_file(str(directory / "t5" / JSON))
  engine.enable_truncation(3)
  engine.enable_padding(length=5, pad_id=7, direction="left")
  contents = {JSON: engine.to_str().encode()}
  changed = tokenizer_lib.make_tokenizer(
    **FIELDS["t5"], context_length=LENGTH, contents=contents
  )
  text = "a photo of the cat"
  np.testing.assert_array_equal(changed(text), make("t5", directory)(text))


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_a_forked_process_encodes_without_a_warning(family, directory):
  fields = {**FIELDS.get(family, {}), "context_length": LENGTH}
  folder = family and str(directory / FOLDERS.get(family, "."))
  script = (
    "import os\n"
    "from clip_jax import tokenizer\n"
    f"encode = tokenizer.make_tokenizer(**{fields!r}, directory={folder!r})\n"
    "before = encode(['a cat', 'a dog']).tolist()\n"
    "child = os.fork()\n"
    "same = encode(['a cat', 'a dog']).tolist() == before\n"
    "if child == 0: os._exit(0 if same else 3)\n"
    "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
  )
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", script],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")


def test_nothing_about_a_files_tokenizer_is_a_default(directory):
  for name in ("cleaning", "pad_id", "start_id", "end_id", "file"):
    fields = {k: v for k, v in FIELDS["siglip"].items() if k != name}
    with pytest.raises(errors.UserError, match=f"must be given its {name}"):
      tokenizer_lib.make_tokenizer(**fields)
  with pytest.raises(errors.UserError, match="lowercase=None"):
    make("bert", directory, lowercase=None)
  with pytest.raises(errors.UserError, match="lowercase=True"):
    make("siglip", directory, lowercase=True)
  with pytest.raises(errors.UserError, match="name of its file"):
    make("siglip", directory, file=None)


def test_a_missing_library_is_named_with_what_installs_it(
  directory, monkeypatch
):
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  tokenizer = make("siglip", directory, context_length=LENGTH + 1)
  with pytest.raises(errors.UserError, match=r"jax-clip\[sentencepiece\]"):
    tokenizer("a cat")


def test_half_a_character_is_no_token():
  words = tokenizers.models.WordLevel({"a": 3}, "a")
  data = tokenizers.Tokenizer(words).to_str().encode()
  files = {tokenizer_files.FAST: data}
  assert tokenizer_files.token_id(files, "a") == 3
  assert tokenizer_files.token_id(files, "\ud800") is None


def test_threads_that_begin_together_read_a_file_once(monkeypatch):
  calls, begin = [], threading.Barrier(4)
  reader = tokenizing._READERS["wordpiece"]

  def slow(data, **options):
    calls.append(data)
    time.sleep(0.2)  # So that all threads come.
    return reader(data, **options)

  monkeypatch.setitem(tokenizing._READERS, "wordpiece", slow)
  tokenizer = tokenizer_lib.make_tokenizer(
    "wordpiece",
    context_length=LENGTH,
    contents={VOCAB: b"[UNK]\n[SEP]\nonce"},
    file=VOCAB,
    cleaning="none",
    pad_id=0,
    start_id=None,
    end_id=1,
    lowercase=True,
  )

  def encode(_):
    begin.wait(20)
    return tokenizer("once")[0, :2].tolist()

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(encode, range(4))) == [[2, 1]] * 4
  assert len(calls) == 1


def test_ids_may_have_gaps():
  tokenizer = tokenizer_lib.make_tokenizer(
    "wordpiece",
    **{"file": "vocab.txt", "cleaning": "none", "lowercase": True},
    **{"pad_id": 0, "start_id": None, "end_id": None, "context_length": 3},
    contents={"vocab.txt": b"[PAD]\ncat\n[UNK]\ncat\n"},  # The last one counts.
  )
  ids = tokenizer("cat")[0]
  assert ids.tolist() == [3, 0, 0]
  assert tokenizer.vocab_size == 4 and tokenizer.decode(ids) == "cat"
