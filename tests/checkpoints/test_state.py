"""Parameters are drawn the same however fast their program was compiled."""

import os
import subprocess
import sys

import pytest

DRAW = """
import os

import jax
import numpy as np
import optax

from clip_jax import cpu_compiler, sharding
from clip_jax.checkpoints import state
from clip_jax.models import variants

model = variants.create_model(
  "tiny-vit",
  overrides={
    "image": {"image_size": 16, "depth": 1},
    "text": {"vocab_size": 97, "depth": 1},
  },
)
mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
quick = state.init_state(model, optax.adam(1.0), mesh, seed=3)
# Where the flags name an option, it is left alone: XLA has read them by now.
options = cpu_compiler.options(jax.devices()[0], run_once=True)
assert "xla_backend_optimization_level" in options
os.environ["XLA_FLAGS"] = " ".join(f"--{name}=3" for name in options)
assert cpu_compiler.options(jax.devices()[0], run_once=True) is None
slow = state.init_state(model, optax.adam(1.0), mesh, seed=3)
jax.tree.map(np.testing.assert_array_equal, slow, quick)
"""


@pytest.mark.slow
def test_the_quickly_compiled_program_draws_the_same_parameters():
  # Not in this process: the tests' own flags compile differently.
  clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  subprocess.run([sys.executable, "-c", DRAW], env=clean, check=True)
