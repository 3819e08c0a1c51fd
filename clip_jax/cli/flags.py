"""The argument parser, and the flags and value types that verbs share."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clip_jax import errors, names

MODEL = (
  "a model: a workdir of `clip-jax train`, a checkpoint in any format that "
  "`clip-jax convert` reads, or hf-hub:ORG/NAME"
)
DATA = (
  "a DATA address, such as builtin:digits/test, folder:PATH, csv:PATH, "
  "wds:PATH/{0000..0012}.tar, parquet:PATH, hf:PATH, tfrecord:PATH, coco:PATH, "
  "arrayrecord:PATH, tfds:NAME/SPLIT; for search also images:PATH"
)
BATCH_SIZE, THREADS = 256, 4
_MOST = 2**63 - 1  # What the length of a sequence can be.
USAGE_OF_PROCESSES = (
  "[--distributed | --coordinator HOST:PORT --processes N --process-id I]\n"
  "       [--heartbeat SECONDS]"
)
LABELS = (
  "comma-separated or a line each, or a file: text with a label a line, or JSON"
)
TEMPLATE = (
  "what a label becomes: a text with {} for it, or a file with several, one a "
  "line (default: "
)


class Parser(argparse.ArgumentParser):
  """An argument parser that lists its flags, to suggest one for a typo.

  Attributes:
    flags: the names of all flags that begin with "--".
    arguments: the arguments in the order in which they were added.
    several: those of them that may be given several times, and all count.
    actions: the parsers of a verb's actions, or of the verbs, by name.
    takes_overrides: whether --config.FIELD=VALUE is accepted; these words are
      taken out before this parser sees the others.
  """

  def __init__(self, **settings: Any):
    self.flags: list[str] = []
    self.arguments: list[argparse.Action] = []
    self.several: list[argparse.Action] = []
    self.actions: Mapping[str, Parser] = {}
    self.takes_overrides = False
    settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    super().__init__(allow_abbrev=False, **settings)

  def add_argument(self, *flags: str, **settings: Any) -> argparse.Action:
    """Adds an argument as argparse does."""
    self.flags += [name for name in flags if name.startswith("--")]
    if settings.get("choices") and "type" not in settings:
      settings["type"] = functools.partial(_one_of, settings["choices"])
    self.arguments.append(super().add_argument(*flags, **settings))
    if settings.get("action") == "append":
      self.several.append(self.arguments[-1])
    return self.arguments[-1]

  def add_subparsers(self, **settings: Any) -> Any:
    """Adds parsers of actions as argparse does."""
    added = super().add_subparsers(parser_class=Parser, **settings)
    self.actions = added.choices
    add = added.add_parser

    def add_described(name: str, *, help: str, **settings: Any) -> Parser:
      described = f"{help[0].upper()}{help[1:]}."
      return add(name, help=help, description=described, **settings)

    added.add_parser = add_described  # pyright: ignore
    return added


def _one_of(known: Iterable[str], text: str) -> str:
  """Returns `text` if it is one of `known`, for argparse's `type`."""
  if text not in known:
    raise argparse.ArgumentTypeError(str(errors.unknown("value", text, known)))
  return text


def add_config(parser: Parser) -> None:
  """Adds --config, which is required."""
  parser.add_argument(
    "--config", required=True, metavar="FILE", help="a file of configs/"
  )


def add_json(parser: Parser) -> None:
  """Adds --json."""
  parser.add_argument(
    "--json", action="store_true", help="print JSON on stdout, nothing else"
  )


def add_max_pixels(parser: Parser) -> None:
  """Adds --max-pixels, which allows larger images than the default."""
  parser.add_argument(
    "--max-pixels",
    type=count,
    metavar="N",
    help="pixels of the largest image that is read (default: 250 million of a "
    "JPEG, 25 of a JPEG 2000, 50 of an AVIF, 8 of a BMP of run lengths, 64 of "
    "any other)",
  )


def add_batches(parser: Parser) -> None:
  """Adds --batch-size and --threads, for verbs that embed data."""
  parser.add_argument(
    "--batch-size",
    type=count,
    default=BATCH_SIZE,
    metavar="N",
    help=f"images that are embedded at once (default: {BATCH_SIZE})",
  )
  parser.add_argument(
    "--threads",
    type=count,
    default=THREADS,
    metavar="N",
    help=f"threads that read and decode (default: {THREADS})",
  )


def add_data(parser: Parser, *, out: str = "") -> None:
  """Adds DATA and, where `out` says what it is, OUT."""
  parser.add_argument("data", metavar="DATA", help=DATA)
  if out:
    parser.add_argument("out", metavar="OUT", help=out)


def add_workers(parser: Parser, does: str) -> None:
  """Adds --workers; `does` says what they do."""
  parser.add_argument(
    "--workers",
    metavar="N",
    type=count,
    default=1,
    help=f"processes that {does} (default: 1)",
  )


def add_suite(parser: Parser, *, required: bool = False) -> None:
  """Adds --suite and --data-root."""
  parser.add_argument(
    "--suite",
    required=required,
    metavar="NAME,…",
    help=f"data sets with published figures: {', '.join(names.SUITE_GROUPS)}, "
    "all, or their own names, such as cifar10",
  )
  parser.add_argument(
    "--data-root",
    required=required,
    metavar="DIR",
    help="the directory of these data sets",
  )


def add_processes(parser: Parser) -> None:
  """Adds what joins the processes of several hosts."""
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes, found by the cluster's environment",
  )
  parser.add_argument(
    "--coordinator",
    type=host_and_port,
    metavar="HOST:PORT",
    help="address of process 0, if the environment does not say it",
  )
  parser.add_argument(
    "--processes", type=count, metavar="N", help="number of processes"
  )
  parser.add_argument(
    "--process-id", type=int, metavar="I", help="number of this one, from 0"
  )
  parser.add_argument(
    "--heartbeat",
    type=count,
    metavar="SECONDS",
    default=names.HEARTBEAT_SECONDS,
    help="a process that is silent for longer counts as gone, and all others"
    f" stop (default: {names.HEARTBEAT_SECONDS})",
  )


def check_processes(arguments: argparse.Namespace) -> str | None:
  """Returns an error message about the flags of `add_processes`, or None."""
  number, processes = arguments.process_id, arguments.processes
  given = [x is not None for x in (arguments.coordinator, processes, number)]
  if any(given) and not all(given):
    return (
      "--coordinator, --processes and --process-id go together; or give "
      "--distributed alone where the cluster's environment knows them"
    )
  if all(given) and not 0 <= number < processes:
    return f"--process-id {number} must be from 0 to {processes - 1}"
  return None


def add_duplicates(parser: Parser) -> None:
  """Adds --duplicates, a choice of the retrieval task."""
  parser.add_argument(
    "--duplicates",
    nargs="?",
    const="hits",
    choices=names.RETRIEVAL_DUPLICATES,
    help="retrieval: what a caption of another image counts as if it equals "
    "the right one (default: hits; published figures count it as a miss)",
  )


def add_interpolate(parser: Parser, *, type: Callable[[str], Any]) -> None:
  """Adds --interpolate and --with, for weights between two models.

  Args:
    parser: the verb's parser.
    type: `share` for one number, `shares` for several.
  """
  parser.add_argument(
    "--interpolate",
    type=type,
    metavar="A" if type is share else "A,…",
    help="the share of the fine-tuned weights, from 0 to 1; the rest comes "
    "from the model that the run started from (WiSE-FT)",
  )
  parser.add_argument(
    "--with",
    dest="interpolate_with",
    metavar="MODEL",
    help="the model that the run started from, if the workdir does not say it "
    "or if it has moved",
  )


def check_interpolate(arguments: argparse.Namespace) -> str | None:
  """Returns an error message about --interpolate and --with, or None."""
  if arguments.interpolate_with and arguments.interpolate is None:
    return "--with goes with --interpolate"
  return None


def _number(text: str, read: Callable[[str], Any], low, high, said: str) -> Any:
  with contextlib.suppress(ValueError):
    if low <= (number := read(text)) <= high:
      return number
  raise argparse.ArgumentTypeError(f"must be {said}; got {text!r}")


def positive(text: str) -> float:
  """Returns a finite number above 0, for argparse's `type`."""
  low, high = sys.float_info.min, sys.float_info.max
  return _number(text, float, low, high, "a number above 0")


def share(text: str) -> float:
  """Returns a number from 0 to 1, for argparse's `type`."""
  return _number(text, float, 0, 1, "from 0 to 1")


def shares(text: str) -> list[float]:
  """Returns comma-separated numbers from 0 to 1, for argparse's `type`."""
  return [share(part) for part in text.split(",")]


def count(text: str) -> int:
  """Returns a whole number of at least 1, for argparse's `type`."""
  said = "a whole number, at least 1"
  if text.isdecimal() and len(text) >= len(str(_MOST)):
    said += f" and at most {_MOST}"
  return _number(text, int, 1, _MOST, said)


def seed(text: str) -> int:
  """Returns a whole number of at least 0, for argparse's `type`."""
  return _number(text, int, 0, _MOST, f"a whole number from 0 to {_MOST}")


def port(text: str) -> int:
  """Returns the number of a TCP port, or 0, for argparse's `type`."""
  return _number(text, int, 0, 65_535, "a whole number from 0 to 65535")


def counts(text: str) -> list[int]:
  """Returns whole numbers of at least 1 that commas part, for argparse."""
  return [count(part) for part in text.split(",")]


def host_and_port(text: str) -> str:
  """Returns HOST:PORT, for argparse's `type`."""
  host, _, port = text.rpartition(":")
  is_short = port.isdecimal() and len(port) <= 5
  if not (host and is_short and 0 < int(port) < 2**16):
    raise argparse.ArgumentTypeError(
      f"must be HOST:PORT, such as 10.0.0.1:1234; got {text!r}"
    )
  return text
