"""Interpolates weights between a fine-tuned model and the original one.

A model that was fine-tuned on one task gets worse on others. Models on the
straight line between both, (1 - share) * first + share * fine_tuned, can be
good at all of them (WiSE-FT; Wortsman et al. 2022, arXiv 2109.01903).
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clip_jax import errors, sharding
from clip_jax.checkpoints import integrity
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import engine, portable
from clip_jax.convert.engine import family


def check_share(share: float) -> float:
  """Returns `share`; raises UserError unless it is between 0 and 1."""
  if not 0 <= share <= 1:
    raise errors.UserError(
      f"The share {share:g} must be between 0, the model that the training "
      "started from, and 1, the fine-tuned one."
    )
  return share


def interpolate(
  model: portable.Portable, first: portable.Portable, share: float
) -> portable.Portable:
  """Returns (1 - share) * `first` + share * `model`.

  At 0 and 1 the result equals one of them bit for bit. Statistics of batch
  norms and the temperature are interpolated, too.

  Raises:
    UserError: the two have different architectures.
  """
  check_share(share)
  for field, mine, theirs in family.changes(model.spec, first.spec):
    _check_equal(field, mine, theirs)
  _check_arrays(first, model.leaves)
  leaves = {
    path: leaf.map(lambda x, old=first.leaves[path]: mix(old.read(), x, share))
    for path, leaf in model.leaves.items()
  }
  model.report.infer("interpolate", share, "flag")
  note = {"share": share}
  return model.changed("interpolated", note, leaves=leaves, extras={})


def mix(first: np.ndarray, last: np.ndarray, share: float) -> np.ndarray:
  """Returns (1 - share) * first + share * last, in the type of `last`."""
  a, b = (np.asarray(x, np.float64) for x in (first, last))
  return ((1 - share) * a + share * b).astype(last.dtype)


def between(
  first: portable.Portable, variables: Mapping[str, Any], share: float
) -> Any:
  """Returns (1 - share) * `first` + share * `variables`.

  The result has the sharding of `variables`.

  Raises:
    UserError: the two do not have the same arrays.
  """
  check_share(share)
  _check_arrays(first, engine.flatten(variables))

  def move(path, last):
    leaf = first.leaves[sharding.path_name(path)]
    return jax.device_put(
      mix(leaf.read(), np.asarray(last), share), last.sharding
    )

  return jax.tree_util.tree_map_with_path(move, variables)


def first_address(path: str | os.PathLike) -> str:
  """Returns the model that the run in a workdir started from (`init.model`).

  Raises:
    UserError: `path` is not a workdir, or its run has no `init.model`.
  """
  path = pathlib.Path(os.path.expanduser(path))
  address = ""
  if workdir_lib.recognise(pathlib.Path(workdir_lib.split_step(path)[0])):
    address = workdir_lib.load_config(path).init.model
  if not address:
    raise errors.UserError(
      f"{path} does not say which model it was fine-tuned from (the workdir of "
      "a run with init.model does); give that model with --with MODEL."
    )
  return address


def check_unchanged(first: portable.Portable, path: str | os.PathLike) -> None:
  """Raises UserError unless the run in a workdir started from these weights."""
  saved = workdir_lib.load_model(path)
  variables = saved.variables
  noted = workdir_lib.load_counters(path, saved.step).get(workdir_lib.ORIGIN)
  _check_arrays(first, engine.flatten(variables))

  def read(at, like):
    leaf = first.leaves[sharding.path_name(at)]
    return leaf.read().astype(like.dtype)

  found = jax.tree_util.tree_map_with_path(read, variables)
  if noted is not None and integrity.fingerprint(found) != noted:
    raise errors.UserError(
      f"The model that {path} was fine-tuned from has changed since then "
      "(trained further, perhaps). Give a copy of the old one by --with MODEL."
    )


def _check_arrays(first: portable.Portable, arrays: Mapping[str, Any]) -> None:
  """Raises UserError unless `first` has arrays of these names and shapes."""
  for path in sorted(arrays.keys() | first.leaves.keys()):
    shapes = (
      tuple(tree[path].shape) if path in tree else None
      for tree in (arrays, first.leaves)
    )
    _check_equal(f"the shape of {path}", *shapes)


def _check_equal(what: str, one: Any, other: Any) -> None:
  if one != other:
    raise errors.UserError(
      f"These models cannot be interpolated: {what} is {one!r} in one and "
      f"{other!r} in the other (None: it is missing). Both must have the same "
      "architecture."
    )
