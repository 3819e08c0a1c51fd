"""What cards and reports tell of a run's own evaluations."""

import json

import pytest
from scipy import stats

from clip_jax import config as config_lib
from clip_jax.results import gathering, tables


def _fine_tuned(workdir, held_out):
  """Writes a run that was measured on its held-out data and on another set."""
  config = config_lib.default_config()
  config.steps = 4
  config.data.train = "folder:pets"
  config.data.held_out = held_out
  config.evals = {
    "own": {"task": "auto", "data": "held_out"},
    "other": {"task": "zero_shot", "data": "builtin:digits/test"},
  }
  four = {"top1": 0.75, "top5": 1.0, "mean_top1_top5": 0.875, "classes": 4}
  ten = {"top1": 0.5, "top5": 0.9, "examples": 40, "classes": 10}
  own = {f"eval/own/{x}": y for x, y in (four | {"examples": 12}).items()}
  other = {f"eval/other/{x}": y for x, y in ten.items()}
  workdir.mkdir()
  line = json.dumps({"step": 4, **own, **other})
  (workdir / "metrics.jsonl").write_text(line + "\n")
  (workdir / "config.json").write_text(config_lib.to_json(config))


@pytest.mark.parametrize("share", [0.2, 0.25])
def test_evaluations_in_training_have_an_interval_and_a_data_address(
  tmp_path, share
):
  _fine_tuned(tmp_path / "run", share)
  other, own = sorted(gathering.read([tmp_path]).results, key=lambda x: x.data)
  assert own.data == "folder:pets?split=held_out"
  for result, right, examples in ((own, 9, 12), (other, 20, 40)):
    exact = stats.binomtest(right, examples).proportion_ci(method="exact")
    assert result.interval("top1") == pytest.approx((exact.low, exact.high))


def test_a_mean_of_several_few_shot_draws_has_no_interval_of_one(tmp_path):
  config = config_lib.default_config()
  config.steps, config.data.train = 4, "folder:pets"
  config.evals = {
    "few": {"task": "few_shot_lsr", "data": "builtin:digits/test"},
  }
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  line = {"step": 4, "eval/few/top1": 0.75, "eval/few/examples": 12}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  (found,) = gathering.read([tmp_path]).results
  assert found.fraction("top1") == 0.75
  assert found.interval("top1") is None


def test_an_evaluation_of_a_runs_held_out_data_replaces_that_in_training(
  tmp_path,
):
  _fine_tuned(tmp_path / "run", 0.2)
  values = {"task": "zero_shot", "data": "folder:pets?split=held_out"}
  values |= {"top1": 1.0, "step": 4, "model": str(tmp_path / "run")}
  (tmp_path / "a.json").write_text(json.dumps(values))
  found = gathering.read([tmp_path]).results
  assert {x.data: x.fraction("top1") for x in found} == {
    "folder:pets?split=held_out": 1.0,
    "builtin:digits/test": 0.5,
  }


def test_the_first_five_of_five_classes_are_no_measure(tmp_path):
  _fine_tuned(tmp_path / "run", 0.2)
  other, own = sorted(gathering.read([tmp_path]).results, key=lambda x: x.data)
  assert [name for name, *_ in tables.measured(own)] == ["top1"]
  assert [name for name, *_ in tables.measured(other)] == ["top1", "top5"]
