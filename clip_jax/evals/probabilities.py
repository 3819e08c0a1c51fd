"""From cosine similarities to the probabilities of labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import errors
from clip_jax.evals import embedding_model


def softmax(logits: Any) -> Any:
  """Returns the softmax over the last axis, float32.

  Arrays of numpy are computed in float64, JAX's in their own type.
  """
  xp, logits = _wide(logits)
  weights = xp.exp(logits - logits.max(axis=-1, keepdims=True))
  return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def sigmoid(logits: Any) -> Any:
  """Returns the sigmoid of each logit, float32.

  Arrays of numpy are computed in float64, JAX's in their own type.
  """
  xp, logits = _wide(logits)
  return xp.exp(-xp.logaddexp(0, -logits)).astype(np.float32)


def _wide(logits):
  if isinstance(logits, jax.Array):
    return jnp, logits
  return np, np.asarray(logits, np.float64)


# By the names of `names.PROBABILITIES`.
KINDS = {"softmax": softmax, "sigmoid": sigmoid}


def check(kind: str, *, logit_bias: Any | None) -> str:
  """Returns `kind`.

  Raises:
    UserError: it is unknown, or one that needs a bias that is None.
  """
  errors.check_known("kind of probabilities", kind, KINDS)
  if kind == "sigmoid" and logit_bias is None:
    raise errors.UserError(
      "Sigmoid probabilities need a logit bias, which this model does not "
      "have: it was trained with a softmax. Take softmax, or leave it out."
    )
  return kind


def of(
  cosines: Any, *, kind: str, logit_scale: Any, logit_bias: Any | None
) -> Any:
  """Returns the probability of each label, float32 like `cosines`.

  Args:
    cosines: similarities (…, labels).
    kind: in `KINDS`. Of a softmax, the probabilities of all labels add up to
      one; a sigmoid (SigLIP, Zhai et al. 2023) tells for each label by itself
      whether it fits.
    logit_scale: factor of the similarities.
    logit_bias: what is added to them; None for models that have none.

  Raises:
    UserError: one of these two is a number that is not finite.
  """
  embedding_model.check_finite(scale=logit_scale, bias=logit_bias)
  return KINDS[kind](logit_scale * cosines + (logit_bias or 0.0))
