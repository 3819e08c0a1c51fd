"""A model on devices that hold its parameters in parts.

The layers of an encoder and the blocks of a ResNet are made whole one by one,
where they are used; all else is made whole at once. For use inside `shard_map`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import sharding
from clip_jax.models import clip, resnet


def place(model: clip.CLIP, specs: Any) -> clip.CLIP:
  """Returns `model` with towers that gather their layers by themselves.

  Args:
    model: to run with what `whole` returns.
    specs: the PartitionSpec of each parameter.
  """
  towers = {}
  for name in ("image", "text"):
    tower = specs.get(name, {})  # A model may have one tower only.
    stack = tower.get("encoder", {}).get("blocks")
    blocks = {k: v for k, v in tower.items() if resnet.is_block(k)}
    if _is_split(stack):
      whole = _gatherer(stack, model.dtype, layer=True)
    elif _is_split(blocks):
      whole = _block_gatherer(blocks, model.dtype)
    else:
      continue
    towers[name] = getattr(model, name).clone(whole=whole)
  return model.clone(**towers)


def _is_split(specs):
  axes = map(sharding.split_axis, jax.tree.leaves(specs))
  return any(axis is not None for axis in axes)


def whole(params: Any, specs: Any, *, dtype: jnp.dtype) -> Any:
  """Returns `params` with all but the towers' layers gathered.

  Args:
    params: this device's parts.
    specs: the PartitionSpec of each parameter.
    dtype: the type that they are used in.
  """

  def gather(path, x, spec):
    name = sharding.path_name(path)
    if is_stack(name) or any(map(resnet.is_block, name.split("/"))):
      return x
    return sharding.gather_tree(x, spec, dtype=dtype)

  return jax.tree_util.tree_map_with_path(gather, params, specs)


def is_stack(path: str) -> bool:
  """Whether the parameter at `path` holds all layers of an encoder."""
  return "/encoder/blocks/" in f"/{path}"


def _gatherer(specs, dtype, *, layer=False):
  """Returns what makes the variables of one layer or block whole."""

  def whole(variables):
    params = sharding.gather_tree(
      variables["params"], specs, dtype=dtype, layer=layer
    )
    return {**variables, "params": params}

  return whole


def _block_gatherer(blocks, dtype):
  """Returns what makes the variables of a block whole, by its name."""
  return lambda name: _gatherer(blocks[name], dtype)
