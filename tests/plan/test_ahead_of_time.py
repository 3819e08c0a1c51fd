"""Steps compiled for TPUs that are not here."""

import importlib.util

import pytest

from clip_jax import config as config_lib
from clip_jax.plan import jobs, planner, presentation, suggest, topology

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is missing: pip install 'jax-clip[plan]'",
  ),
]


def make_config(*changes):
  """A model that compiles fast: a layer a tower, and few words."""
  config = config_lib.default_config()
  config.model = "tiny-vit"
  tower = {"width": 128, "depth": 1, "heads": 2}
  config.model_overrides.image = dict(tower)
  config.model_overrides.text = {**tower, "vocab_size": 1024}
  config.batch_size = 256
  config.steps = 100
  config.optim.warmup_steps = 1
  for change in changes:
    config_lib.apply_override(config, change)
  return config


@pytest.fixture(scope="module")
def plan():
  target = topology.make_topology("v5e:4x4")
  config = make_config("mesh.data=4", "mesh.fsdp=4")
  return planner.make_plan(jobs.make_job(config, target))


@pytest.mark.parametrize(
  ("name", "chips"),
  [("v4:2x2x2", 8), ("v5e:1x1", 1), ("v5p:4x4x4", 64), ("v6e:16x16", 256)],
)
def test_every_chip_can_be_described(name, chips):
  target = topology.make_topology(name)
  assert len(target.devices) == chips
  places = {tuple(device.coords) for device in target.devices}
  assert len(places) == chips  # A device is a whole chip.


def test_a_plan_for_a_slice_tells_everything(plan):
  found = presentation.to_dict(plan, price_per_chip_hour=1.0)
  assert found["fits"] is True
  assert found["device"] == "TPU v5 lite"
  assert not found["reasons"]
  low, high = found["step_seconds"]
  assert 0 < low < high < 1
  assert found["images_per_second"] == [256 / high, 256 / low]
  assert 0 < found["memory"]["loss_alone"] < found["peak_bytes"]
  assert found["memory"]["rest"] > 0
  assert all(x["seconds"] > 0 for x in found["collectives"].values())
  assert found["cost"][1] > found["cost"][0] > 0


def test_parameters_are_gathered_along_one_side_of_the_slice(plan):
  kinds = set(plan.collectives)
  assert {"all-gather", "all-reduce", "reduce-scatter"} <= kinds
  network = planner.make_network(plan.job.target, plan.job.mesh)
  row = [network.coordinates[i] for i in range(4)]
  assert len({place[1] for place in row}) == 1


# 1.6 billion numbers, which with their moments fill a chip.
MANY_WORDS = ("model_overrides.text.vocab_size=12582912", "batch_size=16")


def test_what_is_too_large_says_so_in_the_compilers_words():
  target = topology.make_topology("v5e:1x1")
  plan = planner.make_plan(
    jobs.make_job(make_config(*MANY_WORDS), target), with_loss=False
  )
  assert plan.fits is False
  assert "exceeds available HBM" in plan.compiler_message
  assert plan.peak_bytes > plan.available_bytes == target.chip.memory_bytes
  assert plan.step_seconds is None
  # It says what helps.
  assert any("smaller batch" in said for said in presentation.advice(plan))


def test_a_search_splits_what_is_too_large():
  target = topology.make_topology("v5e:2x2")
  found = suggest.suggest(make_config(*MANY_WORDS), target)
  assert found.fits
  assert found.choice.fsdp > 1
  assert found.plan.peak_bytes <= target.chip.memory_bytes
  assert f"mesh.fsdp={found.choice.fsdp}" in found.overrides
