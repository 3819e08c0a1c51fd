"""The verbs that read results back: report and card."""

import argparse
import dataclasses

from clip_jax.cli import verb
from clip_jax.results import card as card_lib
from clip_jax.results import report as report_lib


def report(arguments: argparse.Namespace) -> verb.Answer:
  """Draws the results of runs and evaluations."""
  written = report_lib.write(arguments.places, arguments.out)
  lines = [
    f"Report on {', '.join(written.models)} ({written.results} results): "
    f"{written.page}",
    *(f"Picture: {path}" for path in written.pictures),
    *(f"Left out: {left.path}: {left.why}" for left in written.left_out),
    *(
      f"Not on the page: {name}; needs {needs}"
      for name, needs in written.missing.items()
    ),
  ]
  return verb.Answer(dataclasses.asdict(written), "\n".join(lines))


def card(arguments: argparse.Namespace) -> verb.Answer:
  """Writes the card of a model."""
  made = card_lib.make(
    arguments.model,
    reports=arguments.reports,
    license=arguments.license,
    name=arguments.name,
  )
  if arguments.out is not None:
    card_lib.save(made, arguments.out)
  told = f"Card of {made.name} ({made.results} results): {arguments.out}"
  return verb.Answer(
    {**dataclasses.asdict(made), "out": arguments.out},
    made.text if arguments.out is None else told,
  )
