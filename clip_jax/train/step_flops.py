"""Counts the floating-point operations that an update needs.

These are the forward and backward passes of the towers, and of a head that
predicts captions, for the patches that are kept and the texts as they lie in
memory, without gradients that only frozen parameters would need; and the
products of all images with all texts. Recomputation to save memory is not
counted.
"""

from collections.abc import Callable
from typing import Any

import jax

from clip_jax.models import clip, flops, freezing, paths, variants
from clip_jax.train import gradients, program

_Shapes = Any  # An array or a tree of arrays; only shapes and types are used.


def update_flops(
  model: clip.CLIP,
  image: _Shapes,
  tokens: _Shapes,
  *,
  frozen: str = "",
  parts: int = 1,
) -> int:
  """Counts the operations of one update on all devices together.

  Args:
    model: the model in training.
    image: the images of a part of the batch.
    tokens: the tokens of the same part, as they lie in memory.
    frozen: a regular expression of the parameters that are not trained.
    parts: the number of such parts in the batch.
  """
  variables = {"batch_stats": {}} | variants.abstract_variables(model)
  found = freezing.Frozen.of(**variables, pattern=frozen)
  image, tokens = jax.tree.map(unsharded, (image, tokens))
  towers = _tower_flops(_without_remat(model), variables, found, image, tokens)
  if not model.contrastive:
    return parts * towers
  product = 2 * (parts * image.shape[0]) ** 2 * model.embed_dim
  return parts * towers + _loss_products(variables, found) * product


class Counter:
  """Counts the operations of a run's updates, once for each set of shapes."""

  def __init__(self, step: program.Program):
    self._step = step
    self._known: dict[Any, int] = {}

  def __call__(self, batch: dict[str, Any]) -> int:
    """Returns the number of operations of the update for a batch.

    Args:
      batch: this process's part; the parts of the others have the same shapes.
    """
    tokens = batch["tokens"]
    key = tuple(x.shape for x in jax.tree.leaves(tokens))
    if key not in self._known:
      self._known[key] = update_flops(
        self._step.model,
        batch["image"],
        tokens,
        frozen=self._step.config.optim.frozen,
        parts=jax.process_count(),
      )
    return self._known[key]


def _loss_products(variables, frozen: freezing.Frozen) -> int:
  """Counts the products for the logits and for the gradients of each side."""
  trained = jax.eval_shape(frozen.select, variables["params"]).keys()
  return 1 + sum(
    not trained.isdisjoint({tower, paths.projection(tower)})
    for tower in paths.TOWERS
  )


def _tower_flops(model, variables, frozen, image, tokens) -> int:
  """Counts both passes of the towers for a part of the batch."""

  def forward_and_back(variables, image, tokens):
    found, back = run_towers(model, frozen, variables, image, tokens)
    return found, back(found)

  return flops.count(forward_and_back, variables, image, tokens)


def run_towers(
  model: clip.CLIP,
  frozen: freezing.Frozen,
  variables: dict[str, Any],
  image: jax.Array,
  tokens: Any,
) -> tuple[Any, Callable]:
  """Returns the model's output for pairs, in training, and the backward pass.

  The latter maps gradients of the output to gradients of the trained
  parameters, and holds the values that are kept for it.
  """
  params = variables["params"]

  def embeds(trained):
    output, _ = model.apply(
      {**variables, "params": frozen.merge(params, trained)},
      image,
      tokens,
      train=True,
      locked=frozen.towers,
      locked_norms=frozen.norms,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(0)},
    )
    return gradients.of_pairs(output)

  return jax.vjp(embeds, frozen.select(params))


def _without_remat(model: clip.CLIP) -> clip.CLIP:
  parts = (*paths.TOWERS, paths.HEAD)
  towers = {part: getattr(model, part) for part in parts}
  return model.clone(
    **{
      part: tower.clone(remat="none")
      for part, tower in towers.items()
      if hasattr(tower, "remat")
    }
  )


def unsharded(x: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape and type of an array, without its sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
