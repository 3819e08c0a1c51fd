import importlib.util
import os

import jax
import pytest

from clip_jax import errors
from clip_jax.plan import environment, hardware, topology


@pytest.mark.parametrize(
  ("name", "chip", "shape"),
  [
    ("v5e:16x16", "v5e", (16, 16)),
    ("V5LITEPOD:2x4", "v5e", (2, 4)),
    ("v4:4x4x8", "v4", (4, 4, 8)),
    ("v5p:4x4x4", "v5p", (4, 4, 4)),
    ("v6e:8x16", "v6e", (8, 16)),
    ("v4:2x2x1", "v4", (2, 2, 1)),
    ("v5p:16x16x24", "v5p", (16, 16, 24)),
  ],
)
def test_names_are_a_chip_and_a_shape(name, chip, shape):
  found, sides = topology.parse(name)
  assert (found.name, sides) == (chip, shape)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e", "Unknown topology 'v5e'; give 'local', or a chip and the shape"),
    ("v5e:16", "Unknown topology"),
    ("v9:4x4", "Unknown chip 'v9'.*Known: v4, v5e, v5p, v6e"),
    ("v4:4x4", "slices of v4 have 3 sides, such as v4:4x4x4"),
    ("v5e:4x4x4", "slices of v5e have 2 sides, such as v5e:16x16"),
    ("v5e:" + "9" * 5000 + "x4", "Unknown topology 'v5e:9{36}'"),
    ("v5e:0x4", "no slice v5e:0x4; of v5e there are 1x1, 2x2, 2x4, .* 16x16"),
    ("v5e:16x32", "no slice v5e:16x32"),
    ("v6e:2x8", "no slice v6e:2x8"),
    ("v4:4x4x6", "such as 4x4x8, up to 4,096 chips"),
    ("v4:8x4x4", "ascending multiples of 4"),
    ("v5p:16x16x28", "no slice v5p:16x16x28"),
  ],
)
def test_other_names_are_refused(name, message):
  with pytest.raises(errors.UserError, match=message):
    topology.make_topology(name)


@pytest.mark.parametrize(
  ("name", "wrap"),
  [
    ("v5e:16x16", (True, True)),
    ("v5e:8x16", (False, True)),
    ("v6e:4x4", (False, False)),
    ("v4:4x4x8", (True, True, True)),
    ("v5p:2x4x4", (False, False, False)),
  ],
)
def test_sides_close_to_rings_as_in_the_pods(name, wrap):
  assert topology.rings(*topology.parse(name)) == wrap


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"pip install 'jax-clip\[plan\]'"):
    topology.make_topology("v5e:2x2")


def test_local_devices_are_those_of_jax():
  target = topology.make_topology("local")
  assert target.devices == tuple(jax.devices())
  assert target.chip is None
  assert target.is_local


def test_the_environment_stays_as_it_is():
  before = dict(os.environ)
  with topology._environment():
    assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
  assert dict(os.environ) == before


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"),
    ("TPU v6 lite", "v6e"),
  ],
)
def test_device_kinds_name_chips(kind, name):
  assert hardware.chip_of(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3", "TPU v3"])
def test_other_device_kinds_have_no_figures(kind):
  assert hardware.chip_of(kind) is None


def test_clocks_give_the_peaks():
  # Matrix units of 128 x 128; for v6e the clock is an assumption.
  for name, units in {"v4": 8, "v5e": 4, "v5p": 8}.items():
    chip = hardware.CHIPS[name]
    peak = units * 128 * 128 * 2 * chip.clock_hertz
    assert peak == pytest.approx(chip.peak_flops, rel=0.01)


def test_an_unused_libtpu_is_silent_and_a_used_one_untouched(monkeypatch):
  for name in environment.WITHOUT_TPU:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(environment, "has_tpu", lambda: True)
  environment.quiet_libtpu()
  assert not environment.WITHOUT_TPU.keys() & os.environ.keys()
  monkeypatch.setattr(environment, "has_tpu", lambda: False)
  monkeypatch.setenv("TPU_WORKER_ID", "3")
  environment.quiet_libtpu()
  assert os.environ["TPU_WORKER_HOSTNAMES"] == "localhost"
  assert os.environ["TPU_WORKER_ID"] == "3"
  for name in environment.WITHOUT_TPU:  # Set by no monkeypatch.
    os.environ.pop(name, None)
