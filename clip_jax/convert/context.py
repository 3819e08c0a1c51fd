"""Changes the context length of a text tower, by its position embedding.

A longer one is made as in Long-CLIP (Zhang et al. 2024, arXiv 2403.15378,
"knowledge-preserved stretching"): the first 20 positions, which most captions
fill and which are trained best, stay the same; those after them are stretched
by linear interpolation, at most four times, so that 77 become up to 248. A
shorter one takes the first positions.
"""

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable

KEPT = 20
MAX_STRETCH = 4
LEAST = 3  # Start, end, and one token between them.
_PATH = "params/text/position_embedding"


def resize_rows(rows: np.ndarray, length: int) -> np.ndarray:
  """Returns positions (length, width), float64, of (old length, width).

  The new position KEPT + i is the old one at KEPT + i / stretch; positions
  beyond the last old one are extrapolated from the last two.
  """
  rows = rows.astype(np.float64)
  old = len(rows)
  if length <= old:
    return rows[:length]
  stretch = (length - KEPT) / (old - KEPT)
  at = KEPT + np.arange(length - KEPT) / stretch
  below = np.minimum(at.astype(int), old - 2)
  share = (at - below)[:, None]
  after = (1 - share) * rows[below] + share * rows[below + 1]
  return np.concatenate([rows[:KEPT], after])


def resize(model: portable.Portable, length: int) -> portable.Portable:
  """Returns the model with another context length.

  Only the position embedding of a Transformer changes, at the time it is read.

  Args:
    model: a model with a text tower.
    length: the new context length in tokens.

  Raises:
    UserError: the tower cannot have that length.
  """
  text = model.spec.get("text")
  if text is None:
    raise errors.UserError(
      "--context-length changes a text tower; this model has only an image "
      "tower. Leave it out."
    )
  old = text["context_length"]
  if length == old:
    return model
  leaves = dict(model.leaves)
  if text["kind"] == "transformer":
    _check(length, old)
    how = "cut" if length < old else f"stretched from position {KEPT} on"
    shape = (length, *leaves[_PATH].shape[1:])
    leaves[_PATH] = leaves[_PATH].map(lambda x: resize_rows(x, length), shape)
    if not text["causal"] or text["pooling"] in ("last", "map"):
      model.report.warnings.append(
        "The text tower attends to padding, and the amount of it differs "
        f"between {length} and {old} tokens: every text gets another "
        "embedding, so train the model further."
      )
  else:
    how = "as they were"
    most = text.get("positions")  # A BERT's; a bag of words has none.
    if length < LEAST or (most is not None and length > most):
      raise errors.UserError(
        f"--context-length {length} must be from {LEAST} to "
        f"{most or 'any number'}, the positions of this {text['kind']}."
      )
  model.report.infer("text.context_length", length, "flag")
  what = {"old": old, "new": length, "positions": how}
  model.report.facts["context"] = what
  spec = {**model.spec, "text": {**text, "context_length": length}}
  return model.changed("context", what, spec=spec, leaves=leaves)


def _check(length: int, old: int) -> None:
  """Raises UserError unless positions can be cut or stretched to `length`."""
  most = KEPT + MAX_STRETCH * (old - KEPT) if old > KEPT + 1 else old
  if LEAST <= length <= most:
    return
  why = (
    f"the first {KEPT} positions are kept and the others stretched at most "
    f"{MAX_STRETCH} times"
  )
  if most == old:
    why = f"there are none after the first {KEPT}, which are kept, to stretch"
  raise errors.UserError(
    f"--context-length {length} must be from {LEAST} to {most} for a tower of "
    f"{old} positions: {why}."
  )
