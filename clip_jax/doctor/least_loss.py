"""The least loss that a batch allows, whatever the model.

Nobody can tell equal images or equal captions apart: in a batch of two captions
in eight copies each, a text finds its image with one chance in eight. Where
copies are masked or positives, the optimum has no closed form. So it is found
by descent: the training loss is convex in the logits, which are free here,
except that equal pairs of an image and a text share one logit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax import losses

# Enough to come within 0.5 % of what a constant logit gives (tests).
_UPDATES = 400
_FIRST_STEP = 1.0  # In nats of a logit.


def least_loss(
  kind: str,
  *,
  images: np.ndarray,
  texts: np.ndarray,
  duplicates: str = "ignore",
  image_ids: np.ndarray | None = None,
  text_ids: np.ndarray | None = None,
) -> float:
  """Returns the least loss of a batch, in nats.

  Args:
    kind: of the loss.
    images: int (pairs,), equal where a model sees the same image. If all images
      and all texts are zeros, the result is the loss at chance.
    texts: int (pairs,), the same of texts.
    duplicates: what equal ids mean to the loss, see `losses.local_loss`.
    image_ids: int (pairs,), as the loss is given them.
    text_ids: int (pairs,), likewise.
  """
  if duplicates == "ignore":
    image_ids = text_ids = None
  found = _descend(
    images, texts, image_ids, text_ids, kind=kind, duplicates=duplicates
  )
  return max(float(found), 0.0)


@functools.partial(jax.jit, static_argnames=("kind", "duplicates"))
def _descend(images, texts, image_ids, text_ids, *, kind, duplicates):
  count = len(images)

  def loss(logits):
    # Against the identity, the rows are the logits themselves.
    return losses.KINDS[kind](
      logits[images][:, texts],
      jnp.eye(count),
      jnp.float32(1),
      jnp.float32(0),
      method="dense",
      duplicates=duplicates,
      image_ids=image_ids,
      text_ids=text_ids,
    )

  tx = optax.adam(optax.cosine_decay_schedule(_FIRST_STEP, _UPDATES))

  def update(carry, _):
    logits, state = carry
    moves, state = tx.update(jax.grad(loss)(logits), state)
    return (logits + moves, state), None

  logits = jnp.zeros((count, count))
  (logits, _), _ = jax.lax.scan(
    update, (logits, tx.init(logits)), length=_UPDATES
  )
  return loss(logits)
