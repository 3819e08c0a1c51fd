"""Plans against what a run on this machine takes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# Runs by itself: a process's peak memory is measured, so no other test may
# have left any, and the model is large against what Python and JAX take.
SCRIPT = """
import json, pathlib, re
import jax, numpy as np
from clip_jax import config as config_lib
from clip_jax.plan import jobs, planner, topology

def make_job(**fields):
  config = config_lib.default_config()
  config.model = "ViT-B-32"
  for part in ("image", "text"):
    config.model_overrides[part] = {"depth": 2, **fields}
  config.batch_size = 32
  config.steps = 10
  config.precision = "float32"
  config.optim.warmup_steps = 1
  return jobs.make_job(config, topology.make_topology("local"))

def resident(field):
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(re.search(field + r":\\s+(\\d+)", status)[1])

def forget_peak():
  pathlib.Path("/proc/self/clear_refs").write_text("5")

job = make_job()
plan = planner.make_plan(job, with_loss=False)
run = job.program.make_step().lower(job.state, job.batch).compile()
before = resident("VmRSS")
state = job.program.init_state()
batch = jax.tree.map(
  lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), job.batch
)
jax.block_until_ready((state, batch))
forget_peak()
for _ in range(2):
  state, measured = run(state, batch)
  jax.block_until_ready((state, measured))
peak = resident("VmHWM") - before
unrolled = make_job(scan=False)
traced = unrolled.program.make_step().trace(unrolled.state, unrolled.batch)
# On CPUs a layer that is read once does not project what it reads.
counted = traced.lower(lowering_platforms=("tpu",))
print(json.dumps({
  "planned_bytes": plan.peak_bytes,
  "measured_bytes": peak,
  "planned_flops": plan.flops_compiled,
  "analytic_flops": plan.flops_analytic,
  "measured_flops": counted.cost_analysis()["flops"],
}))
"""


@pytest.fixture(scope="module")
def figures():
  if not pathlib.Path("/proc/self/clear_refs").exists():
    pytest.skip("the system does not tell a process's peak memory")
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_planned_peak_is_what_a_process_grows_by(figures):
  ratio = figures["measured_bytes"] / figures["planned_bytes"]
  assert ratio == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_the_planned_flops_are_what_the_compiler_counts_without_loops(figures):
  # The compiler counts elementwise work, too, which is one per cent here.
  ratio = figures["measured_flops"] / figures["planned_flops"]
  assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_the_compiled_flops_are_the_analytic_ones(figures):
  # Two layers: the first ones, which need no gradient of their input, show.
  ratio = figures["planned_flops"] / figures["analytic_flops"]
  assert 0.97 <= ratio <= 1.06
