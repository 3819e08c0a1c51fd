"""Plans for the devices of the tests: eight simulated ones."""

import collections
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from clip_jax import config as config_lib
from clip_jax.models import flops
from clip_jax.plan import (
  compiling,
  jobs,
  memory,
  planner,
  presentation,
  topology,
)

CONTRACT = {
  "fits",
  "peak_bytes",
  "flops_analytic",
  "flops_compiled",
  "collectives",
  "step_seconds",
  "images_per_second",
}
SPLIT = ["mesh.data=4", "mesh.fsdp=2"]


@pytest.fixture(scope="module")
def plan_and_text(file, local):
  """A plan, and the text of the step that it has compiled."""
  config = config_lib.load(file, ["data.train=nowhere", *SPLIT])
  compiled = []

  def compile_program(lowered, **options):
    compiled.append(compiling_program(lowered, **options))
    return compiled[-1]

  compiling_program = compiling.compile_program
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiling, "compile_program", compile_program)
    plan = planner.make_plan(jobs.make_job(config, local, examples=1000))
  return plan, compiled[0].as_text()


@pytest.fixture(scope="module")
def plan(plan_and_text):
  return plan_and_text[0]


@pytest.mark.slow
def test_compiled_flops_are_the_analytic_ones(plan):
  # The towers are so small that the first layer, which needs no gradient of
  # its input, and rematerialisation show.
  assert 0.9 < plan.flops_compiled / plan.flops_analytic < 1.1


@pytest.mark.parametrize(
  ("changes", "tokens"),
  [
    (["model_overrides.image.patch_dropout=0.75"], None),
    (["batch_size=128"], 5),
    (["optim.frozen=^image/"], None),
    (["optim.frozen=^image/(?!projection)"], None),
  ],
)
def test_analytic_flops_are_of_what_is_computed(file, local, changes, tokens):
  # What JAX traces, without anything computed twice.
  plain = [f"model_overrides.{part}.remat=none" for part in ("image", "text")]
  config = config_lib.load(file, ["data.train=nowhere", *plain, *changes])
  job = jobs.make_job(config, local, caption_tokens=tokens)
  traced = flops.count(job.program.make_step(), job.state, job.batch)
  assert planner.analytic_flops(job) == pytest.approx(traced, rel=0.03)


@pytest.fixture
def chip_job(plan):
  """The job of a plan, as if its devices were chips."""
  chip, shape = topology.parse("v5e:2x4")
  target = dataclasses.replace(plan.job.target, chip=chip, shape=shape)
  return dataclasses.replace(plan.job, target=target)


def test_a_time_stands_on_what_is_traced_and_the_compilers_cycles(chip_job):
  text = """ENTRY %main (x: f32[]) -> f32[] {
  ROOT %x = f32[] parameter(0), backend_config={"estimated_cycles":"3"}
}
"""
  work = planner.Work(8, 5, collections.Counter(), frozenset())
  found = planner._step_parts(chip_job, work, text)
  chip = chip_job.target.chip
  moved = 5 + 2 * memory.shard_bytes(chip_job.state)
  assert found == {
    "compute": 1 / chip.peak_flops,
    "memory": moved / chip.memory_bandwidth,
    "compiler": 3 / chip.clock_hertz,
  }


def test_products_and_hidden_kernels_of_a_program_are_told():
  def double(x_ref, out_ref):
    out_ref[...] = 2 * x_ref[...]

  def program(x, w):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    x = pl.pallas_call(double, out_shape=shape, interpret=True)(x)
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]

  arguments = jnp.ones((8, 16)), jnp.ones((16, 16))
  work = planner.read_work(jax.make_jaxpr(program)(*arguments).jaxpr)
  assert work.hidden == {"pallas_call"}
  assert work.flops == 3 * 2 * 8 * 16 * 16
  assert work.product_bytes == 3 * 4 * (8 * 16 + 16 * 16 + 8 * 16)


@pytest.mark.parametrize("duplicates", ["mask", "positive"])
def test_runs_that_look_for_duplicates_can_be_planned(
  file, local, duplicates, monkeypatch
):
  config = config_lib.load(
    file, ["data.train=nowhere", f"loss.duplicates={duplicates}"]
  )
  job = jobs.make_job(config, local)
  ids = job.batch["image_ids"]
  assert (ids.shape, ids.dtype) == ((32,), jnp.int32)
  job.program.make_step().lower(job.state, job.batch)
  lowered = []
  monkeypatch.setattr(compiling, "compile_program", lowered.append)
  monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)
  memory.loss_bytes(job)
  (arguments, _) = lowered[0].in_avals
  assert sum(x.dtype == jnp.int32 for x in jax.tree.leaves(arguments)) == 2


def test_parts_of_the_memory_add_up(plan):
  parts = dict(plan.memory)
  loss = parts.pop("loss_alone")
  assert sum(parts.values()) == plan.peak_bytes
  assert 0 < loss < plan.peak_bytes
  assert parts["rest"] > 0
  params = sum(x.size for x in jax.tree.leaves(plan.job.state.params))
  # Half of the large arrays, and all of the small ones.
  assert 0.5 * 4 * params <= parts["parameters"] <= 0.55 * 4 * params
  # Two moments, and counters.
  assert parts["optimizer"] == pytest.approx(2 * parts["parameters"], rel=0.01)
  images = 32 // 8 * 32 * 32 * 3
  assert parts["batch"] == images + 4 * (32 // 8) * (16 + 1)


FIVE_TOKENS = (
  "8 rows of 16 tokens for 16 captions (5 tokens in the mean, spread as CC3M's)"
)


@pytest.mark.parametrize(
  ("tokens", "words", "shape"),
  [
    # Each of 8 devices packs its 16 captions into rows of 16 tokens.
    (None, "a row of 16 tokens for each caption", (128, 16)),
    (5, FIVE_TOKENS, (64, 16)),
  ],
)
def test_texts_lie_in_memory_as_in_a_run(file, local, tokens, words, shape):
  config = config_lib.load(file, ["data.train=nowhere", "batch_size=128"])
  job = jobs.make_job(config, local, caption_tokens=tokens)
  assert job.texts == words
  arrays = jax.tree.leaves(job.batch["tokens"])
  assert {x.shape for x in arrays if x.ndim == 2} == {shape}
  assert all(x.sharding.num_devices == 8 for x in arrays)


# A line of a compiled program that starts an exchange.
EXCHANGE = re.compile(
  r" = (.*) (all-gather|all-reduce|all-to-all|collective-permute|"
  r"reduce-scatter)(?:-start)?\(.*op_name=\"([^\"]*)"
)


def test_a_program_exchanges_what_its_trace_does_and_single_numbers(
  plan_and_text,
):
  plan, text = plan_and_text
  found = [match.groups() for match in EXCHANGE.finditer(text)]
  asked = [kind for _, kind, name in found if "shard_map" in name]
  added = [shapes for shapes, _, name in found if "shard_map" not in name]
  assert set(asked) == plan.collectives.keys()
  assert {"all-gather", "reduce-scatter"} < set(asked)
  # The norms of what devices hold in parts, and the bad records.
  assert added
  for shapes in added:
    assert set(re.findall(r"\[(.*?)\]", shapes)) == {""}


def test_what_a_cpu_does_not_tell_is_null_with_a_reason(plan):
  found = presentation.to_dict(plan)
  assert found.keys() >= CONTRACT
  for name in ("step_seconds", "images_per_second", "utilisation", "hours"):
    assert found[name] is None
  assert "no published figures" in found["reasons"]["step_seconds"]
  assert found["fits"] is True
  assert found["steps"] == 94  # 3 epochs of 1000 pairs in batches of 32.
  json.dumps(found, allow_nan=False)


def test_a_plan_says_which_loss_auto_takes(plan):
  found = presentation.to_dict(plan)
  assert found["loss"] == {
    "kind": "softmax",
    "method": "auto",
    "takes": "gathered",
  }
  assert "\nLoss: softmax, gathered, taken by auto\n" in presentation.to_text(
    plan
  )
  for changes, method in (([], "two_level"), (["loss.method=ring"], "ring")):
    changes = ["batch_size=1048576", *changes]
    config = config_lib.with_overrides(plan.job.config, changes)
    program = dataclasses.replace(plan.job.program, config=config)
    assert dataclasses.replace(plan.job, program=program).loss_method == method


def parts_of(*seconds):
  names = ("compute", "memory", "compiler", "exchanges")
  return dict(zip(names, seconds, strict=True))


def test_times_become_hours_and_costs(plan):
  timed = dataclasses.replace(
    plan,
    job=dataclasses.replace(
      plan.job,
      target=dataclasses.replace(
        plan.job.target, chip=topology.parse("v5e:2x4")[0]
      ),
    ),
    step_parts_seconds=parts_of(0.1, 0.2, 0.4, 0.1),
  )
  found = presentation.to_dict(timed, price_per_chip_hour=2.0)
  assert found["step_seconds"] == [0.2, 0.5]
  assert found["images_per_second"] == [64, 160]
  hours = [94 * 0.2 / 3600, 94 * 0.5 / 3600]
  assert found["hours"] == pytest.approx(hours)
  assert found["chip_hours"] == pytest.approx([8 * h for h in hours])
  assert found["cost"] == pytest.approx([16 * h for h in hours])
  low, high = found["utilisation"]
  assert low == pytest.approx(plan.flops_analytic / (8 * 197e12 * 0.5))
  assert high == pytest.approx(2.5 * low)
  text = presentation.to_text(timed, price_per_chip_hour=2.0)
  assert "estimates" in text
  assert "64 to 160" in text
  step, run = text.split("of the whole run, 94 steps")
  assert "(loss: a compilation by itself, not added)" in step
  assert "images/s" in step and "images/s" not in run
  assert "chip-hours" in run and "chip-hours" not in step


@pytest.mark.parametrize(
  ("seconds", "ends"),
  [
    ((1.0, 2.0, 2.5, 0.5), [2.0, 3.0]),
    ((2.5, 1.0, 2.5, 0.5), [2.5, 3.0]),
    ((0.1, 0.1, 2.5, 0.5), [0.5, 3.0]),  # Exchanges take longest.
    ((5.0, 2.0, 2.5, 0.5), [3.0, 5.0]),  # Cycles of less than the peak.
  ],
)
def test_the_ends_of_a_time_are_roofline_and_cycles(plan, seconds, ends):
  timed = dataclasses.replace(plan, step_parts_seconds=parts_of(*seconds))
  assert timed.step_seconds == ends


def test_the_command_prints_the_contract(command, file, plan, monkeypatch):
  monkeypatch.setattr(
    planner, "make_plan", lambda job: dataclasses.replace(plan, job=job)
  )
  changes = [f"--config.{change}" for change in SPLIT]
  code, text = command(
    "--config", file, "--topology", "local", "--json", *changes
  )
  found = json.loads(text)
  assert code == 0
  assert found.keys() >= CONTRACT
  assert found["mesh"] == {"data": 4, "fsdp": 2}
  assert found["steps"] is None
  assert "--examples" in found["reasons"]["hours"]


@pytest.mark.parametrize("said", [None, "out of memory\nand more"])
def test_what_does_not_fit_is_one_line_on_stderr_beside_the_json(
  command, file, plan, monkeypatch, capsys, said
):
  small = dataclasses.replace(
    plan,
    fits=False,
    available_bytes=plan.peak_bytes // 2,
    compiler_message=said,
  )
  monkeypatch.setattr(
    planner, "make_plan", lambda job: dataclasses.replace(small, job=job)
  )
  changes = [f"--config.{change}" for change in SPLIT]
  code, text = command(
    "--config", file, "--topology", "local", "--json", *changes
  )
  assert code == 1
  assert json.loads(text)["fits"] is False
  assert re.fullmatch(
    r"Error: Does not fit: .* of .* a chip \(200 %\)\. --suggest looks .*\.\n",
    capsys.readouterr().err,
  )


def test_what_does_not_fit_says_what_would_help(plan, monkeypatch):
  small = dataclasses.replace(
    plan, fits=False, available_bytes=plan.peak_bytes // 2
  )
  text = presentation.to_text(small)
  assert "Does not fit" in text
  assert "--config.micro_batches=2" in text
  assert "--config.model_overrides.image.remat=full" in text
  assert "--config.mesh.fsdp=8" in text


def advice(file, local, *changes, searched=False):
  """Returns what is said of a config that needs 2.5 times what there is."""
  config = config_lib.load(file, ["data.train=nowhere", *changes])
  target = dataclasses.replace(local, devices=local.devices[:1])
  names = ("parameters", "optimizer", "rest")
  plan = planner.Plan(
    job=jobs.make_job(config, target),
    memory=dict.fromkeys(names, 2**20),
    **{"fits": False, "peak_bytes": 5 * 2**30, "available_bytes": 2**31},
    **dict.fromkeys(("compiler_message", "flops_compiled")),
    **{"flops_analytic": 1, "collectives": None, "step_parts_seconds": None},
    **{"compile_seconds": 0.0, "reasons": {}},
  )
  return presentation.advice(plan, searched=searched)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [(["batch_size=3"], 3), (["batch_size=8", "micro_batches=4"], 8)],
)
def test_advised_micro_batches_divide_the_batch(file, local, changes, parts):
  said = " ".join(advice(file, local, *changes))
  assert f"micro_batches={parts}" in said


@pytest.mark.parametrize(
  "changes", [["model=RN50", "model_overrides="], ["batch_size=1"]]
)
def test_micro_batches_that_would_be_refused_are_not_advised(
  file, local, changes
):
  assert "micro_batches" not in " ".join(advice(file, local, *changes))


def test_a_search_that_finds_nothing_says_how_many_chips_might_do(file, local):
  (said,) = advice(file, local, searched=True)
  assert "an estimate: at least 3" in said
  assert "--suggest" not in said


def test_a_model_without_a_name_is_called_after_what_it_begins_with():
  config = config_lib.default_config()
  assert presentation._model_name(config.model, config.init) == config.model
  config.model = "from_init"
  config.init.image, config.init.text = "a/tower", "runs/bert"
  assert (
    presentation._model_name(config.model, config.init) == "a/tower + runs/bert"
  )


def test_of_a_program_that_nobody_can_read_only_the_time_is_unknown(
  chip_job, monkeypatch
):
  monkeypatch.setattr(compiling, "read_text", lambda compiled, dump: None)
  monkeypatch.setattr(
    compiling, "compile_program", lambda lowered, dump: object()
  )
  monkeypatch.setattr(memory, "peak_bytes", lambda compiled, target: 10**9)
  found = presentation.to_dict(planner.make_plan(chip_job, with_loss=False))
  assert found["peak_bytes"] == 10**9
  assert found["flops_compiled"] > 0
  assert found["collectives"]["all-gather"]["bytes"] > 0
  assert found["step_seconds"] is None
  assert "cannot be read" in found["reasons"]["step_seconds"]
