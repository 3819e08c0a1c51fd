"""What people who come from open_clip write, and what they are told."""

import pathlib
import re

import pytest

import clip_jax
from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.cli import open_clip_flags, parser
from clip_jax.convert import missing_model
from clip_jax.data import schemes

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "open_clip.md"


def test_all_flags_of_a_command_are_translated_at_once(fails):
  said = fails(
    *("train", "--train-data", "/data/{000..331}.tar", "--lr=5e-4"),
    *("--train-num-samples", "100", "--lock_image", "--grad-checkpointing"),
    *("--workdir", "w"),
    code=2,
  )
  *_, error, data, rate, samples, locked, remat = said.splitlines()
  assert "unknown flag '--train-data': it is one of open_clip's" in error
  for line, theirs, ours in (
    (data, "--train-data", "--config.data.train=wds:/data/{000..331}.tar, or"),
    (rate, "--lr", "--config.optim.peak_lr=5e-4"),
    (samples, "--train-num-samples", "nothing: the data are counted"),
    (locked, "--lock_image", "--config.optim.frozen=^image"),
    (
      remat,
      "--grad-checkpointing",
      "--config.model_overrides.image.remat=full",
    ),
  ):
    assert line.split()[0] == theirs
    assert line.split(maxsplit=1)[1].startswith(ours)


def test_other_flags_keep_their_hints(fails):
  assert "--config.steps=5?" in fails("train", "--steps=5", code=2)
  said = fails("eval", "m", "--lr=1", code=2)  # Not a training.
  assert "open_clip" not in said


def _words(text):
  return re.findall(r"(?<!\S)--[a-z][\w.-]*", text)


def test_every_flag_that_is_named_is_one():
  known = parser.make_parser()[1]["train"].flags
  for text in open_clip_flags.FLAGS.values():
    for word in _words(text):
      field = word.removeprefix("--config.")
      assert (
        word in known
        or field in config_lib.SCHEMA
        or field.startswith(("evals.", "model_overrides."))
        or (field == "optim.frozen:")
      ), text


def test_the_page_has_every_flag_with_the_same_words():
  rows = {}
  for line in PAGE.read_text().splitlines():
    if line.startswith("| `--"):
      theirs, ours = line.strip("| ").split(" | ")
      ours = re.sub(r"\[[^]]*\]\(([^)#]*)(?:#[^)]*)?\)", r"docs/\1", ours)
      for flag in theirs.split(", "):
        rows[flag.strip("`-")] = ours.replace("`", "").strip()
  assert rows == {
    flag: text.replace("{}", "VALUE")
    for flag, text in open_clip_flags.FLAGS.items()
  }


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("create_model_and_transforms", r"here it is clip_jax\.load"),
    ("get_tokenizer", r"here it is clip_jax\.load\(MODEL\)\.tokenize"),
    ("list_pretrained", "hf-hub:"),
    ("nothing", "has no attribute 'nothing'$"),
  ],
)
def test_names_of_open_clip_are_translated(name, said):
  with pytest.raises(AttributeError, match=said):
    getattr(clip_jax, name)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("local-dir:models/mine", "by its path alone: models/mine."),
    (
      "ViT-B-32/laion2b_s34b_b79k",
      "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    ("ViT-B-32/openai", "create_model('ViT-B-32')"),
    ("ViT-L-14-336/openai", "hf-hub:openai/clip-vit-large-patch14-336."),
    ("ViT-g-14/none_of_these", "hf-hub:ORG/NAME."),
  ],
)
def test_models_are_named_as_open_clip_names_them(name, said):
  error = missing_model.error(pathlib.Path(name), "a MODEL")
  assert said in str(error)
  if "laion" in name:
    assert "openai/" not in str(error)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("precision=amp_bf16", "'amp_bf16' elsewhere is 'bfloat16' here."),
    ("loss.kind=siglip", "'siglip' elsewhere is 'sigmoid' here."),
    ("loss.method=siglip", "two_level.$"),
  ],
)
def test_values_of_open_clip_are_refused_with_what_to_write(change, said):
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 1
  with pytest.raises(errors.UserError, match=said):
    config_lib.with_overrides(config_lib.check(config), [change])


@pytest.mark.parametrize(
  ("address", "said"),
  [
    ("csv:a.csv?csv-img-key=url", "Unknown option of csv: 'csv-img-key'"),
    ("csv:a.csv?Image=url", "Did you mean 'image'"),
    ("wds:a.tar::b.tar", r"written wds:\{a\.tar,b\.tar\}"),
    (
      "wds:{0..1}.tar::b.tar",
      r"written \{\"wds:\{0\.\.1\}\.tar\": 1, \"wds:b\.tar\": 1\} for",
    ),
    ("a-{000..331}.tar", r"Did you mean wds:a-\{000\.\.331\}\.tar\?"),
    ("a.tsv", r"Did you mean csv:a\.tsv\?"),
    ("pets", r"no scheme\. Put one"),
  ],
)
def test_addresses_of_open_clip_are_refused_with_what_to_write(address, said):
  with pytest.raises(errors.UserError, match=said):
    schemes.parse_address(address)
