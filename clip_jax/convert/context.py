"""Position embeddings of another context length of a text tower.

Longer ones as Long-CLIP makes them (Zhang et al. 2024, arXiv 2403.15378,
"knowledge-preserved stretching"): the first 20 positions, which most captions
fill and which training has seen most, stay as they are; those after them are
stretched by linear interpolation, at most four times: 77 become up to 248.
Shorter ones are the first rows.
"""

import dataclasses

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable
from clip_jax.convert.tensor import Tensor

KEPT = 20
MAX_STRETCH = 4
LEAST = 3  # A start, an end, and a token between them.
_PATH = "params/text/position_embedding"


def resize_rows(rows: np.ndarray, length: int) -> np.ndarray:
  """Returns (length, width) for positions (old length, width), in float64.

  Position KEPT + i lies at KEPT + i / stretch among the old ones; those beyond
  the last old one lie on the line through the last two.
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
  """Returns the model for texts of another length in tokens.

  Only a Transformer's position embedding changes, when it is read.

  Args:
    model: with a text tower.
    length: the new context length.

  Raises:
    UserError: the tower cannot have that length.
  """
  text = model.spec.get("text")
  if text is None:
    raise errors.UserError(
      "--context-length is of a text tower; this model has an image tower only."
    )
  old = text["context_length"]
  if length == old:
    return model
  leaves = dict(model.leaves)
  if text["kind"] == "transformer":
    _check(length, old)
    leaf = leaves[_PATH]
    how = "cut" if length < old else f"stretched from position {KEPT} on"
    leaves[_PATH] = Tensor(
      (length, *leaf.shape[1:]),
      leaf.dtype,
      lambda: resize_rows(leaf.read(), length).astype(leaf.dtype),
    )
    if not text["causal"] or text["pooling"] in ("last", "map"):
      model.report.warnings.append(
        f"The text tower sees padding, of which there is another amount with "
        f"{length} tokens than with {old}: every text gets another embedding "
        "until the model has been trained on."
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
  return dataclasses.replace(
    model,
    spec={**model.spec, "text": {**text, "context_length": length}},
    leaves=leaves,
    source={**model.source, "context": what},
  )


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
