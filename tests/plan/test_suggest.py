"""A search finds the settings that fit, and says what it would keep."""

import dataclasses
import json

import pytest

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.plan import (
  jobs,
  memory,
  planner,
  suggest,
)


def choice(**changes):
  fields = {"fsdp": 1, "remat": "none", "micro_batches": 1, "method": "auto"}
  return suggest.Choice(**{**fields, **changes})


def test_choices_are_ordered_by_what_they_compute_again():
  choices = [
    choice(),
    choice(fsdp=8),
    choice(fsdp=64),
    choice(remat="dots_no_batch"),
    choice(remat="full"),
    choice(remat="none", micro_batches=2),
    choice(remat="full", micro_batches=4),
  ]
  assert sorted(choices, key=lambda entry: entry.order)[:4] == choices[:4]
  assert max(choices, key=lambda entry: entry.order) == choices[-1]


class _Fake:
  """Plans by a formula, in place of compilations."""

  def __init__(self, available):
    self.available = available
    self.compiled = []

  def make_plan(self, job, with_loss):
    config = job.config
    self.compiled.append(config)
    kept = {"none": 64, "dots_no_batch": 16, "full": 4}
    rest = kept[config.model_overrides["image"]["remat"]] * 2**20
    rest //= config.micro_batches
    state = memory.shard_bytes((job.state, job.batch))
    peak = state + rest
    return planner.Plan(
      job=job,
      fits=peak <= self.available,
      peak_bytes=peak,
      available_bytes=self.available,
      compiler_message=None,
      memory={
        "parameters": memory.shard_bytes(job.state.params),
        "optimizer": memory.shard_bytes(job.state.opt_state),
        "batch_statistics": 0,
        "average": 0,
        "batch": 0,
        "rest": rest,
        "loss_alone": None,
      },
      flops_analytic=1,
      flops_compiled=None,
      collectives=None,
      step_parts_seconds=None,
      compile_seconds=0.0,
      reasons={},
    )


def search(monkeypatch, config, local, available):
  fake = _Fake(available)
  monkeypatch.setattr(memory, "available_bytes", lambda target: available)
  monkeypatch.setattr(planner, "make_plan", fake.make_plan)
  return suggest.suggest(config, local), fake


def state_bytes(config, local):
  job = jobs.make_job(config, local)
  return memory.shard_bytes((job.state, job.batch)) + memory.shard_bytes(
    job.state.params
  )


def test_the_search_begins_with_what_costs_nothing(monkeypatch, config, local):
  found, fake = search(monkeypatch, config, local, 2**30)
  assert found.fits
  assert len(fake.compiled) == 1
  assert found.overrides == [
    "mesh.data=8",
    "mesh.fsdp=1",
    "model_overrides.image.remat=none",
    "model_overrides.text.remat=none",
    "micro_batches=1",
    "loss.method=auto",
  ]


def test_the_search_trades_work_for_memory(monkeypatch, config, local):
  available = state_bytes(config, local) + 18 * 2**20
  found, fake = search(monkeypatch, config, local, available)
  assert found.fits
  assert found.choice.remat == "dots_no_batch"
  assert len(fake.compiled) < 12


def bounds_of(config, local):
  return suggest._Search(
    lambda changes: jobs.make_job(
      config_lib.with_overrides(config, changes), local
    )
  )


def test_what_towers_keep_is_told_without_the_compiler(file, local):
  config = config_lib.load(
    file,
    [
      "data.train=nowhere",
      "model_overrides.image.depth=24",
      "batch_size=1024",
      "precision=bfloat16",
    ],
  )
  bounds = bounds_of(config, local)
  none, full = (
    bounds.least(choice(remat=remat)) - bounds.state(1)
    for remat in ("none", "full")
  )
  # What goes from layer to layer, in bfloat16: 128 pairs a device.
  rows, length, width = 128, (32 // 8) ** 2 + 1, 24
  carried = 24 * rows * length * width * 2
  assert carried < full < 3 * carried
  assert none > 10 * full
  halves = bounds.least(choice(remat="full", micro_batches=2))
  assert halves - bounds.state(1) == pytest.approx(full / 2, rel=0.1)


def test_what_a_resnet_keeps_is_the_same_with_blocks_in_a_loop(local):
  config = config_lib.load("tests/configs/tiny_rn.py", ["data.train=nowhere"])
  least = []
  for scan in (False, True):
    sizes = {"width": 32, "depths": (1, 5), "scan": scan}
    config = dataclasses.replace(config, model_overrides={"image": sizes})
    bounds = bounds_of(config, local)
    least.append(bounds.least(choice(remat="full")))
  assert least[0] == least[1]


def test_what_cannot_hold_its_parameters_is_split(monkeypatch, config, local):
  # Of the parameters whole there is no room; split by eight they are small.
  available = state_bytes(config, local) // 4 + 2**20
  found, _ = search(monkeypatch, config, local, available)
  assert found.choice.fsdp == 8


def test_where_nothing_fits_the_closest_is_shown(monkeypatch, config, local):
  found, _ = search(monkeypatch, config, local, 2**18)
  assert not found.fits
  assert found.choice.fsdp == 8


def test_a_search_prints_overrides(command, monkeypatch, file):
  fake = _Fake(2**30)
  monkeypatch.setattr(planner, "make_plan", fake.make_plan)
  arguments = ["--config", file, "--topology", "local", "--suggest", "--json"]
  code, text = command(*arguments)
  assert code == 0
  found = json.loads(text)
  assert "mesh.fsdp=1" in found["overrides"]
  assert found["tried"][0]["fits"] is True


def test_unknown_memory_cannot_be_searched(monkeypatch, config, local):
  monkeypatch.setattr(memory, "available_bytes", lambda target: None)
  with pytest.raises(errors.UserError, match="is not known"):
    suggest.suggest(config, local)
