"""The comparison of objectives, tools/objectives.py."""

import json
import shutil
import sys

import pytest

import by_path
from clip_jax import config as config_lib
from clip_jax import errors

objectives = by_path.load("tools/objectives.py")


def curve(kind, seed, accuracies):
  return {
    "objective": kind,
    "seed": seed,
    "images": [1000, 2000, 4000],
    "all": accuracies,
    "unseen": accuracies,
    "flops_per_image": 1e6,
    "seconds": 1,
  }


def test_seeds_that_never_reach_the_target_are_told_and_count():
  curves = [
    curve("contrastive", 0, [0.6, 0.7, 0.8]),
    curve("contrastive", 1, [0.5, 0.6, 0.8]),
    curve("bow", 0, [0.1, 0.2, 0.3]),
    curve("bow", 1, [0.1, 0.2, 0.6]),
  ]
  rows = objectives.summarise(curves, 0.6)
  first, bow = rows
  assert first["ratio"] == {
    "value": pytest.approx(1),
    "bound": "=",
    "pairs": 2,
    "reached": 2,
  }
  assert bow["images_to_target"] == [None, pytest.approx(4000)]
  assert bow["reached"] == 1
  assert bow["ratio"]["bound"] == ">" and bow["ratio"]["pairs"] == 2
  lines = objectives._table(rows, 0.6).splitlines()
  assert any("> 2.83 (1 of 2)" in line for line in lines)
  assert any(" 1.00 " in line for line in lines)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--seeds", "0"], "--seeds: must be a whole number, at least 1; got '0'"),
    (["--target", "60"], "--target: must be from 0 to 1; got '60'"),
    (["--config.seed=3"], "--config.seed is set for each run by --seeds"),
    (["--config.objective.kind=lm"], "is set for each run by --kinds"),
  ],
)
def test_what_would_give_an_empty_or_another_comparison_is_refused(
  given, message, tmp_path, monkeypatch, capsys
):
  words = ["objectives.py", "--out", str(tmp_path / "out"), *given]
  monkeypatch.setattr(sys, "argv", words)
  with pytest.raises(SystemExit):
    objectives.main()
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_curve_of_another_model_is_not_taken_for_finished(
  tmp_path, monkeypatch
):
  """A start model or a curve of before, and a config that asks for another."""
  trained = []

  def train(config, workdir):
    trained.append(config)
    raise errors.UserError("trains")

  monkeypatch.setattr(objectives.loop, "train", train)

  def measure(*changes):
    return objectives.measure("bow", 0, tmp_path, changes)

  with pytest.raises(errors.UserError, match="trains"):
    measure()
  config = config_lib.load(objectives.CONFIG, ["objective.kind=bow"])
  (tmp_path / "bow-0").mkdir()
  curve = {
    "start": objectives.start_spec(config),
    "config": json.loads(config_lib.to_json(trained.pop())),
  }
  (tmp_path / "bow-0" / "curve.json").write_text(json.dumps(curve))
  assert measure() == curve and not trained
  wider = "model_overrides.text.width=64"
  with pytest.raises(errors.UserError, match=r"differs .* in text\. Give ano"):
    measure(wider)
  shutil.rmtree(tmp_path / "start-bow-0")
  # A run that goes on takes the model that its workdir holds.
  (tmp_path / "bow-0" / "config.json").touch()
  with pytest.raises(errors.UserError, match="is gone"):
    measure(wider)
  (tmp_path / "bow-0" / "config.json").unlink()
  with pytest.raises(errors.UserError, match="trains"):
    measure(wider)
