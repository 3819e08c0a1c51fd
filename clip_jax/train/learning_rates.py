"""Factors on the learning rate for the parts of a model."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from clip_jax import config as config_lib
from clip_jax import sharding
from clip_jax.models import freezing, paths


def factors(optim: config_lib.Optim, params: Any) -> Any:
  """Returns a factor for each parameter: a number, or one for each layer.

  The factor of a tower is `image_lr_factor` or `text_lr_factor`. The rate of
  each layer is `layer_decay` times that of the layer above it (Clark et al.
  2020; Bao et al. 2022); the embeddings have the lowest rate. Parameters
  outside the towers have the full rate.

  Args:
    optim: `config.optim`.
    params: all parameters of the model, as arrays or shapes.

  Returns:
    A tree like `params` of numpy arrays that broadcast against them.
  """
  depths = _depths(params)

  def factor(path, leaf):
    name = sharding.path_name(path)
    tower = paths.tower(name)
    if tower is None:
      return np.ones(())
    base = getattr(optim, f"{tower}_lr_factor")
    if paths.is_stacked(name):
      below_top = depths[tower] - np.arange(leaf.shape[0])
      rates = base * optim.layer_decay**below_top
      return rates.reshape(-1, *(1,) * (len(leaf.shape) - 1))
    if paths.is_input(name):
      return np.asarray(base * optim.layer_decay ** (depths[tower] + 1.0))
    return np.asarray(base)

  return jax.tree_util.tree_map_with_path(factor, params)


def _depths(params: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of stacked layers of each tower, or 0."""
  depths: dict[str, int] = dict.fromkeys(paths.TOWERS, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = sharding.path_name(path)
    tower = paths.tower(name)
    if tower is not None and paths.is_stacked(name):
      depths[tower] = leaf.shape[0]
  return depths


def scale(
  tx: optax.GradientTransformation, optim: config_lib.Optim
) -> optax.GradientTransformation:
  """Returns `tx` with its updates multiplied by `factors`.

  Its `init` and `update` take all parameters; gradients and updates are those
  of the trained parameters only.
  """
  names = ("image_lr_factor", "text_lr_factor", "layer_decay")
  if all(getattr(optim, name) == 1 for name in names):
    return tx

  def update(updates, state, params=None):
    updates, state = tx.update(updates, state, params)
    chosen = freezing.select(factors(optim, params), optim.frozen)
    return jax.tree.map(
      lambda x, factor: x * factor.astype(x.dtype), updates, chosen
    ), state

  return optax.GradientTransformation(tx.init, update)
