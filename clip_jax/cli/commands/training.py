"""The verb `train`."""

import argparse
import dataclasses
import os

from clip_jax import config, errors, host_memory, terminal
from clip_jax.cli import verb
from clip_jax.cli.commands import joining, measures
from clip_jax.train import journal, loop


def train(arguments: argparse.Namespace) -> verb.Answer:
  """Trains a model as a config says."""
  host_memory.keep_freed()
  with joining.joined_processes(arguments, polls_sigterm=True):
    return _train(arguments)


def _train(arguments: argparse.Namespace) -> verb.Answer:
  run = config.load(arguments.config, arguments.overrides)
  try:
    summary = loop.train(
      run,
      arguments.workdir,
      allow_changes=arguments.allow_changes,
      profile_step=arguments.profile,
    )
  except FileNotFoundError as error:
    if not _is_gone(arguments.workdir, error):
      raise
    raise errors.UserError(
      f"{arguments.workdir} is gone: it was removed or renamed, or its disk "
      "was unmounted, while the run trained in it. Bring it back, and the same "
      "command goes on; without it, the run begins anew."
    ) from error
  steps, now = summary.steps, summary.steps_now
  lines = [
    f"Trained {terminal.counted(steps, 'step')}"
    f"{f' ({now} of them now)' if now < steps else ''} in "
    f"{terminal.duration(summary.seconds)}: {arguments.workdir}"
  ]
  if summary.skipped:
    lines.append(
      f"{terminal.counted(summary.skipped, 'step')} of the run changed "
      "nothing: the loss, gradient or update was not finite. Lower "
      "optim.peak_lr, or look at the data."
    )
  if bad := summary.bad_records:
    lines.append(
      f"Bad records were met {terminal.counted(bad, 'time')} and replaced "
      f"(different ones, counted up to 200: {summary.different_bad_records}); "
      f"{journal.LEDGER} lists them."
    )
  if summary.evals:
    lines += ["", measures.table(summary.evals, before=summary.before)]
    lines += measures.remarks(
      summary.evals,
      before=summary.before,
      frozen=run.optim.frozen,
      own=[
        name for name, x in run.evals.items() if x["data"] == config.HELD_OUT
      ],
      # `min_steps` is of no use beside `steps`.
      longer="steps" if run.epochs is None else "min_steps",
    )
  if summary.report:
    lines += ["", f"Report: {summary.report}"]
  if summary.profile:
    lines += ["", f"Trace: {summary.profile}"]
  return verb.Answer(dataclasses.asdict(summary), "\n".join(lines))


def _is_gone(workdir: str, error: FileNotFoundError) -> bool:
  """Whether a missing file is missed because its whole workdir is."""
  if os.path.isdir(workdir):
    return False
  # Some libraries tell no name.
  inside = os.path.join(os.path.abspath(workdir), "")
  path = os.path.abspath(os.fsdecode(error.filename or inside))
  return os.path.join(path, "").startswith(inside)
