"""The operations that a step cannot do without, whatever a compiler makes."""

from typing import Any

import jax

from clip_jax.models import clip, flops
from clip_jax.plan import jobs
from clip_jax.train import freezing

# Products of all images with all texts: logits, and two sides of gradients.
_LOSS_PRODUCTS = 3


def analytic_flops(job: jobs.Job) -> int:
  """Returns the operations of one step of all devices, each done once.

  The towers forward and back, for the patches that are kept and the texts as
  they lie in memory, without gradients that nothing trained needs; and three
  products of all images with all texts. What is computed again to save memory
  is not in.
  """
  config, model = job.config, job.model
  product = 2 * config.batch_size**2 * model.embed_dim
  return job.mesh.size * _tower_flops(job) + _LOSS_PRODUCTS * product


def _tower_flops(job: jobs.Job) -> int:
  """Counts the towers of one device, forward and back."""
  model, state = _without_remat(job.model), job.state
  frozen = freezing.Frozen.of(
    state.params, state.batch_stats, job.config.optim.frozen
  )

  def forward_and_back(params, batch_stats, image, tokens):
    def embeds(trained):
      output, _ = model.apply(
        {"params": frozen.merge(params, trained), "batch_stats": batch_stats},
        image,
        tokens,
        train=True,
        locked=frozen.towers,
        locked_norms=frozen.norms,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      return output.image_embeds, output.text_embeds

    found, back = jax.vjp(embeds, frozen.select(params))
    return found, back(found)

  return flops.count(
    forward_and_back,
    *jax.tree.map(_whole, (state.params, state.batch_stats)),
    *jax.tree.map(_own, (job.batch["image"], job.batch["tokens"])),
  )


def _without_remat(model: clip.CLIP) -> clip.CLIP:
  towers = {part: getattr(model, part) for part in ("image", "text")}
  return model.clone(
    **{
      part: tower.clone(remat="none")
      for part, tower in towers.items()
      if hasattr(tower, "remat")
    }
  )


def _whole(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _own(x: Any) -> jax.ShapeDtypeStruct:
  """Returns one device's part of an array."""
  return jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
