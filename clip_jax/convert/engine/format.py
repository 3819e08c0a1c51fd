"""A checkpoint format: how it is recognised, read and written."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import Any

from clip_jax.convert.portable import Options, Portable


def _never(known: Any) -> bool:
  return False


@dataclasses.dataclass(frozen=True)
class Format:
  """A checkpoint format, as functions.

  Attributes:
    name: the name that users give.
    read: returns the model at a path.
    recognise: whether a directory is of the format.
    recognise_names: whether the names of a file's tensors are the format's.
    write: writes a model to a path; None if the format is only read.
    refusals: returns a message for each field that the format cannot hold.
    can_restore: whether a model came unchanged from this format, so that it can
      be written in spite of refusals.
    options_to_read: returns the options needed to read a written model back.
    suffixes: with which the name of the one file ends that is written, the
      usual one first; empty where a directory is written.
    tower: "image" or "text" where models of the format have that tower alone.
  """

  name: str
  read: Callable[[pathlib.Path, Options], Portable]
  recognise: Callable[[pathlib.Path], bool] = _never
  recognise_names: Callable[[Collection[str]], bool] = _never
  write: Callable[[Portable, pathlib.Path], None] | None = None
  refusals: Callable[[dict[str, Any]], list[str]] = lambda spec: []
  can_restore: Callable[[Portable], bool] = _never
  options_to_read: Callable[[dict[str, Any]], Options] = lambda spec: Options()
  suffixes: tuple[str, ...] = ()
  tower: str | None = None
