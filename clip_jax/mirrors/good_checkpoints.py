"""Reads workdirs in buckets without the checkpoints that are damaged there."""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from clip_jax import errors
from clip_jax.mirrors import fetching
from clip_jax.mirrors import manifest as manifest_lib

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def read_good(
  address: str,
  choose: fetching.Choose,
  read: Callable[[pathlib.Path], _Result],
  *,
  use: str = "read",
) -> _Result:
  """Returns what `read` makes of the copy of a model, or of a workdir.

  As on a disk, an older checkpoint takes the place of one that is damaged: of
  one whose files are not what the list of files says, or that `read` refuses.

  Args:
    address: of the model.
    choose: as in `fetched`; it is not told the files of damaged checkpoints.
    read: raises `NoGoodCheckpointError` where those in the copy are damaged;
      may be called again.
    use: as in `fetched`.

  Raises:
    UserError: none is good; or as `fetched` and `read` do.
  """
  address = fetching.checked(address)
  damaged: set[int] = set()
  steps: set[int] = set()

  def choose_good(names: Sequence[str]) -> Sequence[str]:
    found = {name: manifest_lib.step(name) for name in names}
    steps.update(step for step in found.values() if step is not None)
    return choose([name for name in names if found[name] not in damaged])

  while True:
    try:
      result = read(fetching.fetched(address, choose_good, use=use))
    except fetching.InconsistentError as error:
      step = manifest_lib.step(error.address[len(address) + 1 :])
      if step is None:
        raise
      damaged.add(step)
      _LOGGER.warning(
        "Checkpoint %d in %s is damaged and not used: %s", step, address, error
      )
    except errors.NoGoodCheckpointError as error:  # Which was told.
      if error.steps <= damaged:
        raise
      damaged |= error.steps
    else:
      if damaged:
        _LOGGER.warning("Using step %d instead.", max(steps - damaged))
      return result
    if steps <= damaged:
      raise errors.UserError(
        f"None of the {len(steps)} checkpoints in {address} is good. Restore "
        "one from a backup, or start again in a new workdir."
      )
