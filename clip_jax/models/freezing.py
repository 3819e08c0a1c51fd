"""Frozen parameters: towers that are locked wholly or in part.

A regular expression selects them by name, as in LiT (Zhai et al. 2022):
"^image/" locks the image tower. The layers of an encoder are stacked in one
array, but each layer has its own name here (`paths.names`), so that a pattern
can train the last layers only. Frozen parameters have no gradient and no place
in the optimizer's state.
"""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from clip_jax import errors
from clip_jax.models import paths

_NAMES_SHOWN = 4

# For each array that is trained in whole or in part: the trained layers, or
# None for the whole array.
Choice = dict[str, np.ndarray | None]


def _flatten(tree: Any) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")


def _unflatten(flat: dict[str, Any]) -> Any:
  return traverse_util.unflatten_dict(flat, sep="/")


def choose(params: Any, pattern: str) -> Choice:
  """Returns the trained parameters and layers, by path.

  Args:
    params: the model's parameters, as arrays or shapes.
    pattern: a regular expression, searched in the names of parameters.

  Raises:
    UserError: the pattern is not a valid regular expression, or it freezes
      nothing or everything.
  """
  try:
    search = re.compile(pattern).search
  except re.error as error:
    raise errors.UserError(
      f"optim.frozen={pattern!r} is not a valid regular expression: {error}."
    ) from None
  chosen: Choice = {}
  found = 0
  flat = _flatten(params)
  for path, leaf in flat.items():
    free = [not search(name) for name in paths.names(path, leaf.shape)]
    found += len(free) - sum(free)
    if all(free):
      chosen[path] = None
    elif any(free):
      chosen[path] = np.flatnonzero(free)
  if not found or not chosen:
    some = [paths.names(path, leaf.shape)[-1] for path, leaf in flat.items()]
    what = "every parameter" if found else "no parameter"
    raise errors.UserError(
      f"optim.frozen={pattern!r} freezes {what}; parameters have names such as "
      f"{', '.join(some[:_NAMES_SHOWN])}, …. '^image/' locks the image tower."
    )
  return chosen


def select(params: Any, pattern: str) -> Any:
  """Returns the trained part of `params`: arrays, and layers of arrays."""
  if not pattern:
    return params
  chosen, flat = choose(params, pattern), _flatten(params)
  return _unflatten(
    {
      path: flat[path] if layers is None else flat[path][_index(layers)]
      for path, layers in chosen.items()
    }
  )


def merge(params: Any, trained: Any, pattern: str) -> Any:
  """Returns `params` with the trained part replaced by `trained`."""
  if not pattern:
    return trained
  chosen, flat, new = choose(params, pattern), _flatten(params), {}
  trained = _flatten(trained)
  for path, leaf in flat.items():
    layers = chosen.get(path)
    if layers is not None:
      new[path] = leaf.at[_index(layers)].set(trained[path])
    else:
      new[path] = trained[path] if path in chosen else leaf
  return _unflatten(new)


def locked_towers(params: Any, pattern: str) -> tuple[str, ...]:
  """Returns those of the towers "image" and "text" that are wholly frozen."""
  if not pattern:
    return ()
  trained = set(map(paths.tower, choose(params, pattern)))
  return tuple(part for part in paths.TOWERS if part not in trained)


def is_trained(params: Any, path: str, pattern: str) -> bool:
  """Whether the array at `path` is trained, in whole or in part."""
  return not pattern or path in choose(params, pattern)


def locked_norms(
  params: Any, batch_stats: Any, pattern: str
) -> tuple[str, ...]:
  """Returns the batch norms, by path, whose scale and bias are frozen.

  They use their running statistics in training, too, because these are part of
  the frozen features.
  """
  if not pattern:
    return ()
  trained = choose(params, pattern)
  return tuple(
    norm
    for norm in norm_paths(batch_stats)
    if not {f"{norm}/scale", f"{norm}/bias"} & trained.keys()
  )


def norm_paths(batch_stats: Any) -> list[str]:
  """Returns the paths of all batch norms, such as "image/stem_1/norm"."""
  return sorted({path.rpartition("/")[0] for path in _flatten(batch_stats)})


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The parts of one model that a pattern freezes.

  Attributes:
    pattern: the regular expression; empty if nothing is frozen.
    towers: those of "image" and "text" that are wholly frozen.
    norms: paths of the batch norms that use their running statistics.
    temperature: whether the logit scale is frozen.
  """

  pattern: str
  towers: tuple[str, ...]
  norms: tuple[str, ...]
  temperature: bool

  @classmethod
  def of(cls, params: Any, batch_stats: Any, pattern: str) -> "Frozen":
    """Returns the parts of these arrays or shapes that `pattern` freezes."""
    return cls(
      pattern=pattern,
      towers=locked_towers(params, pattern),
      norms=locked_norms(params, batch_stats, pattern),
      temperature=not is_trained(params, "log_scale", pattern),
    )

  def select(self, params: Any) -> Any:
    """Returns the trained part of `params`."""
    return select(params, self.pattern)

  def merge(self, params: Any, trained: Any) -> Any:
    """Returns `params` with the trained part replaced by `trained`."""
    return merge(params, trained, self.pattern)

  def select_specs(self, params: Any, specs: Any) -> Any:
    """Returns the entries of `specs` that belong to the trained part.

    The axis of the layers is never split over devices, so some layers of an
    array are split as the whole array is.

    Args:
      params: arrays or shapes.
      specs: a tree like `params`, of PartitionSpecs.
    """
    flat = _flatten(specs)
    chosen = choose(params, self.pattern) if self.pattern else flat
    return _unflatten({path: flat[path] for path in chosen})


def _index(layers: np.ndarray) -> Any:
  """Returns an index of the first axis; a slice, if possible: no gather."""
  first, last = int(layers[0]), int(layers[-1])
  if len(layers) == last - first + 1:
    return slice(first, last + 1)
  return layers


def trained_count(params: Any, pattern: str) -> int:
  """Counts the trained numbers of `params`, arrays or shapes."""
  shapes = jax.eval_shape(lambda tree: select(tree, pattern), params)
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
