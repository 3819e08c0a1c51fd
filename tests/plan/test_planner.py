"""Plans for the devices of the tests: eight simulated ones."""

import collections
import contextlib
import dataclasses
import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from clip_jax import cli, errors
from clip_jax import config as config_lib
from clip_jax.models import flops
from clip_jax.plan import (
  compiling,
  jobs,
  memory,
  planner,
  report,
  suggest,
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
CONFIG = """
from clip_jax import config as config_lib

def get_config():
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides.image = {"width": 24, "depth": 2, "heads": 3}
  config.model_overrides.text = {
    "width": 16, "depth": 1, "heads": 2, "vocab_size": 49408}
  config.model_overrides.embed_dim = 20
  config.batch_size = 32
  config.epochs = 3
  config.precision = "float32"
  config.optim.warmup_steps = 2
  return config
"""
SPLIT = ["mesh.data=4", "mesh.fsdp=2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("plan") / "config.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture(scope="module")
def config(file):
  return config_lib.load(file, ["data.train=nowhere"])


@pytest.fixture(scope="module")
def local():
  return topology.make_topology("local")


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


def command(*arguments):
  """Runs `clip-jax plan` and returns its exit code and what it prints."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    code = cli.run(["plan", *map(str, arguments)])
  return code, stdout.getvalue()


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
  where = dataclasses.replace(plan.job.where, chip=chip, shape=shape)
  return dataclasses.replace(plan.job, where=where)


def test_a_time_stands_on_what_is_traced_and_the_compilers_cycles(chip_job):
  text = """ENTRY %main (x: f32[]) -> f32[] {
  ROOT %x = f32[] parameter(0), backend_config={"estimated_cycles":"3"}
}
"""
  work = planner.Work(8, 5, collections.Counter(), frozenset())
  found = planner._step_parts(chip_job, work, text)
  chip = chip_job.where.chip
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
  found = report.to_dict(plan)
  assert found.keys() >= CONTRACT
  for name in ("step_seconds", "images_per_second", "utilisation", "hours"):
    assert found[name] is None
  assert "no figures" in found["reasons"]["step_seconds"]
  assert found["fits"] is True
  assert found["steps"] == 94  # 3 epochs of 1000 pairs in batches of 32.
  json.dumps(found, allow_nan=False)


def test_a_plan_says_which_loss_auto_takes(plan):
  found = report.to_dict(plan)
  assert found["loss"] == {
    "kind": "softmax",
    "method": "auto",
    "takes": "gathered",
  }
  assert "\nLoss: softmax, gathered, taken by auto\n" in report.to_text(plan)
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
      where=dataclasses.replace(
        plan.job.where, chip=topology.parse("v5e:2x4")[0]
      ),
    ),
    step_parts_seconds=parts_of(0.1, 0.2, 0.4, 0.1),
  )
  found = report.to_dict(timed, price_per_chip_hour=2.0)
  assert found["step_seconds"] == [0.2, 0.5]
  assert found["images_per_second"] == [64, 160]
  hours = [94 * 0.2 / 3600, 94 * 0.5 / 3600]
  assert found["hours"] == pytest.approx(hours)
  assert found["chip_hours"] == pytest.approx([8 * h for h in hours])
  assert found["cost"] == pytest.approx([16 * h for h in hours])
  low, high = found["utilisation"]
  assert low == pytest.approx(plan.flops_analytic / (8 * 197e12 * 0.5))
  assert high == pytest.approx(2.5 * low)
  text = report.to_text(timed, price_per_chip_hour=2.0)
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


def test_the_command_prints_the_contract(file, plan, monkeypatch):
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


def test_what_does_not_fit_says_what_would_help(plan, monkeypatch):
  small = dataclasses.replace(
    plan, fits=False, available_bytes=plan.peak_bytes // 2
  )
  text = report.to_text(small)
  assert "Does not fit" in text
  assert "--config.micro_batches=2" in text
  assert "--config.model_overrides.image.remat=full" in text
  assert "--config.mesh.fsdp=8" in text


def advice(file, local, *changes, searched=False):
  """Returns what is said of a config that needs 2.5 times what there is."""
  config = config_lib.load(file, ["data.train=nowhere", *changes])
  where = dataclasses.replace(local, devices=local.devices[:1])
  names = ("parameters", "optimizer", "rest")
  plan = planner.Plan(
    job=jobs.make_job(config, where),
    memory=dict.fromkeys(names, 2**20),
    **{"fits": False, "peak_bytes": 5 * 2**30, "available_bytes": 2**31},
    **dict.fromkeys(("compiler_message", "flops_compiled")),
    **{"flops_analytic": 1, "collectives": None, "step_parts_seconds": None},
    **{"compile_seconds": 0.0, "reasons": {}},
  )
  return report.advice(plan, searched=searched)


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


MESSAGE = (
  "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
  "required for HLO temporaries (22.03G) exceeds available HBM (15.75G). HLO "
  "module: jit_train_step."
)


def test_the_compilers_words_are_read():
  error = compiling.TooLargeError(MESSAGE)
  assert error.needed_bytes == int(22.03 * 2**30)
  assert error.available_bytes == int(15.75 * 2**30)
  other = compiling.TooLargeError("RESOURCE_EXHAUSTED: no memory")
  assert other.needed_bytes is None


class _Unreadable:
  """A compiled program that JAX cannot read."""

  def as_text(self):
    raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")


def test_a_program_that_jax_cannot_read_is_read_from_the_compilers_text(
  tmp_path,
):
  assert compiling.read_text(_Unreadable(), None) is None
  assert compiling.read_text(_Unreadable(), str(tmp_path)) is None
  (tmp_path / "module_1.jit_step.after_optimizations.txt").write_text("no")
  (tmp_path / "module_1.jit_step.after_codegen.txt").write_text("yes")
  assert compiling.read_text(_Unreadable(), str(tmp_path)) == "yes"


def test_of_a_program_that_nobody_can_read_only_the_time_is_unknown(
  chip_job, monkeypatch
):
  monkeypatch.setattr(compiling, "read_text", lambda compiled, dump: None)
  monkeypatch.setattr(
    compiling, "compile_program", lambda lowered, dump: object()
  )
  monkeypatch.setattr(memory, "peak_bytes", lambda compiled, where: 10**9)
  found = report.to_dict(planner.make_plan(chip_job, with_loss=False))
  assert found["peak_bytes"] == 10**9
  assert found["flops_compiled"] > 0
  assert found["collectives"]["all-gather"]["bytes"] > 0
  assert found["step_seconds"] is None
  assert "cannot be read" in found["reasons"]["step_seconds"]


def test_a_step_too_large_to_compile_is_a_plan(config, local, monkeypatch):
  def refuse(lowered, dump=None):
    raise compiling.TooLargeError(MESSAGE)

  monkeypatch.setattr(compiling, "compile_program", refuse)
  found = report.to_dict(planner.make_plan(jobs.make_job(config, local)))
  assert found["fits"] is False
  assert found["peak_bytes"] == int(22.03 * 2**30)
  assert found["available_bytes"] == int(15.75 * 2**30)
  assert found["compiler_message"] == MESSAGE
  assert found["flops_compiled"] is None
  assert found["flops_analytic"] > 0
  assert {"flops_compiled", "collectives", "step_seconds"} <= found[
    "reasons"
  ].keys()
  assert found["advice"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("batch_size=33", "must divide by the 8 devices"),
    ("mesh.fsdp=3", "their product must be 8"),
    ("model=no-model", "Unknown model 'no-model'"),
    ("epochs=1e308", "more than the 2,147,483,647 steps"),
    ("model_overrides.image.remat=some", "Unknown remat policy 'some'"),
  ],
)
def test_configs_that_cannot_train_are_refused(file, change, message, capsys):
  code, text = command(
    *("--config", file, "--topology", "local", "--examples", 10**6),
    f"--config.{change}",
  )
  assert code == 1
  assert text == ""
  assert message in capsys.readouterr().err


def test_unknown_topologies_exit_with_1(file, capsys):
  assert command("--config", file, "--topology", "v5e")[0] == 1
  assert "give 'local', or a chip" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "much"])
def test_prices_are_numbers(file, price, capsys):
  with pytest.raises(SystemExit) as caught:
    command(
      "--config",
      file,
      "--topology",
      "local",
      f"--price-per-chip-hour={price}",
    )
  assert caught.value.code == 2
  assert "must be at least 0" in capsys.readouterr().err


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
  monkeypatch.setattr(memory, "available_bytes", lambda where: available)
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
  bounds = suggest._Search(config, local, {})
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
    bounds = suggest._Search(config, local, {})
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


def test_a_search_prints_overrides(monkeypatch, file):
  fake = _Fake(2**30)
  monkeypatch.setattr(planner, "make_plan", fake.make_plan)
  arguments = ["--config", file, "--topology", "local", "--suggest", "--json"]
  code, text = command(*arguments)
  assert code == 0
  found = json.loads(text)
  assert "mesh.fsdp=1" in found["overrides"]
  assert found["tried"][0]["fits"] is True


def test_unknown_memory_cannot_be_searched(monkeypatch, config, local):
  monkeypatch.setattr(memory, "available_bytes", lambda where: None)
  with pytest.raises(errors.UserError, match="is not known"):
    suggest.suggest(config, local)


def test_a_model_without_a_name_is_called_after_what_it_begins_with():
  config = config_lib.default_config()
  assert report._model_name(config) == config.model
  config.model = "from_init"
  config.init.image, config.init.text = "a/tower", "runs/bert"
  assert report._model_name(config) == "a/tower + runs/bert"
