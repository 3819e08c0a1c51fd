"""Programs for CPUs get options of the compiler, others none."""

import types

import jax
import pytest

from clip_jax import cpu_compiler

EMITTERS = "xla_cpu_use_fusion_emitters"
LEVEL = "xla_backend_optimization_level"


@pytest.fixture
def no_flags(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.usefixtures("no_flags")
def test_a_cpu_has_options_that_its_compiler_knows():
  device = jax.devices()[0]
  options = cpu_compiler.options(device)
  assert options == {EMITTERS: False}
  assert cpu_compiler.options(device, run_once=True) == {
    EMITTERS: False,
    LEVEL: "1",
  }
  double = jax.jit(lambda x: 2 * x, compiler_options=options)
  assert double(3) == 6


@pytest.mark.usefixtures("no_flags")
def test_other_devices_have_none():
  tpu = types.SimpleNamespace(platform="tpu")
  assert cpu_compiler.options(tpu) is None


def test_what_the_user_sets_is_left_alone(monkeypatch):
  device = jax.devices()[0]
  monkeypatch.setenv("XLA_FLAGS", f"--{EMITTERS}=true")
  assert cpu_compiler.options(device) is None
  assert cpu_compiler.options(device, run_once=True) == {LEVEL: "1"}


@pytest.mark.usefixtures("no_flags")
def test_an_option_that_this_compiler_lacks_is_left_out(monkeypatch):
  wanted = {EMITTERS: False, "xla_cpu_is_from_the_future": True}
  monkeypatch.setattr(cpu_compiler, "_ALWAYS", wanted)
  assert cpu_compiler.options(jax.devices()[0]) == {EMITTERS: False}
