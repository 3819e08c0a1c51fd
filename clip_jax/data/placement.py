"""From the rows of one host to global arrays on the devices."""

import numpy as np


def local_rows(sharding, batch_size: int) -> np.ndarray:
  """Returns which rows of the global batch this process's devices hold."""
  indices = sharding.addressable_devices_indices_map((batch_size,))
  rows = {index[0].indices(batch_size) for index in indices.values()}
  return np.unique(np.concatenate([np.arange(*bounds) for bounds in rows]))


def place(batch: dict, sharding) -> dict:
  """Returns the arrays of `batch` as global `jax.Array`s.

  Args:
    batch: this process's rows, those of `local_rows`, ascending. Entries that
      are neither arrays nor trees of arrays (`problems`) stay behind.
    sharding: how the first axis is split over the devices.
  """
  import jax

  return {
    name: jax.tree.map(lambda x: _place_array(np.asarray(x), sharding), value)
    for name, value in batch.items()
    if _is_arrays(jax.tree.leaves(value))
  }


def _is_arrays(leaves: list) -> bool:
  return bool(leaves) and all(isinstance(x, np.ndarray) for x in leaves)


def _place_array(local: np.ndarray, sharding):
  import jax

  # Blocks of rows are of one size, so the share of this process in any batch
  # is its share in a batch of one row a device.
  devices = len(sharding.device_set)
  share = len(local_rows(sharding, devices))
  batch_size = len(local) * devices // share
  rows = local_rows(sharding, batch_size)

  def block(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(rows, start)
    return local[first : first + stop - start]

  shape = (batch_size, *local.shape[1:])
  return jax.make_array_from_callback(shape, sharding, block)
