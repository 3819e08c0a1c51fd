"""Checks that a model is the same after it was written and read back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import engine
from clip_jax.convert.engine import family

# Fields that a format may say less exactly than we do, or not at all; each
# writer refuses, or warns about, what is lost.
_ELSEWHERE = frozenset(
  (
    *("init_logit_scale", "max_logit_scale", "pooling", "eos_id"),
    *("class_position", "normalize"),
  )
)


def check_described(
  wanted: Mapping[str, Any], found: Mapping[str, Any], target: str
) -> None:
  """Raises UserError if a tower's description has changed when read back."""
  wanted, found = family.normal(wanted), family.normal(found)
  for part in engine.towers(wanted):
    got = found[part]
    for field, value in wanted[part].items():
      if field in _ELSEWHERE or got.get(field) == value:
        continue
      raise errors.UserError(
        f"{part}.{field} is {value!r} in the source and came back from the "
        f"format {target!r} as {got.get(field)!r}: the format cannot hold this "
        "model. Nothing was written."
      )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays hold the same numbers, bit for bit."""
  if a.shape != b.shape:
    return False
  if a.dtype != b.dtype:  # Stacked with layers of a wider dtype.
    a, b = a.astype(np.float64), b.astype(np.float64)
  a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
  return np.array_equal(a, b)
