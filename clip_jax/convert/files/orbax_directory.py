"""Reads the parameters in the directory of an Orbax checkpoint manager."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from clip_jax import errors
from clip_jax.convert.tensor import Tensor

ITEM = "default"  # The item in a step's directory.
# What metadata raise that are damaged, or not of dicts of arrays.
_METADATA_ERRORS = (
  AttributeError,
  IndexError,
  KeyError,
  TypeError,
  ValueError,
  OSError,
)


def newest(path: pathlib.Path) -> pathlib.Path:
  """Returns the directory of the newest step.

  Raises:
    UserError: there is no step.
  """
  steps = [
    entry
    for entry in path.iterdir()
    if entry.name.isdecimal() and (entry / ITEM / "_METADATA").is_file()
  ]
  if not steps:
    raise errors.UserError(
      f"{path} has no step of an Orbax checkpoint (STEP/{ITEM}/_METADATA); "
      "fetch or make it again."
    )
  return max(steps, key=lambda entry: int(entry.name))


def read(step: pathlib.Path) -> dict[str, Tensor]:
  """Returns the parameters of a step, without flax's boxes around them.

  Raises:
    DamagedError: it has no parameters.
  """
  path = step / ITEM

  # Cached, since layers are read one by one from an array that holds them all.
  @functools.lru_cache(maxsize=1)
  def restore(names, shape, dtype):
    array = _restore(path, names, shape, dtype)
    array.flags.writeable = False
    return array

  found: dict[str, Tensor] = {}
  handler = ocp.PyTreeCheckpointHandler()
  try:
    # Its annotation is a path of etils, but it takes any path.
    there: Any = path.absolute()
    params = handler.metadata(there).tree["params"]
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
      names = tuple(str(key.key) for key in keys)
      # Parameters were saved in flax's boxes, whose only field is "value".
      name = "/".join(names[:-1] if names[-1] == "value" else names)
      about = tuple(leaf.shape), np.dtype(leaf.dtype)
      found[name] = Tensor(*about, functools.partial(restore, names, *about))
  except _METADATA_ERRORS as error:
    raise errors.DamagedError(
      f"{path} is no Orbax checkpoint with params "
      f"({type(error).__name__}: {str(error)[:200]}); fetch or make it again."
    ) from None
  return found


def _restore(path, names, shape, dtype) -> np.ndarray:
  """Returns one array of a step, without reading the others."""
  item: Any = jax.ShapeDtypeStruct(shape, dtype)
  for name in reversed(["params", *names]):
    item = {name: item}
  arguments = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype), item
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      restored = checkpointer.restore(
        path.absolute(),
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=arguments, partial_restore=True
        ),
      )
  except (ValueError, OSError, KeyError) as error:
    raise errors.DamagedError(
      f"{path}: {'/'.join(names)} cannot be read "
      f"({type(error).__name__}: {str(error)[:200]}); fetch or make it again."
    ) from None
  return np.array(jax.tree.leaves(restored)[0])
