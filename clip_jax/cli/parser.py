"""Parses the command line."""

import argparse
import collections
import difflib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import clip_jax
from clip_jax import (
  buckets,
  errors,
  host_devices,
  other_trainers,
  terminal,
)
from clip_jax.cli import examples, flags, output, verbs
from clip_jax.data import schemes

_OVERRIDE = "--config."
# Arguments that name files, by their names in the usage; an IMAGE that cannot
# be read does not keep the others from being used.
_MODELS = ("MODEL", "SOURCE")
_DATA = ("DATA", "DATA2")
_PATHS = (
  *("DEST", "DIR", "FILE", "FILE|NAME", "INDEX", "OUT"),
  *("[LANGUAGE=]FILE", *_MODELS),
)
# What may be in a bucket beside models, by its verb and name in the namespace.
_IN_BUCKETS = (
  *("train workdir", "embed out", "convert destination"),
  *("search index", "search keys", "app index", "app keys", "app runs"),
)
# By their names in the namespace; a file's name need not be a text.
_TEXTS_OR_FILES = ("labels", "templates")
_TEXTS = ("query", *_TEXTS_OR_FILES)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
_LIBRARIES = ("jax", "jaxlib", "flax")  # Whose versions are told.


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the parsed arguments of the command line.

  Besides the verb's own arguments they hold `verb` (its name), `overrides`
  (texts "FIELD=VALUE" of --config.FIELD=VALUE), `remarks` (warnings to log
  about the command line), `parser` (the parser of all verbs) and `asked` (that
  of the verb or its action).

  Raises:
    SystemExit: 2 with the usage on stderr, or 0 after --help and --version.
  """
  parser, parsers = make_parser()
  if set(argv) == {"--version", "--json"}:
    print(output.to_json(_installed()), flush=True)
    parser.exit()
  if not argv:
    _list(parser)
  if argv[0].startswith("-"):
    if argv[0].partition("=")[0] not in ("-h", *parser.flags):
      verb_word = next((word for word in argv if word in parsers), "VERB")
      parser.error(f"the verb comes first: clip-jax {verb_word} {argv[0]} …")
    return parser.parse_args(argv)  # Exits: no verb is named.
  name, *words = argv
  if name not in parsers:
    _refuse(parser, "verb", name, parsers)
  chosen, verb = parsers[name], verbs.VERBS[name]
  overrides: list[str] = []
  if verb.takes_overrides:
    overrides, words = _take_overrides(chosen, words)
  asked = chosen
  if verb.has_actions:  # Each action has its own parser.
    action = next((word for word in words if not word.startswith("-")), None)
    if not words:
      _list(chosen)
    if action is not None and action not in chosen.actions:
      _refuse(chosen, "action", action, chosen.actions)
    asked = chosen.actions.get(action or "", chosen)
  for word in words:
    if word == "--":
      break
    flag = word.partition("=")[0]
    if flag.startswith("--") and flag not in asked.flags:
      if verb.takes_overrides:
        _hint_at_others(chosen, flag, words)
        _hint_at_override(chosen, word)
      _refuse(asked, "flag", flag, asked.flags)
  if verb.has_actions:
    arguments = chosen.parse_args(words)
  else:  # Flags may stand before, between and after the other arguments.
    arguments = chosen.parse_intermixed_args(words)
  arguments.verb, arguments.overrides = name, overrides
  arguments.remarks = _repeated(chosen, words, overrides)
  arguments.parser, arguments.asked = parser, asked
  if wrong := verb.check(arguments):
    chosen.error(wrong)
  return arguments


def check_values(arguments: argparse.Namespace) -> None:
  """Raises UserError where a text is none, or a file's name is an address.

  Data may be in buckets, by some schemes, and models and indexes, too.
  """
  for action in arguments.asked.arguments:
    given = getattr(arguments, action.dest, None)
    for value in given if isinstance(given, list) else [given]:
      name = str(next(iter(action.option_strings), action.metavar))
      if isinstance(value, str) and action.dest in _TEXTS:
        _check_text(name, value)
      if action.metavar in _DATA and "://" in str(value):
        schemes.parse_address(str(value))
      is_path = action.metavar in _PATHS or (
        action.dest in _TEXTS_OR_FILES and _REMOTE.match(str(value))
      )
      if is_path and isinstance(value, str):
        is_model = action.metavar in _MODELS
        if buckets.is_address(value) and (
          is_model or f"{arguments.verb} {action.dest}" in _IN_BUCKETS
        ):
          continue
        check = errors.check_model if is_model else errors.check_local
        check(name, value)


def _check_text(name: str, value: str) -> None:
  """Raises UserError where a text, no file's name, is no UTF-8."""
  if not (output.is_unicode(value) or os.path.exists(value)):
    raise errors.UserError(
      f"{name} '{terminal.escaped(value, limit=100)}' is no text: its bytes "
      "are not of this terminal's encoding. Type it again, or name a file of "
      "UTF-8 where one is taken."
    )


def _repeated(
  parser: flags.Parser, words: Sequence[str], overrides: Sequence[str]
) -> list[str]:
  """Returns a remark for each flag given twice: only the last one counts."""
  options = {
    name: action
    for each in (parser, *parser.actions.values())
    for action in each.arguments
    if action not in each.several
    for name in action.option_strings
  }
  given = collections.defaultdict(list)
  for i, word in enumerate(words):
    if word == "--":
      break
    name, equals, value = word.partition("=")
    action = options.get(name if name.startswith("--") else word[:2])
    if action is None or not word.startswith("-") or action.nargs == 0:
      continue  # A flag without a value may be repeated.
    if not name.startswith("--"):
      name, equals, value = word[:2], word[2:], word[2:]
    following = words[i + 1] if i + 1 < len(words) else ""
    given[action.dest].append((name, value if equals else following))
  for override in overrides:
    field, _, value = override.partition("=")
    given[f"{_OVERRIDE}{field}"].append((f"{_OVERRIDE}{field}", value))
  return [
    f"{name} is given {len(pairs)} times; the last one counts: {value}"
    for pairs in given.values()
    for name, value in pairs[-1:]
    if len(pairs) > 1
  ]


def _list(parser: argparse.ArgumentParser) -> NoReturn:
  """Exits with the list of what may follow, where nothing does."""
  parser.print_help(sys.stderr)
  parser.exit(2)


def _refuse(
  parser: argparse.ArgumentParser, what: str, got: str, known
) -> NoReturn:
  close = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
  hint = f" Did you mean {close[0]}?" if close else ""
  parser.error(f"unknown {what} {got!r}.{hint} Known: {', '.join(known)}")


def _hint_at_override(parser: argparse.ArgumentParser, word: str) -> None:
  """Exits with a hint if an unknown flag is the name of a config's field."""
  field = word.partition("=")[0].removeprefix("--")
  for name in (field, field.replace("-", "_")):
    if name in verbs.config_fields():
      value = word.partition("=")[2] or "VALUE"
      parser.error(
        f"unknown flag '--{field}'. Did you mean {_OVERRIDE}{name}={value}?"
      )


def _hint_at_others(
  parser: flags.Parser, flag: str, words: Sequence[str]
) -> None:
  """Exits with a table of all flags of other trainers if `flag` is one."""
  found = [
    (theirs, ours)
    for theirs, ours in other_trainers.translation(words)
    if theirs not in parser.flags
  ]
  if flag in dict(found):
    rows = "".join(f"\n  {theirs:24} {ours}" for theirs, ours in found)
    is_flag = flag.removeprefix("--").replace("_", "-") in other_trainers.FLAGS
    whose = "open_clip's" if is_flag else "other trainers'"
    parser.error(
      f"unknown flag {flag!r}: it is one of {whose}. Here one writes{rows}"
    )


def _take_overrides(
  parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[list[str], list[str]]:
  """Separates "--config.a.b=c" and "--config.a.b c" from the other words."""
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


class _Version(argparse.Action):
  """Prints what is installed, and what JAX would compute on."""

  def __call__(self, parser, *_: Any) -> None:
    found = _installed()
    versions = ", ".join(f"{name} {found[name]}" for name in _LIBRARIES)
    print(f"clip-jax {found['clip_jax']}")
    print(f"{versions}, Python {found['python']}")
    print(f"device: {found['device']}", flush=True)
    parser.exit()


def _installed() -> dict[str, str]:
  """Returns the versions of what is installed, and the device in words."""
  return {
    "clip_jax": clip_jax.__version__,
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    "python": platform.python_version(),
    "device": host_devices.expected(),
  }


def make_parser() -> tuple[flags.Parser, dict[str, flags.Parser]]:
  """Returns the parser of the command, and the parsers of its verbs by name."""
  parser = flags.Parser(
    prog="clip-jax",
    description="Train, evaluate and use CLIP models.",
    epilog=examples.to_begin(),
  )
  parser.add_argument(
    "--version",
    action=_Version,
    nargs=0,
    help="show the versions and the device, without starting it, and exit; "
    "with --json as JSON",
  )
  subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  parsers = {}
  for name, verb in verbs.VERBS.items():
    parsers[name] = subparsers.add_parser(
      name, help=verb.summary, epilog=examples.in_words(name)
    )
    parsers[name].takes_overrides = verb.takes_overrides
    verb.add_arguments(parsers[name])
    for action, its_parser in parsers[name].actions.items():
      its_parser.epilog = examples.in_words(f"{name} {action}")
  return parser, parsers
