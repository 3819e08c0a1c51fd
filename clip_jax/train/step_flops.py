"""The operations that an update cannot do without, whatever a compiler makes.

The towers, and a head that predicts captions, forward and back, for the patches
that are kept and the texts as they lie in memory, without the gradients that
nothing trained needs; and the products of all images with all texts. What is
computed again to save memory is not in.
"""

from collections.abc import Callable
from typing import Any

import jax

from clip_jax.models import clip, flops, freezing, paths, variants
from clip_jax.train import gradients, program

_Shapes = Any  # An array, or a tree of them, by shape and type alone.


def update_flops(
  model: clip.CLIP,
  image: _Shapes,
  tokens: _Shapes,
  *,
  frozen: str = "",
  parts: int = 1,
) -> int:
  """Counts the operations of one update of all devices.

  Args:
    model: in training.
    image: of a part of the batch.
    tokens: of the same part, as they lie in memory.
    frozen: regular expression of what is not trained.
    parts: that make the batch.
  """
  variables = {"batch_stats": {}} | variants.abstract_variables(model)
  found = freezing.Frozen.of(**variables, pattern=frozen)
  image, tokens = jax.tree.map(_shape, (image, tokens))
  towers = _tower_flops(_without_remat(model), variables, found, image, tokens)
  if not model.contrastive:
    return parts * towers
  product = 2 * (parts * image.shape[0]) ** 2 * model.embed_dim
  return parts * towers + _loss_products(variables, found) * product


class Counter:
  """Counts the operations of a run's updates; equal shapes are counted once."""

  def __init__(self, step: program.Program):
    self._step = step
    self._known: dict[Any, int] = {}

  def __call__(self, batch: dict[str, Any]) -> int:
    """Returns the operations of the update that `batch` is for.

    Args:
      batch: this process's part of it; those of the others have its shapes.
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
  """Counts the logits, and the gradient of each side that one reaches."""
  trained = jax.eval_shape(frozen.select, variables["params"]).keys()
  return 1 + sum(
    not trained.isdisjoint({tower, paths.projection(tower)})
    for tower in paths.TOWERS
  )


def _tower_flops(model, variables, frozen, image, tokens) -> int:
  """Counts the towers forward and back, on a part of the batch."""

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
  """Returns what the model makes of pairs, in training, and the way back.

  That is a function of its gradients, which holds what is kept for the backward
  pass and gives the gradients of what is trained.
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


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
