"""Reference implementations of both losses, with all logits at once.

These are the plain formulas, differentiated by JAX. `tests/losses` checks that
the fast implementations give the same loss and gradients; nothing else uses
this module.
"""

import jax
import jax.numpy as jnp
from jax import Array


def softmax(
  images: Array, texts: Array, scale: Array, *, others: Array, copies: Array
) -> Array | float:
  """Returns the mean cross-entropy of rows and columns (paper, Figure 3).

  A row's cross-entropy is log(sum_j exp z_ij) - z_ii, written as log(1 + sum
  over j != i of exp(z_ij - z_ii)), which keeps its digits when the sum is tiny.
  Of k positives, the own text and its copies, each has the target 1 / k.

  Args:
    images: (pairs, embed), unit length.
    texts: (pairs, embed), unit length; row i belongs to row i of the images.
    scale: scalar that multiplies the cosines.
    others: bool (pairs, pairs), logits that count beside the pairs' own.
    copies: bool (pairs, pairs), those of `others` that are positives too.
  """
  cosines = images @ texts.T  # (images, texts)
  loss = 0.0
  for axis in (1, 0):  # Each image among all texts, each text among all images.
    above_own = cosines - jnp.expand_dims(jnp.diagonal(cosines), axis)
    logits = scale * above_own
    entropy = jnp.log1p(jnp.exp(logits).sum(axis, where=others))
    entropy -= logits.sum(axis, where=copies) / (1 + copies.sum(axis))
    loss += entropy.mean() / 2
  return loss


def sigmoid(
  images: Array,
  texts: Array,
  scale: Array,
  bias: Array,
  *,
  others: Array,
  copies: Array,
) -> Array:
  """Returns the pairwise sigmoid loss (Zhai et al. 2023, equation 1).

  The arguments are those of `softmax`; `bias` is added to the scaled cosines.
  """
  own = jnp.eye(len(images), dtype=bool)
  logits = scale * images @ texts.T + bias
  margins = jnp.where(own | copies, logits, -logits)
  return -jax.nn.log_sigmoid(margins).sum(where=own | others) / len(images)
