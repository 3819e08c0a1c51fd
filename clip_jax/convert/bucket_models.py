"""Models in buckets: which of a folder's objects are copied to be read."""

import fnmatch
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from clip_jax import errors, mirrors
from clip_jax.checkpoints import items, workdir
from clip_jax.convert import hub

_METRICS = "metrics.jsonl"  # For a card.
_Result = TypeVar("_Result")
_PATTERNS = (*hub.PATTERNS, *hub.PICKLES)


def read(
  address: str,
  act: Callable[[pathlib.Path], _Result],
  *,
  step: int | None = None,
) -> _Result:
  """Returns what `act` makes of a copy of the model at an address in a bucket.

  Args:
    address: of a file, of a folder, or of a checkpoint of a workdir.
    act: as in `mirrors.read_good`.
    step: the checkpoint of a workdir; None for the newest good one, or for the
      one that is named.

  Raises:
    UserError: there is no model at the address, or it cannot be read.
  """
  address, own = workdir.split_step(address)
  step = own if step is None else step

  def choose(names: Sequence[str]) -> list[str]:
    steps = {
      int(parts[1])
      for parts in (name.split("/") for name in names)
      if parts[0] == workdir.DIRECTORY and parts[1:2] and parts[1].isdecimal()
    }
    if workdir.CONFIG not in names or not steps:
      return [x for x in names if _fits(x)]
    if step is not None and step not in steps:
      raise errors.UserError(
        f"{address}/{workdir.DIRECTORY} holds no checkpoint of step {step}; it "
        f"holds {sorted(steps)}."
      )
    wanted = max(steps) if step is None else step
    return [x for x in names if _is_of_model(x.split("/"), str(wanted))]

  if step is None:
    return mirrors.read_good(address, choose, act)
  path = mirrors.fetched(address, choose)
  return act(path if own is None else path / workdir.DIRECTORY / str(own))


def _fits(name: str) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)


def _is_of_model(parts: list[str], step: str) -> bool:
  """Whether a file of a workdir is needed to use a checkpoint's model."""
  if parts[0] == workdir.DIRECTORY:
    return parts[1:2] == [step] and items.PROGRESS not in parts[2:3]
  about = ([workdir.CONFIG], [_METRICS], [workdir.TOKENIZER, parts[-1]])
  return parts in about
