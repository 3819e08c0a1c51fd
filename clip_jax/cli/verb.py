"""What a verb of the command line is, and what it answers."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from clip_jax.cli import flags


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a verb found: for programs, and for people."""

  payload: Any
  text: str
  code: int = 0


@dataclasses.dataclass(frozen=True)
class Verb:
  """One verb: its arguments, and the function that does it.

  `check` returns what is wrong with the arguments together, or None. A verb
  that takes overrides has --config.FIELD=VALUE collected in `overrides`; one
  with actions has a parser for each of them.
  """

  summary: str
  add_arguments: Callable[[flags.Parser], None]
  run: Callable[[argparse.Namespace], Answer]
  check: Callable[[argparse.Namespace], str | None] = lambda _: None
  takes_overrides: bool = False
  has_actions: bool = False
