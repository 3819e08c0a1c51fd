"""The verb finds what is wrong with real runs, made wrong on purpose."""

import csv
import dataclasses
import json
import time

import pytest

from clip_jax import cli
from clip_jax import config as config_lib
from clip_jax.data import sources
from clip_jax.doctor import diagnosis, finding, learning, machine

TINY = "tests/configs/tiny_bow.py"


@pytest.fixture
def doctor(capsys, monkeypatch):
  """Returns the findings by name, of a tiny run that times little."""
  monkeypatch.setattr(learning, "_TIMED_SECONDS", 0.0)
  monkeypatch.setattr(machine, "_GATHERED_BYTES", 2**16)

  def run(*overrides, steps=2):
    settings = [f"--config.{override}" for override in overrides]
    code = cli.run(
      ["doctor", f"--config={TINY}", *settings, f"--steps={steps}", "--json"]
    )
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert code == (answer["verdict"] == "problem")
    wrong = [x for x in answer["findings"] if x["verdict"] == "problem"]
    told = (
      f"Error: Problems were found: {', '.join(x['check'] for x in wrong)}."
    )
    assert (told in shown.err.splitlines()) == bool(wrong)
    return {found["check"]: found for found in answer["findings"]}

  return run


@pytest.fixture
def pairs(tmp_path):
  """Writes a table of pairs, of which some images are cut; its address."""

  def write(count, *, damaged):
    source = sources.open_source("builtin:two_digits/test")
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow(["image", "caption"])
      for i in range(count):
        data = source[i].image
        path = tmp_path / f"{i}.png"
        path.write_bytes(data[:60] if i < damaged else data)
        rows.writerow([path.name, f"photo {i}"])
    return f"data.train=csv:{tmp_path}/pairs.csv?image=image&caption=caption"

  return write


def test_a_learning_rate_that_does_nothing_is_named(doctor):
  found = doctor("optim.peak_lr=1e-12")
  overfit = found["overfit one batch"]
  assert "raise optim.peak_lr" in overfit["message"]
  assert overfit["facts"]["moved"] < 1e-9
  assert found["collectives"]["facts"]["psum_bytes_per_second"] > 0
  assert found["duplicate captions"]["facts"]["sampled"] > 99
  assert found["records"]["verdict"] == finding.OK


def test_the_step_is_timed_on_rows_as_long_as_the_captions():
  changes = ["model_overrides.text.context_length=77", "batch_size=8"]
  setup = learning.prepare(config_lib.load(TINY, changes))
  with setup.run.batches(0) as batches:
    assert next(batches)["tokens"].shape[1] == 16  # Of 77, as in training.


@pytest.mark.slow
@pytest.mark.parametrize(
  "overrides",
  [
    ("model_overrides.init_logit_scale=100", "optim.peak_lr=1"),
    (
      "loss.kind=sigmoid",
      "model_overrides.init_logit_bias=-10",
      "optim.peak_lr=0.3",
    ),
  ],
  ids=["softmax", "sigmoid"],
)
def test_a_collapse_from_a_bad_start_is_a_problem(doctor, overrides):
  found = doctor(*overrides, steps=40)["overfit one batch"]
  facts = found["facts"]
  # The loss has fallen by far more than half, to that of knowing nothing.
  assert facts["last_loss"] < facts["first_loss"] / 2
  assert facts["last_loss"] == pytest.approx(facts["chance"], rel=0.02)
  assert found["verdict"] == finding.PROBLEM
  assert "the same embedding" in found["message"]


@pytest.mark.slow
def test_one_record_is_a_problem(doctor, pairs):
  found = doctor(pairs(1, damaged=0))
  assert found["duplicate images"]["verdict"] == finding.PROBLEM
  assert found["overfit one batch"]["verdict"] == finding.PROBLEM


@pytest.mark.parametrize("size", [4, 12])
def test_a_batch_that_training_refuses_is_refused_alike(doctor, size):
  found = doctor(f"batch_size={size}")
  assert found["config"]["verdict"] == finding.PROBLEM
  assert f"batch_size={size} must be divisible by the 8 dev" in str(
    found["config"]
  )
  assert found["devices"]["facts"]["devices"] == 8


def test_what_was_found_before_memory_ran_out_stays(doctor, monkeypatch):
  def run_out(*args, **kwargs):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

  monkeypatch.setattr(learning, "overfit", run_out)
  found = doctor()
  assert found["overfit one batch"]["verdict"] == finding.PROBLEM
  assert "Take a smaller batch" in found["overfit one batch"]["message"]
  assert found["records"]["verdict"] == finding.OK
  monkeypatch.setattr(learning, "overfit", lambda *args, **kwargs: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    doctor()


@pytest.mark.parametrize("damaged", [8, 16])
def test_broken_images_are_told_beside_the_rest(doctor, pairs, damaged):
  found = doctor(pairs(16, damaged=damaged))
  records = found["records"]
  assert records["verdict"] == finding.PROBLEM
  assert records["facts"]["bad_fraction"] == damaged / 16
  assert "data.max_bad_fraction allows 1.00%" in records["message"]
  assert found["duplicate captions"]["verdict"] == finding.OK
  if damaged == 16:
    assert "bad records in a row" in found["overfit one batch"]["message"]


def test_a_config_of_another_machine_is_tried_on_this_one():
  changes = ["mesh.data=2", "mesh.fsdp=8", "data.workers=16", "batch_size=48"]
  config = config_lib.load(TINY, changes)
  setup = learning.prepare(config)
  assert dict(setup.run.program.mesh.shape) == {"data": 8, "fsdp": 1}
  assert "do not fit the 8 devices here" in setup.mesh_refusal
  small = setup.run.program.config
  assert (small.batch_size, small.data.workers, setup.workers) == (48, 0, 16)
  config = dataclasses.replace(config, batch_size=52)
  assert learning.prepare(config).run.program.config.batch_size == 48


class _Slow:
  """A source that takes its time."""

  def __init__(self, source, seconds):
    self._source, self._seconds = source, seconds

  def __len__(self):
    return len(self._source)

  def __getitem__(self, slot):
    time.sleep(self._seconds)
    return self._source[slot]


@pytest.mark.slow
def test_a_loader_that_is_slower_than_the_step_is_told():
  config = config_lib.load(TINY, [])
  setup = learning.prepare(config)
  seconds = 0.02
  source = _Slow(setup.run.source, seconds)
  run = dataclasses.replace(setup.run, source=source)
  trial = learning.overfit(dataclasses.replace(setup, run=run), steps=2)
  # The threads sleep at the same time: no faster than that.
  fastest = config.data.threads / seconds
  found = diagnosis.balance(
    dataclasses.replace(trial, step_seconds=trial.loader_seconds / 2)
  )
  assert 0 < found.facts["loader_images_per_second"] < 1.1 * fastest
  assert found.verdict == finding.WARNING
  assert "training will wait" in found.message
  assert found.facts["bottleneck"] == "read"


def test_a_loader_that_is_faster_than_the_step_is_fine():
  config = config_lib.load(TINY, [])
  trial = learning.overfit(learning.prepare(config), steps=1)
  found = diagnosis.balance(
    dataclasses.replace(trial, step_seconds=trial.loader_seconds * 2)
  )
  assert found.verdict == finding.OK


def test_steps_need_a_config(capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.run(["doctor", "--steps=3"])
  assert stopped.value.code == 2
  assert "--config FILE" in capsys.readouterr().err
