"""The whole loop on a tiny model and real scans."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import errors, inference
from clip_jax.train import checkpoint, loop
from clip_jax.train import step as step_lib


def _config(**changes):
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {"width": 8, "image_size": 16},
    "text": {"width": 16, "depth": 1, "heads": 2},
  }
  config.data.train = "builtin:digits/train"
  config.batch_size = 16
  config.steps = 6
  config.precision = "float32"
  config.optim.warmup_steps = 2
  config.log_every_steps = 2
  config.evals.test = {"data": "builtin:digits/test"}
  for name, value in changes.items():
    config[name] = value
  return config_lib.check(config)


def _lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_run_leaves_what_its_docstring_says(tmp_path, caplog):
  config = _config(eval_every_steps=4, report="builtin:digits/test")
  workdir = tmp_path / "a run"
  with caplog.at_level(logging.INFO):
    summary = loop.train(config, workdir)
  assert "1433 records, 6 steps of 16 pairs on 8 x cpu" in caplog.text
  assert summary["steps"] == 6 and summary["skipped"] == 0
  assert summary["bad_records"] == 0
  assert summary["evals"]["test"]["examples"] == 364
  with Image.open(summary["report"]) as picture:
    assert picture.format == "PNG"
  assert not config_lib.differences(checkpoint.load_config(workdir), config)
  lines = _lines(workdir)
  assert [x["step"] for x in lines if "loss" in x] == [2, 4, 6]
  evaluations = [x for x in lines if "eval/test/top1" in x]
  assert [x["step"] for x in evaluations] == [4, 6]
  last = summary["evals"]["test"]
  assert evaluations[-1]["eval/test/top1"] == last["top1"]
  for name in ("learning_rate", "logit_scale", "images_per_second", "mfu"):
    assert lines[-2][name] > 0
  assert 0 <= lines[-2]["data_wait"] < 1
  assert list(workdir.glob("events.out.tfevents.*"))
  # The same model, loaded as a user loads it, says the same.
  clip = inference.load(workdir)
  assert clip.step == 6
  scores = clip.classify(np.zeros((16, 16, 3), np.uint8), ["one", "two"])
  assert scores.shape == (1, 2) and abs(scores.sum() - 1) < 1e-6


def test_epochs_become_steps(tmp_path):
  config = _config(steps=None, epochs=0.05)
  assert loop.make_run(config).total_steps == 5  # 0.05 * 1433 / 16, up.


def test_another_config_is_refused_unless_allowed(tmp_path):
  loop.train(_config(steps=2), tmp_path)
  changed = _config(steps=3, seed=5)
  with pytest.raises(errors.UserError, match=r"seed: 0 -> 5, steps: 2 -> 3"):
    loop.train(changed, tmp_path)
  assert loop.train(changed, tmp_path, allow_changes=True)["steps"] == 3


def test_what_cannot_change_the_result_may_change(tmp_path):
  loop.train(_config(steps=2), tmp_path)
  config = _config(steps=2, log_every_steps=1)
  config.data.threads = 1
  config.mesh.fsdp = 4
  config.checkpoint.keep = 1
  assert loop.train(config, tmp_path)["steps"] == 2


def test_checkpoints_without_a_config_are_left_alone(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(errors.UserError, match=r"but no config\.json"):
    loop.train(_config(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_remote_workdir_is_refused():
  with pytest.raises(errors.UserError, match="mount the bucket"):
    loop.train(_config(), "gs://bucket/run")


def test_skipped_steps_are_counted_and_logged(tmp_path, monkeypatch, caplog):
  initialise = step_lib.init_state

  def broken(*args, **options):
    state = initialise(*args, **options)
    table = state.params["text"]["token_embedding"]["embedding"]
    state.params["text"]["token_embedding"]["embedding"] = jnp.full_like(
      table, jnp.nan
    )
    return state

  monkeypatch.setattr(step_lib, "init_state", broken)
  config = _config(steps=2, log_every_steps=1)
  config.evals = {}
  summary = loop.train(config, tmp_path)
  assert summary["skipped"] == 2
  lines = _lines(tmp_path)
  assert [(x["loss"], x["skipped"]) for x in lines] == [(None, 1), (None, 2)]
  assert "not finite; nothing was changed (2 so far)" in caplog.text
  # A skipped update does not use up the warm-up.
  assert lines[0]["learning_rate"] == lines[1]["learning_rate"]
