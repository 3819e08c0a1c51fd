"""A model on devices that hold its parameters in parts.

The layers of an encoder are made whole one by one, where they are used; all
else is made whole at once. For use inside `shard_map`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import sharding
from clip_jax.models import clip


def place(model: clip.CLIP, specs: Any) -> clip.CLIP:
  """Returns `model` with encoders that gather their layers by themselves.

  Args:
    model: to run with what `whole` returns.
    specs: the PartitionSpec of each parameter.
  """
  towers = {}
  for name in ("image", "text"):
    stack = specs[name].get("encoder", {}).get("blocks")
    axes = map(sharding.split_axis, jax.tree.leaves(stack))
    if any(axis is not None for axis in axes):
      towers[name] = getattr(model, name).clone(
        whole=_layer_gatherer(stack, model.dtype)
      )
  return model.clone(**towers)


def whole(params: Any, specs: Any, *, dtype: jnp.dtype) -> Any:
  """Returns `params` with all but the encoders' layers gathered.

  Args:
    params: this device's parts.
    specs: the PartitionSpec of each parameter.
    dtype: the type that they are used in.
  """

  def gather(path, x, spec):
    if is_stack(sharding.path_name(path)):
      return x
    return sharding.gather_tree(x, spec, dtype=dtype)

  return jax.tree_util.tree_map_with_path(gather, params, specs)


def is_stack(path: str) -> bool:
  """Whether the parameter at `path` holds all layers of an encoder."""
  return "/encoder/blocks/" in f"/{path}"


def _layer_gatherer(stack: Any, dtype: jnp.dtype) -> Callable[[Any], Any]:
  """Returns what makes the parameters of one layer whole."""

  def whole(variables):
    params = sharding.gather_tree(
      variables["params"], stack, dtype=dtype, layer=True
    )
    return {**variables, "params": params}

  return whole
