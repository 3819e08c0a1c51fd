"""A checkpoint format: how it is recognised, read and written."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import Any

from clip_jax.convert.portable import Options, Portable


def _nowhere(known: Any) -> bool:
  return False


@dataclasses.dataclass(frozen=True)
class Format:
  """What a conversion asks of a format.

  Attributes:
    name: that users give.
    read: returns the model at a path.
    recognise: whether a directory is of the format.
    knows: whether a file's tensors have the names of the format.
    write: writes a model to a path; None where the format is only read.
    refusals: returns what of a description the format cannot say.
    gives_back: whether a model came from the format as it is, and can go back
      whatever it cannot say.
    told: returns the options that reading a written description takes.
  """

  name: str
  read: Callable[[pathlib.Path, Options], Portable]
  recognise: Callable[[pathlib.Path], bool] = _nowhere
  knows: Callable[[Collection[str]], bool] = _nowhere
  write: Callable[[Portable, pathlib.Path, Options], None] | None = None
  refusals: Callable[[dict[str, Any]], list[str]] = lambda spec: []
  gives_back: Callable[[Portable], bool] = _nowhere
  told: Callable[[dict[str, Any]], Options] = lambda spec: Options()
