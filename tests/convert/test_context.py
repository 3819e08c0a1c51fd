"""Other context lengths, against Long-CLIP's own formula."""

import json

import jax
import numpy as np
import pytest

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import context, engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.convert.formats import model_dir
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

BAR = 1e-14  # Float64, numbers of about 1.


def _long_clip(old):
  """Long-CLIP's loop from 77 positions to 248, element by element."""
  keep, length = 20, len(old)
  new = np.zeros((4 * length - 3 * keep, old.shape[1]))
  for i in range(keep):
    new[i] = old[i]
  for i in range(length - 1 - keep):
    a, b = old[i + keep], old[i + keep + 1]
    for part in range(4):
      new[4 * i + keep + part] = (4 - part) * a / 4 + part * b / 4
  step = (old[-1] - old[-2]) / 4
  for part in range(4):
    new[4 * length - 3 * keep - 4 + part] = old[-1] + part * step
  return new


def _rows(count=77):
  return np.random.default_rng(0).normal(size=(count, 5))


def test_four_times_is_long_clips_own():
  rows = _rows()
  want = _long_clip(rows)
  assert want.shape == (248, 5)
  np.testing.assert_allclose(
    context.resize_rows(rows, 248), want, rtol=0, atol=BAR
  )


@pytest.mark.parametrize("length", [78, 100, 128, 154, 247])
def test_lengths_between_keep_the_first_and_reach_the_last(length):
  rows = _rows()
  got = context.resize_rows(rows, length)
  assert got.shape == (length, 5)
  np.testing.assert_array_equal(got[:20], rows[:20])
  stretch = (length - 20) / 57
  for i in range(20, length):
    at = 20 + (i - 20) / stretch
    low = min(int(at), 75)
    want = rows[low] + (at - low) * (rows[low + 1] - rows[low])
    np.testing.assert_allclose(got[i], want, rtol=0, atol=BAR)


def test_shorter_ones_are_cut():
  np.testing.assert_array_equal(context.resize_rows(_rows(), 32), _rows()[:32])


def _model(length=77, **text):
  tiny = {
    "embed_dim": 12,
    "image": {"width": 16, "image_size": 8, "depth": 1, "heads": 2},
    "text": {"context_length": length, **text},
  }
  if not text:
    tiny["text"] |= {"width": 24, "depth": 1, "heads": 3, "vocab_size": 30}
  spec = family.as_json(engine.resolve(variants.spec("tiny-vit", tiny)))
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(rng.normal(size=shape).astype(np.float32))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  return Portable(spec, leaves, report_lib.Report("test"))


def _embed(model, tokens):
  module = variants.create_model(model.spec)
  encode = jax.jit(lambda x, y: module.apply(x, y, method="encode_text"))
  return np.asarray(encode(model.variables(), tokens))


@pytest.mark.parametrize("length", [32, 248])
def test_short_texts_keep_their_embeddings(length, tmp_path, capsys):
  source, out = tmp_path / "source", tmp_path / "out"
  model_dir.write(_model(), source)
  command = ["convert", str(source), str(out), "--to=clip-jax"]
  assert run([*command, f"--context-length={length}", "--json"]) == 0
  account = json.loads(capsys.readouterr().out)
  assert account["inferred"]["text.context_length"] == {
    "value": length,
    "source": "flag",
  }
  assert account["facts"]["context"]["old"] == 77
  tokens = np.zeros((1, 20), np.int32)
  tokens[0, :19], tokens[0, 19] = 5, 29
  before, after = convert.open_model(source), convert.open_model(out)
  assert after.spec["text"]["context_length"] == length
  np.testing.assert_array_equal(_embed(before, tokens), _embed(after, tokens))


@pytest.mark.parametrize("target", ["huggingface", "open-clip"])
def test_other_formats_hold_the_new_length(target, tmp_path):
  source, out = tmp_path / "source", tmp_path / "out"
  model_dir.write(_model(), source)
  options = Options(context_length=120)
  report = convert.convert(source, out, to=target, options=options)
  assert report.inferred["text.context_length"]["value"] == 120
  again = convert.open_model(out)
  assert again.spec["text"]["context_length"] == 120


@pytest.mark.parametrize(
  ("model", "length", "message"),
  [
    (_model(), 249, "from 3 to 248 for a tower of 77 positions.*first 20"),
    (_model(), 2, "from 3 to 248"),
    (_model(16), 32, "from 3 to 16 .*none after the first 20"),
  ],
)
def test_a_length_that_positions_cannot_have_is_refused(model, length, message):
  with pytest.raises(errors.UserError, match=message):
    context.resize(model, length)


def test_a_tower_that_sees_padding_is_warned_of():
  model = _model()
  text = {**model.spec["text"], "causal": False, "pooling": "last"}
  model.spec["text"] = text
  assert "attends to padding" in " ".join(
    context.resize(model, 40).report.warnings
  )
