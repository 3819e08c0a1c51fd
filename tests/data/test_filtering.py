"""Filters: each decision equals that of a slow loop written from the docs."""

import collections
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import image_bytes
import made_data
import memory_source
from clip_jax import cli, errors, preprocess
from clip_jax.data import prepare, sources
from clip_jax.data import record as record_lib
from clip_jax.data.curation import caption_form, filtering, pair_rules, rules

WORDS = (
  *(
    "dog",
    "Hund",
    "犬の写真",
    "St.",
    "42",
    "1,000",
    "٤٢",
    "aaaa",
    "!!!!!",
    "नमस्ते",
  ),
  *("https://shop.example.com/a?b=1", "www.x.org", "see img.cdn.net now"),
  *(
    "EXAMPLE.COM.",
    "notexample.com",
    "Bad Word",
    "bad",
    "word",
    "x" * 40,
    "नमस्ते",
  ),
)
LIMITS = {
  "min_side": 6,
  "max_side": 40,
  "max_aspect": 3,
  "block_domains": ("example.com",),
  "block_words": ("bad word", "Hund 42"),
  "min_chars": 5,
  "max_chars": 60,
  "min_words": 2,
  "max_words": 6,
  "min_letters": 0.5,
  "max_digits": 0.2,
  "max_urls": 0.3,
  "max_run": 4,
  "max_caption_repeats": 3,
}


def _png(width, height, colour):
  return image_bytes.encode(Image.new("RGB", (width, height), colour))


def _source(records):
  """Returns a source in which every tenth key or so is bad."""
  bad = {r.key: "missing_image" for r in records if r.key.endswith("7")}
  return memory_source.MemorySource(records, bad)


@pytest.fixture(scope="module")
def source():
  rng = np.random.default_rng(0)
  images = [
    _png(w, h, (w, h, 0))
    for w, h in [(5, 30), (9, 11), (41, 39), (11, 34), (20, 20), (6, 18)]
  ]
  texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(420)]
  texts += texts[:60] * 2 + ["dog Hund dog"] * 9 + [" two  dogs "] * 3
  rng.shuffle(texts)
  records, at = [], 0
  while at < len(texts):
    count = int(rng.choice([1, 1, 1, 2, 3]))
    records.append(
      record_lib.Record(
        images[rng.integers(len(images))],
        tuple(texts[at : at + count]),
        f"key{len(records)}",
      )
    )
    at += count
  return _source(records)


def _spaceless(text):
  return re.sub(r"\s", "", text)


def _caption_breaks(name, limit, text):
  """Whether a caption breaks a rule, as docs/curation.md has it."""
  text, bare = text.strip(), _spaceless(text)
  if name == "min_letters":
    import unicodedata

    marks = [unicodedata.category(c) for c in bare]
    return sum(m.startswith(("L", "M")) for m in marks) < limit * len(bare)
  return {
    "min_chars": lambda: len(text) < limit,
    "max_chars": lambda: len(text) > limit,
    "min_words": lambda: len(re.findall(r"\S+", text)) < limit,
    "max_words": lambda: len(re.findall(r"\S+", text)) > limit,
    "max_digits": lambda: len(re.findall(r"\d", bare)) > limit * len(bare),
    "max_urls": lambda: (
      len("".join(re.findall(r"https?://\S+|www\.\S+", text)))
      > limit * len(bare)
    ),
    "max_run": lambda: re.search(rf"(\S)\1{{{limit}}}", text) is not None,
  }[name]()


def _pair_breaks(name, limit, record, size):
  low, high = min(size), max(size)
  whole = " ".join([record.key, *record.texts]).lower()
  return {
    "min_side": lambda: low < limit,
    "max_side": lambda: high > limit,
    "max_aspect": lambda: high / low > limit,
    "block_domains": lambda: any(
      re.search(rf"(?<![\w.-])([\w-]+\.)*{re.escape(d)}(?![\w-]|\.\w)", whole)
      for d in limit
    ),
    "block_words": lambda: any(
      re.search(rf"(?<![^\W_]){re.escape(w.lower())}(?![^\W_])", text.lower())
      for w in limit
      for text in record.texts
    ),
  }[name]()


def _by_hand(records, limits):
  """Returns by key the captions that stay, and the pairs dropped by rule."""
  repeats = collections.Counter(
    text
    for record in records
    if not record.key.endswith("7")
    for text in {text.strip() for text in record.texts}
  )
  kept, dropped = {}, collections.Counter()
  for record in records:
    if record.key.endswith("7"):
      dropped["missing_image"] += 1
      continue
    size = Image.open(io.BytesIO(record.image)).size
    texts = list(record.texts)
    for name, limit in limits.items():
      if name == "max_caption_repeats":
        texts = [t for t in texts if repeats[t.strip()] <= limit]
      elif name in pair_rules.CAPTION:
        texts = [t for t in texts if not _caption_breaks(name, limit, t)]
      elif _pair_breaks(name, limit, record, size):
        texts = []
      if not texts:
        dropped[name] += 1
        break
    else:
      kept[record.key] = tuple(texts)
  return kept, dict(dropped)


def _read(out):
  source = sources.open_source(f"arrayrecord:{out}")
  records = [source[i] for i in range(len(source))]
  return {record.key: record.texts for record in records}


@pytest.mark.parametrize("name", [*LIMITS, "all"])
def test_what_stays_is_what_a_loop_keeps(name, source, tmp_path):
  limits = LIMITS if name == "all" else {name: LIMITS[name]}
  found = filtering.filter_pairs(source, tmp_path / "o", rules.Rules(**limits))
  kept, dropped = _by_hand(source.records, limits)
  assert found["dropped"] == dropped
  assert set(dropped) == {"missing_image", *limits}  # Each rule drops some.
  assert _read(tmp_path / "o") == kept
  assert found["kept"] + sum(dropped.values()) == found["pairs"]
  assert found["captions_kept"] == sum(map(len, kept.values()))


def test_order_and_interruptions_change_nothing(source, tmp_path):
  limits = rules.Rules(**LIMITS)
  filtering.filter_pairs(source, tmp_path / "o", limits)

  def interrupt(done):
    raise KeyboardInterrupt

  for _ in range(3):
    with pytest.raises(KeyboardInterrupt):
      filtering.filter_pairs(
        source, tmp_path / "again", limits, on_record=interrupt
      )
  done = []
  filtering.filter_pairs(
    source, tmp_path / "again", limits, on_record=done.append
  )
  assert done[0] == 256  # Three times 64 were there.
  assert made_data.content(tmp_path / "again") == made_data.content(
    tmp_path / "o"
  )
  order = np.random.default_rng(1).permutation(len(source))
  turned = _source([source.records[i] for i in order])
  filtering.filter_pairs(turned, tmp_path / "turned", limits)
  assert _read(tmp_path / "turned") == _read(tmp_path / "o")


class Model:
  """Embeds by hashes; its scores are few, so that many are equal."""

  fingerprint = "a model"

  def __init__(self):
    self.batches = []

  def needed_preprocess(self):
    return preprocess.Preprocess(8, mean=(0, 0, 0), std=(1, 1, 1))

  def embed_images(self, images):
    self.batches.append(len(images))
    return self._turned(images[:, 0, 0, 0].astype(int))

  def embed_texts(self, texts):
    return self._turned(np.array([len(text) for text in texts]))

  def _turned(self, numbers):
    angles = numbers % 5 / 5
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def _score(record, text):
  red = np.asarray(Image.open(io.BytesIO(record.image)))[0, 0, 0]
  return np.cos((int(red) % 5 - len(text) % 5) / 5)


@pytest.mark.parametrize(
  "limit", [{"min_score": 0.9}, {"keep_share": 0.6}, {"keep_share": 1.0}]
)
def test_scores_decide_by_value_or_by_share(limit, source, tmp_path):
  found = filtering.filter_pairs(
    source,
    tmp_path / "o",
    rules.Rules(min_words=2, **limit),
    model=Model(),
    batch_size=32,
  )
  others, dropped = _by_hand(source.records, {"min_words": 2})
  records = {r.key: r for r in source.records}
  scores = {
    key: [_score(records[key], text) for text in texts]
    for key, texts in others.items()
  }
  best = sorted((max(row) for row in scores.values()), reverse=True)
  threshold = limit.get("min_score")
  if threshold is None:
    threshold = best[int(np.ceil(limit["keep_share"] * len(best))) - 1] - 1e-6
  kept = {
    key: tuple(
      t for t, s in zip(texts, scores[key], strict=True) if s >= threshold
    )
    for key, texts in others.items()
    if max(scores[key]) >= threshold
  }
  assert _read(tmp_path / "o") == kept
  (name,) = limit
  if len(kept) < len(others):
    dropped[name] = len(others) - len(kept)
  assert found["dropped"] == dropped
  assert found["score_quantiles"][-1] == pytest.approx(best[0], abs=1e-6)
  table = (tmp_path / "o" / "scores.tsv").read_text().splitlines()[1:]
  rows = [line.split("\t") for line in table]
  assert len(rows) == sum(map(len, others.values()))
  stayed = collections.Counter(key for key, _, _, stays in rows if stays == "1")
  assert stayed == {key: len(texts) for key, texts in kept.items()}
  for key, number, score, _ in rows[:50]:
    want = _score(records[key], records[key].texts[int(number)])
    assert float(score) == pytest.approx(want, abs=2e-6)


def test_scores_are_computed_once_whatever_the_threshold(
  source, tmp_path, monkeypatch
):
  from clip_jax.data.curation import embedding

  monkeypatch.setattr(embedding, "_RANGE", 64)
  limits = rules.Rules(keep_share=0.5)
  whole = Model()
  filtering.filter_pairs(
    source, tmp_path / "whole", limits, model=whole, batch_size=32
  )

  def interrupt(done, total):
    if done > 200:
      raise KeyboardInterrupt

  model = Model()
  with pytest.raises(KeyboardInterrupt):
    filtering.filter_pairs(
      source,
      tmp_path / "o",
      limits,
      model=model,
      batch_size=32,
      on_score=interrupt,
    )
  filtering.filter_pairs(
    source, tmp_path / "o", limits, model=model, batch_size=32
  )
  assert len(model.batches) <= len(whole.batches) + 2
  assert made_data.content(tmp_path / "o") == made_data.content(
    tmp_path / "whole"
  )
  # One shape of batches, so that no rounding depends on the rest.
  assert set(model.batches) == {32}


class Ramp(Model):
  """Of each red value another score: the more red, the lower."""

  def embed_images(self, images):
    self.batches.append(len(images))
    angles = images[:, 0, 0, 0] / 255
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

  def embed_texts(self, texts):
    return np.tile(np.array([[1, 0]], np.float32), (len(texts), 1))


def _ramp(sides):
  """Returns pairs of images of these sides, each redder than the last."""
  return _source(
    [
      record_lib.Record(_png(side, side, (10 * i, 0, 0)), ("a",), f"k{i:02d}x")
      for i, side in enumerate(sides)
    ]
  )


@pytest.mark.parametrize(("limit", "kept"), [(1.15, 2), (1.1499, 1)])
def test_an_image_may_have_exactly_the_largest_aspect(limit, kept, tmp_path):
  assert 1.15 * 100 < 115  # As floats have it.
  source = _source(
    [
      record_lib.Record(_png(*size, (0, 0, 0)), ("a",), str(number))
      for number, size in enumerate([(100, 115), (9, 9), (116, 100)])
    ]
  )
  rule = rules.Rules(max_aspect=limit)
  found = filtering.filter_pairs(source, tmp_path / "o", rule)
  assert found["kept"] == kept


def test_a_share_is_taken_as_it_was_written(tmp_path):
  assert 0.28 * 25 > 7  # As floats have it.
  found = filtering.filter_pairs(
    _ramp([2] * 25), tmp_path / "o", rules.Rules(keep_share=0.28), model=Ramp()
  )
  assert found["kept"] == 7


def test_scores_of_other_pairs_are_not_taken(tmp_path, monkeypatch):
  source = _ramp([16, 2, 2] * 4)
  limits = [preprocess.Limits(max_pixels=n) for n in (100, 1000)]

  def run(name, limits):
    return filtering.filter_pairs(
      source,
      tmp_path / name,
      rules.Rules(min_score=0.9),
      model=Ramp(),
      limits=limits,
    )

  def stop(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(prepare, "prepare", stop)
    run("o", limits[0])  # All is scored, and nothing is written.
  assert run("o", limits[1]) == run("fresh", limits[1])
  assert made_data.content(tmp_path / "o") == made_data.content(
    tmp_path / "fresh"
  )


@pytest.mark.parametrize("what", ["images", "texts"])
def test_a_model_that_gives_no_numbers_is_refused(what, tmp_path, monkeypatch):
  source, real = _ramp([2] * 4), getattr(Ramp, f"embed_{what}")

  def embed(model, given):
    embeds = real(model, given)
    embeds[2] = np.nan
    return embeds

  monkeypatch.setattr(Ramp, f"embed_{what}", embed)
  with pytest.raises(errors.UserError, match="'k02x' is not finite"):
    filtering.filter_pairs(
      source, tmp_path / "o", rules.Rules(keep_share=0.5), model=Ramp()
    )


def test_an_image_that_decoding_shows_to_be_bad_is_counted(tmp_path):
  whole = _png(30, 30, (1, 2, 3))
  source = _source(
    [
      record_lib.Record(whole, ("a dog",), "a"),
      record_lib.Record(whole[:-30], ("a dog",), "b"),
    ]
  )
  found = filtering.filter_pairs(
    source, tmp_path / "o", rules.Rules(min_score=-1), model=Model()
  )
  assert found["kept"] == 1
  assert sum(found["dropped"].values()) == 1
  assert set(found["dropped"]) <= {"truncated", "damaged"}


def test_shares_of_characters():
  assert caption_form.letters("ab 12") == 0.5
  assert caption_form.letters("नमस्ते") == 1.0
  assert caption_form.digits("٤٢ab") == 0.5
  assert caption_form.urls("http://a b") == 8 / 9
  assert caption_form.run("a   bbb") == 3
  for share in (caption_form.letters, caption_form.digits, caption_form.urls):
    assert share("") == share(" \n") == 0
  assert caption_form.run("") == 0
  found = set(caption_form.domains("at HTTPS://Img.Example.com/x.png?"))
  assert {"img.example.com", "example.com", "x.png"} <= found
  assert not list(caption_form.domains("a." * 200))


@pytest.mark.parametrize(
  ("limits", "message"),
  [
    ({"min_words": 0}, "min_words must be a whole number, at least 1; got 0"),
    ({"min_words": True}, "got True"),
    ({"min_words": 2.5}, "whole number"),
    ({"max_aspect": 0.5}, "at least 1"),
    ({"max_digits": 1.2}, "from 0 to 1"),
    ({"min_score": float("nan")}, "must be a number"),
    ({"keep_share": "half"}, "from 0 to 1; got 'half'"),
    ({"min_side": 10**400}, "min_side must be"),
    ({"min_score": -(10**400)}, "min_score must be"),
    ({"languages": [3]}, "must be texts"),
    ({"min_score": 0.2, "keep_share": 0.3}, "one of the two"),
    ({"min_side": 9, "max_side": 8}, "nothing passes"),
  ],
)
def test_limits_that_are_none_are_refused(limits, message):
  with pytest.raises(errors.UserError, match=message):
    rules.Rules(**limits)


@pytest.mark.parametrize(
  ("text", "breaks"),
  [
    ("Buy  NOW", True),
    ("buy\u3000now!", True),
    ("一只黑猫在草地上", True),
    ("แมวดำ", True),
    ('"buy now"', True),
    ("(Buy now)", True),
    ("shop_buy now/today", True),
    ("“Buy now”…", True),
    ("buy-now", False),
    ("is this R-18?", True),
    ("R 18", False),
    ("buying now", False),
    ("buy nowadays", False),
    ("一只狗", False),
    ("नम", True),
    ("नमस्ते", False),
    ("नमी", False),
  ],
)
def test_blocked_words_need_no_single_space_around_them(text, breaks, png):
  blocked = rules.Rules(block_words=("buy now", "黑猫", "แมว", "r-18", "नम"))
  examine = pair_rules.Examine(blocked, preprocess.DEFAULT_LIMITS)
  found = examine(record_lib.Record(png(0), (text,), "a"))
  assert (found["rule"] == pair_rules.CODE["block_words"]) == breaks


@pytest.mark.parametrize("name", ["word", "domain"])
def test_a_list_that_blocks_nothing_is_called_what_it_is(name, tmp_path):
  path = tmp_path / "list.txt"
  path.write_text("\n")
  with pytest.raises(errors.UserError, match=f"holds no {name}; put one"):
    rules.of({f"block_{name}s": str(path)})


def test_what_older_rules_filtered_is_not_taken_for_these():
  """Blocked words were not found beside brackets before."""
  limits = preprocess.DEFAULT_LIMITS
  some = pair_rules.Examine(rules.Rules(block_words=("a",)), limits)
  assert ("block_words", 2) in some.identity
  other = pair_rules.Examine(rules.Rules(min_side=3), limits)
  assert other.identity == ([("min_side", 3)], limits.max_pixels)


def test_rules_come_from_a_file_and_flags_win(tmp_path):
  words = tmp_path / "words.txt"
  words.write_text("bad word\n\nother\n")
  (tmp_path / "r.toml").write_text(
    f'min_words = 3\nblock_words = "{words}"\nscore_model = "m"\n'
    'block_domains = ["a.com"]\nlanguages = "en, de"\n'
  )
  read = rules.read(tmp_path / "r.toml")
  found = rules.of(read, {"min_words": 5, "max_words": None})
  assert found.given() == {
    "min_words": 5,
    "block_words": ("bad word", "other"),
    "block_domains": ("a.com",),
    "languages": ("en", "de"),
  }
  for name, content, message in [
    ("a.toml", "min_word = 3", "Did you mean 'min_words'"),
    ("a.toml", "min_words = ", "not valid TOML"),
    ("a.toml", b"\xff", "not valid TOML"),
    ("a.toml", f"min_words = {'1' * 5000}", "not valid TOML"),
    ("a.json", "[1]", "JSON object"),
    ("a.txt", "min_words = 3", "must end in .toml or .json"),
  ]:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.UserError, match=message):
      rules.read(tmp_path / name)


def test_languages_are_told_where_the_library_is(source, tmp_path):
  pytest.importorskip("py3langid")
  image = source.records[0].image
  texts = [
    "a photo of a dog in the garden",
    "ein Foto von einem Hund im Garten",
    "une photo d'un chien dans le jardin",
  ]
  pairs = _source(
    [record_lib.Record(image, (t,), f"{i}") for i, t in enumerate(texts)]
  )
  found = filtering.filter_pairs(
    pairs, tmp_path / "o", rules.Rules(languages=("en", "de"))
  )
  assert list(_read(tmp_path / "o")) == ["0", "1"]
  assert found["dropped"] == {"languages": 1}
  with pytest.raises(errors.UserError, match="Unknown language 'english'"):
    filtering.filter_pairs(
      pairs, tmp_path / "p", rules.Rules(languages=("english",))
    )


def test_the_command_line_filters(tmp_path, capsys, source):
  prepare.prepare(source, tmp_path / "pairs")
  command = ["data", "filter", f"arrayrecord:{tmp_path / 'pairs'}"]
  command += [str(tmp_path / "o"), "--min-words", "2", "--json"]
  assert cli.run([*command, "--max-aspect", "3"]) == 0
  found = json.loads(capsys.readouterr().out)
  kept, dropped = _by_hand(source.records, {"max_aspect": 3, "min_words": 2})
  assert found["kept"] == len(kept)
  assert found["dropped"] == dropped
  assert found["thresholds"] == {"max_aspect": 3.0, "min_words": 2}
  assert list(found["dropped"]) == ["missing_image", "max_aspect", "min_words"]
  assert cli.run([*command[:-1], "--max-aspect", "3"]) == 0
  assert "Already there: " in capsys.readouterr().out
  assert cli.run(command) == 1  # Other rules, the same OUT.
  assert "nothing is overwritten" in capsys.readouterr().err
  command[3] = str(tmp_path / "none")
  assert cli.run([*command, "--min-chars", "5000"]) == 1
  assert "None of the" in capsys.readouterr().err
  assert [path.name for path in tmp_path.glob("*none*")] == [".none.partial"]
  with pytest.raises(SystemExit, match="2"):
    cli.run(["data", "filter", "csv:x.csv", "o"])
  assert cli.run([*command[:4], "--min-score", "0.2"]) == 1
  assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("entry", "said"),
  [
    ("https://Example.com/", "'example.com'"),
    ("*.shop.org", "'shop.org'"),
    *(("a b", "'example.com'"), ("..", "'example.com'")),
  ],
)
def test_a_domain_that_blocks_nothing_is_refused(tmp_path, entry, said):
  path = tmp_path / "domains.txt"
  path.write_text(f"com\n.a.org\nM\u00fcnchen.de\n{entry}\n", "utf-8")
  with pytest.raises(errors.UserError, match="no domain") as error:
    rules.of({"block_domains": str(path)})
  assert repr(entry) in str(error.value)
  assert f"such as {said}" in str(error.value)
