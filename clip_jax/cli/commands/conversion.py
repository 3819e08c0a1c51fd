"""The verbs `convert` and `verify`."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from clip_jax import convert as convert_lib
from clip_jax import errors, terminal
from clip_jax.cli import verb
from clip_jax.convert.verify import verification


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the user's options for what the source does not say itself."""
  fields = ("config", "weights", "activation", "heads", "pooling")
  fields += ("tokenizer", "preprocess")
  return {field: getattr(arguments, field) for field in fields}


@contextlib.contextmanager
def _flags_are_known() -> Iterator[None]:
  """Marks an AmbiguousError's flags as flags of this verb."""
  try:
    yield
  except errors.AmbiguousError as error:
    raise errors.AmbiguousError(
      error.problem, flags=error.flags, known_here=True
    ) from None


def convert(arguments: argparse.Namespace) -> verb.Answer:
  """Turns a checkpoint into another format."""
  options = convert_lib.Options(
    **_reading(arguments),
    image_size=arguments.image_size,
    resize_method=arguments.resize_method,
    old_grid=arguments.old_grid,
    context_length=arguments.context_length,
    interpolate=arguments.interpolate,
    interpolate_with=arguments.interpolate_with,
    drop_logit_bias=arguments.drop_logit_bias,
    headers_only=arguments.dry_run,
  )
  with (
    _flags_are_known(),
    terminal.Progress("convert", unit="arrays") as progress,
  ):
    report = convert_lib.convert(
      arguments.source,
      arguments.destination,
      to=arguments.to,
      source_format=arguments.source_format,
      options=options,
      overwrite=arguments.overwrite,
      progress=progress,
    )
  did = "Nothing was written (--dry-run)."
  if not arguments.dry_run:
    did = (
      f"Wrote {arguments.destination}; every number was read back and compared."
    )
  return verb.Answer(
    {**report.to_dict(), "destination": arguments.destination},
    f"{report.to_text()}\n\n{did}",
  )


def verify(arguments: argparse.Namespace) -> verb.Answer:
  """Compares a conversion with its source, stage by stage."""
  with _flags_are_known():
    found = verification.verify(
      arguments.source,
      arguments.model,
      source_format=arguments.source_format,
      options=convert_lib.Options(**_reading(arguments)),
      double=arguments.float64,
      examples=arguments.examples,
      seed=arguments.seed,
    )
  failed = [row.stage for row in found.rows if not row.passed]
  problem = f"{arguments.model} does not compute what its source does: "
  problem += f"{', '.join(failed) or 'no stage was compared'}."
  return verb.Answer(
    found.to_dict(), found.to_text(), problem="" if found.passed else problem
  )
