"""What cannot be planned: refused programs, configs, topologies and prices."""

import jax
import pytest

from clip_jax.plan import (
  compiling,
  jobs,
  planner,
  presentation,
)

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


def test_a_step_too_large_to_compile_is_a_plan(config, local, monkeypatch):
  def refuse(lowered, dump=None):
    raise compiling.TooLargeError(MESSAGE)

  monkeypatch.setattr(compiling, "compile_program", refuse)
  found = presentation.to_dict(planner.make_plan(jobs.make_job(config, local)))
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
    ("batch_size=33", "must be divisible by the 8 devices"),
    ("mesh.fsdp=3", "their product must be 8"),
    ("model=no-model", "Unknown model 'no-model'"),
    ("epochs=1e308", "more than the 2,147,483,647 steps"),
    ("model_overrides.image.remat=some", "Unknown remat policy 'some'"),
  ],
)
def test_configs_that_cannot_train_are_refused(
  command, file, change, message, capsys
):
  code, text = command(
    *("--config", file, "--topology", "local", "--examples", 10**6),
    f"--config.{change}",
  )
  assert code == 1
  assert text == ""
  assert message in capsys.readouterr().err


def test_unknown_topologies_exit_with_1(command, file, capsys):
  assert command("--config", file, "--topology", "v5e")[0] == 1
  assert "give 'local', or a chip" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "much"])
def test_prices_are_numbers(command, file, price, capsys):
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
