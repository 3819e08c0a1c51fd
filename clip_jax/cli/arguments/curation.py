"""The arguments of `data filter` and `data dedupe`, and where they work."""

import argparse
import contextlib
import dataclasses
import math
from typing import Any

from clip_jax import errors, names
from clip_jax.cli import flags
from clip_jax.data.curation import rules

RUNNERS = ("local", "beam")
OUT = "a new directory, for arrayrecord:OUT"


def _number(text: str) -> float:
  with contextlib.suppress(ValueError):
    if math.isfinite(number := float(text)):
      return number
  raise argparse.ArgumentTypeError(f"must be a number; got {text!r}")


def _factor(text: str) -> float:
  if (number := _number(text)) >= 1:
    return number
  raise argparse.ArgumentTypeError(f"must be at least 1; got {text!r}")


# By the kind of a rule's value: how a flag reads it, and what help calls it.
_KINDS: dict[str, tuple[Any, str]] = {
  rules.COUNT: (flags.count, "N"),
  rules.FACTOR: (_factor, "X"),
  rules.NUMBER: (_number, "X"),
  rules.SHARE: (flags.share, "SHARE"),
  rules.TEXTS: (str, "NAME,…"),
  rules.LIST: (str, "FILE"),
}


def add_work(parser: flags.Parser) -> None:
  """Adds --workers, --runner and --beam-options."""
  flags.add_workers(parser, "read and examine")
  parser.add_argument(
    "--runner",
    choices=RUNNERS,
    default="local",
    help="what does this: processes of this machine, or an Apache Beam "
    "pipeline (default: local)",
  )
  parser.add_argument(
    "--beam-options",
    metavar="WORDS",
    help="for --runner beam: Beam's own options in one text, such as "
    "--beam-options='--runner=FlinkRunner --flink_master=host:8081'",
  )


def check_work(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the flags of `add_work`, or None."""
  if arguments.beam_options is not None and arguments.runner != "beam":
    return "--beam-options goes with --runner beam"
  return None


def _add_batches(parser: flags.Parser) -> None:
  """Adds the flags of embedding; None tells that one is not given."""
  flags.add_batches(parser)
  parser.set_defaults(batch_size=None, threads=None)


def has_batches(arguments: argparse.Namespace) -> bool:
  """Whether a flag of embedding is given."""
  return (arguments.batch_size, arguments.threads) != (None, None)


def add_filter(parser: flags.Parser) -> None:
  """Adds the arguments of `data filter`."""
  flags.add_data(parser, out=OUT)
  parser.add_argument(
    "--config",
    metavar="FILE",
    help="rules in TOML or JSON, by the flags' names, as min_words = 3; flags "
    "win over it",
  )
  for field in dataclasses.fields(rules.Rules):
    read, metavar = _KINDS[field.metadata["kind"]]
    parser.add_argument(
      "--" + field.name.replace("_", "-"),
      metavar=metavar,
      type=read,
      help=field.metadata["said"],
    )
  parser.add_argument(
    "--score-model",
    metavar="MODEL",
    help=f"gives the scores: {flags.MODEL}",
  )
  _add_batches(parser)
  add_work(parser)


def check_filter(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the flags of `data filter`, or None."""
  given = [getattr(arguments, name) for name in rules.NAMES]
  if arguments.config is None and given == [None] * len(given):
    return "give a rule, such as --min-words 3, or --config FILE"
  has_no_model = arguments.score_model is None and arguments.config is None
  if has_no_model and has_batches(arguments):
    return "--batch-size and --threads go with --score-model"
  return check_work(arguments)


def add_dedupe(parser: flags.Parser) -> None:
  """Adds the arguments of `data dedupe`."""
  flags.add_data(parser, out=OUT)
  parser.add_argument(
    "--by",
    metavar="KIND,…",
    type=_kinds,
    default=list(names.DUPLICATE_KINDS[:2]),
    help=f"what is compared: {', '.join(names.DUPLICATE_KINDS)}: bytes, looks "
    "and embeddings (default: exact,near)",
  )
  parser.add_argument(
    "--max-distance",
    metavar="BITS",
    type=int,
    help="of 64 bits of what images look like, those in which near ones "
    f"differ, at most (default: {names.DUPLICATE_DISTANCE})",
  )
  parser.add_argument(
    "--mirrored",
    action="store_true",
    help="let mirror images be near, too",
  )
  parser.add_argument(
    "--model",
    metavar="MODEL",
    help=f"gives the embeddings for semantic: {flags.MODEL}",
  )
  parser.add_argument(
    "--min-similarity",
    metavar="X",
    type=_number,
    help="cosine of semantic duplicates, at least (default: "
    f"{names.DUPLICATE_SIMILARITY})",
  )
  parser.add_argument(
    "--clusters",
    metavar="N",
    type=flags.count,
    help="clusters in which embeddings are compared (default: one for each "
    "1000 images)",
  )
  parser.add_argument(
    "--against",
    metavar="DATA2",
    help="an evaluation set: what is near one of its images goes, and the "
    "overlap is told",
  )
  parser.add_argument(
    "--report-only",
    action="store_true",
    help="write the tables of duplicates and overlap, and no records",
  )
  _add_batches(parser)
  add_work(parser)


def _kinds(text: str) -> list[str]:
  kinds = [kind.strip() for kind in text.split(",")]
  for kind in kinds:
    if kind not in names.DUPLICATE_KINDS:
      raise argparse.ArgumentTypeError(
        str(errors.unknown("kind", kind, names.DUPLICATE_KINDS))
      )
  return kinds


def check_dedupe(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the flags of `data dedupe`, or None."""
  semantic = "semantic" in arguments.by
  if semantic != (arguments.model is not None):
    return "--by …,semantic and --model go together"
  if not semantic and has_batches(arguments):
    return "--batch-size and --threads go with --by semantic"
  for name in ("min_similarity", "clusters"):
    if getattr(arguments, name) is not None and not semantic:
      return f"--{name.replace('_', '-')} goes with --by semantic"
  near = "near" in arguments.by
  if not near and (arguments.max_distance is not None or arguments.mirrored):
    return "--max-distance and --mirrored go with --by near"
  return check_work(arguments)
