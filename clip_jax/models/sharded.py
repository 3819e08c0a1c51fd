"""Runs a model whose parameters are split over the devices.

One rule says how every array is split. The layers of an encoder and the blocks
of a ResNet are gathered one by one, where they are used; all other parameters
are gathered at once, inside `shard_map`.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.models import clip, paths

# Smaller arrays are replicated: gathering them would cost more than it saves.
MIN_SHARDED_ELEMENTS = 2**14
# Arrays with these names are replicated at any size.
_REPEATED = re.compile(r"(^|/)(\w*bias|scale|log_scale|mean|var)$")


def parameter_spec(
  path: str,
  shape: tuple[int, ...],
  *,
  fsdp: int,
  min_elements: int = MIN_SHARDED_ELEMENTS,
) -> P:
  """Returns an array's PartitionSpec: `fsdp` splits its largest dimension.

  That is the largest of those that `fsdp` divides. The axis of stacked layers,
  which a loop indexes, is never split.

  Args:
    path: names from the root of the tree, joined by "/".
    shape: the shape of the whole array.
    fsdp: the size of the mesh axis "fsdp".
    min_elements: arrays with fewer elements are replicated.
  """
  if fsdp == 1 or math.prod(shape) < min_elements or _REPEATED.search(path):
    return P()
  splittable = [
    (size, -axis)
    for axis, size in enumerate(shape)
    if axis >= paths.is_stacked(path) and size % fsdp == 0
  ]
  if not splittable:
    return P()
  axis = -max(splittable)[1]
  return P(*(sharding.FSDP if i == axis else None for i in range(len(shape))))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
  """Returns the sharding of each array (or shape) in `tree`.

  Optimizer moments lie under the names of their parameters and have their
  shapes, so the same rule places them beside their parameters.
  """

  def place(path, leaf):
    name = sharding.path_name(path)
    spec = parameter_spec(name, leaf.shape, fsdp=mesh.shape[sharding.FSDP])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, tree)


def tree_specs(tree: Any, mesh: Mesh) -> Any:
  """Returns the PartitionSpec of each array (or shape) in `tree`."""
  return jax.tree.map(lambda x: x.spec, tree_shardings(tree, mesh))


def place(model: clip.CLIP, specs: Any) -> clip.CLIP:
  """Returns `model` with towers that gather their layers where they run them.

  Args:
    model: the model, which is then applied to the result of `gather`.
    specs: the PartitionSpec of each parameter.
  """
  towers = {}
  for name in (*paths.TOWERS, paths.HEAD):
    tower = specs.get(name, {})  # A model may have one tower only.
    stack = paths.layers_in(tower)
    blocks = {k: v for k, v in tower.items() if paths.block_numbers(k)}
    if _is_split(stack):
      gather = _gatherer(stack, model.dtype, layer=True)
    elif _is_split(blocks):
      gather = _block_gatherer(blocks, model.dtype)
    else:
      continue
    towers[name] = getattr(model, name).clone(gather=gather)
  return model.clone(**towers)


def _is_split(specs):
  axes = map(sharding.split_axis, jax.tree.leaves(specs))
  return any(axis is not None for axis in axes)


def gather_beside_layers(params: Any, specs: Any, *, dtype: jnp.dtype) -> Any:
  """Returns `params` with everything gathered but the layers of the towers.

  Args:
    params: this device's parts of the parameters.
    specs: the PartitionSpec of each parameter.
    dtype: the type in which the model computes.
  """

  def gather(path, x, spec):
    name = sharding.path_name(path)
    if paths.is_stacked(name) or paths.is_in_block(name):
      return x
    return sharding.gather_tree(x, spec, dtype=dtype)

  return jax.tree_util.tree_map_with_path(gather, params, specs)


def _gatherer(specs, dtype, *, layer=False):
  """Returns a function that gathers the variables of one layer or block."""

  def gather(variables):
    params = sharding.gather_tree(
      variables["params"], specs, dtype=dtype, layer=layer
    )
    return {**variables, "params": params}

  return gather


def _block_gatherer(blocks, dtype):
  """Returns a function that maps a block's name to its `_gatherer`."""
  return lambda name: _gatherer(blocks[name], dtype)
