"""Initialisation of new parameters: our modules' own, or that of OpenAI's code.

Our modules initialise both towers as OpenAI's published code does the text
tower. Its `initialize_parameters` leaves other parameters to the defaults of
PyTorch: the attention and the MLP of the image tower, and the biases of every
MLP and of the attention pool. Those are all uniform, and the biases not zero.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from clip_jax import sharding
from clip_jax.models import clip, paths, text, vit

# The parameters that differ, by the kind of tower, and the bound of their
# uniform distribution: one over the square root of the number of inputs, which
# is `width`, `mlp_dim`, or for Xavier's rule with three matrices in one array
# (3 + 1) * width / 6.
_XAVIER = "xavier"
_MLP_BIASES = {"mlp/fc_in/bias": "width", "mlp/fc_out/bias": "mlp_dim"}
_ROWS = {
  vit.VisionTransformer: {
    **{f"{name}/kernel": _XAVIER for name in paths.QUERY_KEY_VALUE},
    "attention/out/kernel": "width",
    "mlp/fc_in/kernel": "width",
    "mlp/fc_out/kernel": "mlp_dim",
    **_MLP_BIASES,
  },
  text.TextTransformer: _MLP_BIASES,
}
_POOL_BIAS = re.compile(r"^image/attention_pool/attention/\w+/bias$")


def redraw(
  variables: Mapping[str, Any], model: clip.CLIP, key: jax.Array, *, scheme: str
) -> dict[str, Any]:
  """Returns new variables, initialised as `scheme` says.

  Args:
    variables: the result of `model.init`, whose scheme is "scaled".
    model: the module.
    key: the random key that `model.init` was given.
    scheme: "scaled" or "openai".
  """
  if scheme == "scaled":
    return dict(variables)
  params = variables["params"]
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  drawn = []
  for number, (path, leaf) in enumerate(leaves):
    bound = _bound(sharding.path_name(path), model, params)
    if bound is not None:
      # Flax folds the names of modules into the key, never such a number, so
      # these random numbers are independent of Flax's.
      new = jax.random.fold_in(key, number)
      leaf = jax.random.uniform(
        new, leaf.shape, leaf.dtype, minval=-bound, maxval=bound
      )
    drawn.append(leaf)
  return {**variables, "params": jax.tree_util.tree_unflatten(tree, drawn)}


def _bound(
  name: str, model: clip.CLIP, params: Mapping[str, Any]
) -> float | None:
  """Returns the bound of a parameter that differs; None for the others."""
  if _POOL_BIAS.match(name):
    kernel = params["image"]["attention_pool"]["attention"]["query"]["kernel"]
    return kernel.shape[0] ** -0.5
  part, within = paths.tower(name), paths.within_layer(name)
  if part is None or within is None:
    return None
  tower = getattr(model, part)
  inputs = _ROWS.get(type(tower), {}).get(within)
  if inputs is None:
    return None
  if inputs == _XAVIER:
    return (6 / (4 * tower.width)) ** 0.5
  if inputs == "mlp_dim":
    return (tower.mlp_dim or 4 * tower.width) ** -0.5
  return tower.width**-0.5
