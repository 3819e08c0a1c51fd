"""Agreement among the processes of a run."""

import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax import errors

_LEAST_BYTES = 1024  # The smallest size of an exchanged text.


def everywhere(fine: bool) -> bool:
  """Whether `fine` is true on every process; all of them must call this."""
  if jax.process_count() == 1:
    return fine
  return bool(multihost_utils.process_allgather(np.array(fine)).all())


def exchanged(text: str) -> list[str]:
  """Returns the texts (ASCII) of all processes; all of them must call this."""
  if jax.process_count() == 1:
    return [text]
  content = np.frombuffer(text.encode("ascii"), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(content)))
  # Few different sizes, because each size compiles a program.
  size = _LEAST_BYTES
  while size < lengths.max():
    size *= 2
  padded = np.zeros(size, np.uint8)
  padded[: len(content)] = content
  gathered = multihost_utils.process_allgather(padded)
  return [
    row[:length].tobytes().decode("ascii")
    for row, length in zip(gathered, lengths, strict=True)
  ]


def gathered(array: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes (processes, ...).

  All of them must call this, with arrays of one shape and type.
  """
  if jax.process_count() == 1:
    return array[None]
  return multihost_utils.process_allgather(array)


def raise_problems(problems: Sequence[str]) -> None:
  """Raises UserError where a process has a problem; on all the same one.

  Args:
    problems: of each process, as exchanged; empty where it has none.
  """
  for process, problem in enumerate(problems):
    if problem:
      where = f"On process {process}: " if len(problems) > 1 else ""
      raise errors.UserError(f"{where}{problem}")


def check_same(values: Mapping[str, str]) -> None:
  """Raises UserError, on all processes, where their values differ.

  Args:
    values: of this process, by names such as "model".
  """
  said = exchanged(json.dumps(dict(values)))
  found = [json.loads(text) for text in said]
  for process, other in enumerate(found):
    for name, value in found[0].items():
      if other.get(name) != value:
        raise errors.UserError(
          f"The processes differ in {name}: {other.get(name)} on process "
          f"{process}, {value} on process 0. Start all with the same command "
          "and the same files."
        )
