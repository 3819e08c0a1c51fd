"""What may stand on the command line."""

import argparse
import contextlib
import difflib
from collections.abc import Sequence
from typing import NoReturn

import clip_jax

_OVERRIDE = "--config."

_MODEL = (
  "a model: a workdir of `clip-jax train`, a checkpoint in any format that "
  "`clip-jax convert` reads, or hf-hub:ORG/NAME"
)
_DATA = (
  "a DATA address, such as builtin:digits/test, folder:PATH, csv:PATH, "
  "wds:PATH/{0000..0012}.tar, arrayrecord:PATH, tfds:NAME/SPLIT"
)
_LABELS = "comma-separated, or a file: text with a label a line, or JSON"
_TEMPLATE = "a text with {} for the label, or a file with one a line"


class Parser(argparse.ArgumentParser):
  """An argument parser that knows its flags, to suggest the meant one."""

  def __init__(self, **settings):
    self.flags: list[str] = []
    super().__init__(allow_abbrev=False, **settings)

  def add_argument(self, *names: str, **settings):
    """Adds an argument as argparse does."""
    self.flags += [name for name in names if name.startswith("--")]
    return super().add_argument(*names, **settings)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the arguments; `overrides` holds what --config.FIELD=VALUE sets.

  Raises:
    SystemExit: 2 with the usage on stderr, or 0 after --help and --version.
  """
  parser, verbs = make_parser()
  if not argv or argv[0].startswith("-"):
    return parser.parse_args(argv)  # Exits: no verb is named.
  verb, *words = argv
  if verb not in verbs:
    _refuse(parser, "verb", verb, verbs)
  chosen = verbs[verb]
  overrides: list[str] = []
  if verb == "train":
    overrides, words = _take_overrides(chosen, words)
  for word in words:
    if word == "--":
      break
    name = word.partition("=")[0]
    if name.startswith("--") and name not in chosen.flags:
      if verb == "train":
        _hint_at_override(chosen, word)
      _refuse(chosen, "flag", name, chosen.flags)
  if verb == "data":  # Has parsers of its own.
    arguments = chosen.parse_args(words)
  else:  # Options may stand before, between and after the others.
    arguments = chosen.parse_intermixed_args(words)
  arguments.verb, arguments.overrides = verb, overrides
  if wrong := _CHECKS.get(arguments.verb, lambda _: None)(arguments):
    verbs[arguments.verb].error(wrong)
  return arguments


def _refuse(
  parser: argparse.ArgumentParser, what: str, got: str, known
) -> NoReturn:
  close = difflib.get_close_matches(got, list(known), n=1, cutoff=0.5)
  hint = f" Did you mean {close[0]}?" if close else ""
  parser.error(f"unknown {what} {got!r}.{hint} Known: {', '.join(known)}")


def _hint_at_override(parser: argparse.ArgumentParser, word: str) -> None:
  """Refuses a flag that is the name of a config's field."""
  from clip_jax import config

  field = word.partition("=")[0].removeprefix("--")
  for name in (field, field.replace("-", "_")):
    if name in config.SCHEMA:
      value = word.partition("=")[2] or "VALUE"
      parser.error(
        f"unknown flag '--{field}'. Did you mean {_OVERRIDE}{name}={value}?"
      )


def _take_overrides(
  parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[list[str], list[str]]:
  """Parts "--config.a.b=c" and "--config.a.b c" from the other words."""
  overrides, others = [], []
  words = iter(argv)
  for word in words:
    if not word.startswith(_OVERRIDE):
      others.append(word)
      continue
    field, equals, value = word.removeprefix(_OVERRIDE).partition("=")
    if not equals:
      value = next(words, None)
      if value is None or value.startswith("--"):
        parser.error(f"{word} needs a value: {word}=VALUE")
    overrides.append(f"{field}={value}")
  fields = {override.partition("=")[0] for override in overrides}
  if {"steps", "epochs"} <= fields:
    parser.error("give --config.steps or --config.epochs, not both")
  return overrides, others


def make_parser() -> tuple[Parser, dict[str, Parser]]:
  """Returns the parser and those of its verbs."""
  parser = Parser(
    prog="clip-jax",
    description="Train, evaluate and use CLIP models.",
    epilog="`clip-jax VERB --help` says more.",
  )
  parser.add_argument(
    "--version", action="version", version=f"clip-jax {clip_jax.__version__}"
  )
  subparsers = parser.add_subparsers(
    dest="verb", metavar="VERB", required=True, parser_class=Parser
  )
  verbs = {}
  for verb, (summary, add_arguments) in _VERBS.items():
    verbs[verb] = subparsers.add_parser(
      verb, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    add_arguments(verbs[verb])
  return parser, verbs


def _add_json(parser: Parser) -> None:
  parser.add_argument(
    "--json", action="store_true", help="print JSON on stdout, nothing else"
  )


def _count(text: str) -> int:
  with contextlib.suppress(ValueError):
    if (number := int(text)) >= 1:
      return number
  raise argparse.ArgumentTypeError(
    f"must be a whole number, at least 1; got {text!r}"
  )


def _host_and_port(text: str) -> str:
  host, _, port = text.rpartition(":")
  if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
    raise argparse.ArgumentTypeError(
      f"must be HOST:PORT, such as 10.0.0.1:1234; got {text!r}"
    )
  return text


def _train(parser: Parser) -> None:
  parser.add_argument(
    "--config", required=True, metavar="FILE", help="a file of configs/"
  )
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="where everything goes; a run that was stopped goes on from there",
  )
  parser.add_argument(
    "--allow-changes",
    action="store_true",
    help="go on with a workdir although the config has changed",
  )
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes, found by the cluster's environment",
  )
  parser.add_argument(
    "--coordinator",
    type=_host_and_port,
    metavar="HOST:PORT",
    help="address of process 0, where the environment does not say it",
  )
  parser.add_argument(
    "--processes", type=_count, metavar="N", help="number of processes"
  )
  parser.add_argument(
    "--process-id", type=int, metavar="I", help="number of this one, from 0"
  )
  _add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...] "
    "[--allow-changes] [--json]\n       [--distributed | --coordinator "
    "HOST:PORT --processes N --process-id I]"
  )


def _check_train(arguments: argparse.Namespace) -> str | None:
  """Returns what is wrong with how the processes are named."""
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


def _eval(parser: Parser) -> None:
  parser.add_argument("model", metavar="MODEL", help=_MODEL)
  parser.add_argument(
    "--task", required=True, metavar="TASK", help="zero_shot or retrieval"
  )
  parser.add_argument("--data", required=True, metavar="DATA", help=_DATA)
  parser.add_argument("--labels", default="", help=f"classes; {_LABELS}")
  parser.add_argument(
    "--template", "--templates", default="", dest="templates", help=_TEMPLATE
  )
  _add_batches(parser)
  _add_json(parser)


def _classify(parser: Parser) -> None:
  parser.add_argument("model", metavar="MODEL", help=_MODEL)
  parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
  parser.add_argument("--labels", required=True, help=_LABELS)
  parser.add_argument(
    "--template", "--templates", default="", dest="templates", help=_TEMPLATE
  )
  _add_json(parser)


def _embed(parser: Parser) -> None:
  parser.add_argument("model", metavar="MODEL", help=_MODEL)
  parser.add_argument("--data", required=True, metavar="DATA", help=_DATA)
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="the index; an index that is there is replaced",
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "float16"),
    help="how the index stores numbers (default: float32)",
  )
  _add_batches(parser)
  _add_json(parser)


def _add_batches(parser: Parser) -> None:
  parser.add_argument(
    "--batch-size", type=_count, default=256, metavar="N", help="default: 256"
  )
  parser.add_argument(
    "--threads",
    type=_count,
    default=4,
    metavar="N",
    help="threads that read and decode (default: 4)",
  )


def _search(parser: Parser) -> None:
  parser.add_argument("index", metavar="INDEX", help="made by `clip-jax embed`")
  parser.add_argument("query", metavar="TEXT", nargs="?", help="what to find")
  parser.add_argument("--image", metavar="FILE", help="an image to find like")
  parser.add_argument(
    "-k", type=_count, default=10, metavar="N", help="results (default: 10)"
  )
  parser.add_argument(
    "--model", metavar="MODEL", help="where the index's model lies now"
  )
  _add_json(parser)


def _check_search(arguments: argparse.Namespace) -> str | None:
  if (arguments.query is None) == (arguments.image is None):
    return "give a text to search for, or --image FILE"
  return None


def _convert(parser: Parser) -> None:
  parser.add_argument(
    "source", metavar="SOURCE", help="a file, a directory or hf-hub:ORG/NAME"
  )
  parser.add_argument("destination", metavar="DEST", help="a new path")
  parser.add_argument(
    "--to",
    required=True,
    metavar="FORMAT",
    help="clip-jax, openai, huggingface, open-clip or big-vision",
  )
  _add_reading(parser)
  parser.add_argument(
    "--image-size",
    type=_count,
    metavar="N",
    help="resize the position embeddings to images of N pixels a side",
  )
  parser.add_argument(
    "--resize-method",
    metavar="NAME",
    help="how: bicubic_antialias (as open_clip does), bicubic (HuggingFace), "
    "bilinear_antialias, bilinear or align_corners (big_vision)",
  )
  parser.add_argument(
    "--old-grid",
    type=_grid,
    metavar="HxW",
    help="rows and columns of the source's patches, where not a square",
  )
  parser.add_argument(
    "--drop-logit-bias",
    action="store_true",
    help="leave out a logit bias that the target has no place for",
  )
  parser.add_argument(
    "--dry-run",
    action="store_true",
    help="read headers only, say what would be done, and write nothing",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what is at DEST"
  )
  _add_json(parser)


def _add_reading(parser: Parser) -> None:
  parser.add_argument(
    "--from",
    dest="source_format",
    metavar="FORMAT",
    help="the source's format, where it is not found out right",
  )
  parser.add_argument(
    "--activation",
    choices=("quick_gelu", "gelu", "gelu_tanh"),
    help="of both towers, where the source does not say it",
  )
  parser.add_argument(
    "--heads",
    type=_heads,
    metavar="IMAGE,TEXT",
    help="attention heads of the towers, where the source does not say them",
  )
  parser.add_argument(
    "--pooling",
    choices=("mean", "cls"),
    help="of a plain BERT, which does not say it",
  )


def _verify(parser: Parser) -> None:
  parser.add_argument(
    "source", metavar="SOURCE", help="a checkpoint that another library reads"
  )
  parser.add_argument(
    "model", metavar="MODEL", help="the same model in any format"
  )
  _add_reading(parser)
  parser.add_argument(
    "--float64",
    action="store_true",
    help="compute in float64, with a bar of 1e-12",
  )
  parser.add_argument(
    "--examples", type=_count, default=4, metavar="N", help="default: 4"
  )
  parser.add_argument(
    "--seed", type=int, default=0, metavar="N", help="of the random inputs"
  )
  _add_json(parser)


def _grid(text: str) -> tuple[int, int]:
  rows, cross, cols = text.partition("x")
  if not cross:
    raise argparse.ArgumentTypeError(f"{text!r} is not like 14x20")
  return _count(rows), _count(cols)


def _heads(text: str) -> tuple[int, int]:
  image, comma, words = text.partition(",")
  if not comma:
    raise argparse.ArgumentTypeError(f"{text!r} is not like 16,16")
  return _count(image), _count(words)


def _check_convert(arguments: argparse.Namespace) -> str | None:
  if (arguments.image_size is None) != (arguments.resize_method is None):
    return "--image-size and --resize-method go together"
  if arguments.old_grid is not None and arguments.image_size is None:
    return "--old-grid goes with --image-size"
  return None


def _models(parser: Parser) -> None:
  _add_json(parser)


def _data(parser: Parser) -> None:
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True, parser_class=Parser
  )
  inspect = actions.add_parser(
    "inspect", help="say what is in DATA and what is wrong with it"
  )
  inspect.add_argument("data", metavar="DATA", help=_DATA)
  prepare = actions.add_parser(
    "prepare", help="copy DATA into ArrayRecord files, for fast random access"
  )
  prepare.add_argument("data", metavar="DATA", help=_DATA)
  prepare.add_argument("out", metavar="OUT", help="a new directory")
  prepare.add_argument(
    "--drop-bad",
    action="store_true",
    help="decode every image and leave the bad ones out",
  )
  for action in (inspect, prepare):
    _add_json(action)
    parser.flags += action.flags


_VERBS = {
  "train": ("train a model", _train),
  "eval": ("measure a model on data", _eval),
  "classify": ("say which label fits an image", _classify),
  "embed": ("make an index of images to search in", _embed),
  "search": ("find images of an index by a text or an image", _search),
  "convert": ("turn a checkpoint into another format, exactly", _convert),
  "verify": ("compare a conversion with its source's own library", _verify),
  "models": ("list the named models", _models),
  "data": ("look at data, or prepare it", _data),
}
_CHECKS = {
  "convert": _check_convert,
  "search": _check_search,
  "train": _check_train,
}
