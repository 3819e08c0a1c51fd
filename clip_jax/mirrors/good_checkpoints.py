"""Copies workdirs without the checkpoints that are damaged in their buckets."""

import logging
import pathlib
from collections.abc import Sequence

from clip_jax import errors
from clip_jax.mirrors import fetching
from clip_jax.mirrors import manifest as manifest_lib

_LOGGER = logging.getLogger(__name__)


def fetched_good(
  address: str, choose: fetching.Choose, *, use: str = "read"
) -> pathlib.Path:
  """Returns a copy of a workdir as `fetched` does, without damaged checkpoints.

  As on a disk, an older one takes the place of one that is damaged.

  Raises:
    UserError: none is good; or as `fetched` does.
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
      return fetching.fetched(address, choose_good, use=use)
    except fetching.InconsistentError as error:
      step = manifest_lib.step(error.address[len(address) + 1 :])
      if step is None:
        raise
      damaged.add(step)
      _LOGGER.warning(
        "Checkpoint %d in %s is damaged and not used: %s", step, address, error
      )
    if steps <= damaged:
      raise errors.UserError(
        f"None of the {len(steps)} checkpoints in {address} is good. Restore "
        "one from a backup, or start again in a new workdir."
      )
