"""The verbs about results and their publication: report, card, push."""

import argparse
import dataclasses

from clip_jax import terminal
from clip_jax.cli import verb
from clip_jax.results import card as card_lib
from clip_jax.results import push as push_lib
from clip_jax.results import report_files


def report(arguments: argparse.Namespace) -> verb.Answer:
  """Writes a page that shows the results of runs and evaluations."""
  written = report_files.write(arguments.places, arguments.out)
  lines = [
    f"Report on {', '.join(written.models)} "
    f"({terminal.counted(written.results, 'result')}): {written.page}",
    *(f"Picture: {path}" for path in written.pictures),
    *(f"Left out: {left.path}: {left.why}" for left in written.left_out),
    *(
      f"Not on the page: {name}; needs {needs}"
      for name, needs in written.missing.items()
    ),
  ]
  return verb.Answer(dataclasses.asdict(written), "\n".join(lines))


def card(arguments: argparse.Namespace) -> verb.Answer:
  """Writes the model card, to a file or to the terminal."""
  made = card_lib.make(
    arguments.model,
    reports=arguments.reports,
    license=arguments.license,
    name=arguments.name,
  )
  if arguments.out is not None:
    card_lib.save(made, arguments.out)
  count = terminal.counted(made.results, "result")
  saved = f"Card of {made.name} ({count}): {arguments.out}"
  return verb.Answer(
    {**dataclasses.asdict(made), "out": arguments.out},
    made.text if arguments.out is None else saved,
  )


def push(arguments: argparse.Namespace) -> verb.Answer:
  """Uploads a model to the hub."""
  with terminal.Progress("export", unit="arrays") as progress:
    pushed = push_lib.push(
      arguments.model,
      arguments.repository,
      to=arguments.to,
      private=arguments.private,
      message=arguments.message,
      license=arguments.license,
      reports=arguments.reports,
      dry_run=arguments.dry_run,
      progress=progress,
    )
  rows = [(file.name, terminal.size(file.bytes)) for file in pushed.files]
  did = f"Pushed to {pushed.url} (commit {pushed.commit})."
  if pushed.dry_run:
    did = f"Nothing was uploaded to {pushed.url} (--dry-run)."
  lines = [
    terminal.table(("file", "size"), rows),
    *(f"Warning: {warning}" for warning in pushed.warnings),
    "",
    did,
    *([] if pushed.dry_run else [f"Load it by {pushed.address}"]),
  ]
  return verb.Answer(dataclasses.asdict(pushed), "\n".join(lines))
