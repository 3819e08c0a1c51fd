"""All checks of the doctor, in their order."""

import contextlib
import logging
from collections.abc import Iterator

from clip_jax import config as config_lib
from clip_jax import errors, names, sharding, terminal
from clip_jax.doctor import (
  caption_checks,
  diagnosis,
  learning,
  machine,
  sampling,
)
from clip_jax.doctor.finding import OK, PROBLEM, WARNING, Finding

_LOGGER = logging.getLogger(__name__)


def of_machine() -> list[Finding]:
  """Checks the machine alone."""
  return [
    machine.versions(),
    machine.devices(),
    machine.collectives(sharding.make_mesh()),
  ]


def of_config(
  config: config_lib.Config, *, steps: int | None = None
) -> list[Finding]:
  """Checks the machine, a config's data, and whether the config can learn.

  A check that fails with an error is a finding too; earlier findings are kept.

  Args:
    config: checked.
    steps: updates on the one batch; None for as many as usual.
  """
  findings = [machine.versions(), machine.devices()]
  setup = None
  with _errors_found("config", findings):
    _LOGGER.info("Opening the data and making the model ...")
    setup = learning.prepare(config)
    findings.append(_fit(config.batch_size, setup))
  if setup is None:
    return findings
  findings.append(machine.collectives(setup.run.program.mesh))
  with _errors_found("records", findings):
    findings += _of_data(setup)
  with _errors_found("overfit one batch", findings):
    findings += _of_learning(setup, steps=steps or names.DOCTOR_STEPS)
  return findings


def _fit(batch_size: int, setup: learning.Setup) -> Finding:
  pairs = setup.run.program.config.batch_size
  mesh = dict(setup.run.program.mesh.shape)
  facts = {"pairs": pairs, "batch_size": batch_size, "mesh": mesh}
  words = (
    f"One batch of {terminal.counted(pairs, 'pair')} stands for {batch_size}."
  )
  if setup.mesh_refusal is None:
    return Finding("config", OK, words, facts)
  return Finding(
    "config",
    WARNING,
    f"{words} {setup.mesh_refusal} Training here would stop at that; the "
    "batch was tried with mesh.data=-1 and mesh.fsdp=1.",
    facts,
  )


def _of_data(setup: learning.Setup) -> list[Finding]:
  run, config = setup.run, setup.run.program.config
  _LOGGER.info("Looking at the records of %s ...", config.data.train)
  with terminal.Progress("read", unit="records") as progress:
    sample = sampling.read(run.source, run.preprocess, progress=progress)
  limit = config.data.max_bad_fraction
  return [
    sampling.account(run.source, max_bad_fraction=limit),
    sampling.check(sample, max_bad_fraction=limit),
    *caption_checks.check(
      sample,
      run.tokenizer,
      duplicates=config.loss.duplicates,
      contrastive=run.program.model.contrastive,
    ),
  ]


def _of_learning(setup: learning.Setup, *, steps: int) -> list[Finding]:
  _LOGGER.info(
    "Learning one batch by heart, %s ...", terminal.counted(steps, "update")
  )
  if not setup.run.program.model.contrastive:
    kind = setup.run.program.config.objective.kind
    losses = learning.losses_on_one_batch(setup, steps=steps)
    return [diagnosis.of_prediction(kind, losses)]
  trial = learning.overfit(setup, steps=steps)
  return [diagnosis.balance(trial), diagnosis.diagnose(trial)]


@contextlib.contextmanager
def _errors_found(check: str, findings: list[Finding]) -> Iterator[None]:
  """Adds an error that a user can mend to the findings."""
  try:
    yield
  except (errors.UserError, OSError) as error:
    findings.append(Finding(check, PROBLEM, str(error)))
  except (RuntimeError, MemoryError) as error:
    if (known := errors.of_machine(error)) is None:
      raise
    findings.append(Finding(check, PROBLEM, known))
