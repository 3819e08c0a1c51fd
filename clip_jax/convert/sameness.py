"""Checks that a model is the same after it was written and read back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.models import paths

# Called with the number of arrays done and their total.
Progress = Callable[[int, int], None]

# Fields that a format may store less exactly than we do, or not at all. Its own
# `refusals` and warnings are about what is lost.
_CHECKED_ELSEWHERE = frozenset(
  (
    *("init_logit_scale", "max_logit_scale", "pooling", "eos_id"),
    *("class_position", "normalize"),
  )
)


def check_described(
  wanted: Mapping[str, Any], found: Mapping[str, Any], target: str
) -> None:
  """Raises UserError if a tower's description has changed when read back."""
  for field, want, got in family.changes(wanted, found):
    if field.partition(".")[2] not in _CHECKED_ELSEWHERE:
      raise errors.UserError(
        f"{field} is {want!r} in the source and came back from the format "
        f"{target!r} as {got!r}: the format cannot hold this model. Nothing "
        "was written."
      )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays hold the same numbers, bit for bit."""
  if a.shape != b.shape:
    return False
  if a.dtype != b.dtype:  # Stacked with layers of a wider dtype.
    a, b = a.astype(np.float64), b.astype(np.float64)
  a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
  return np.array_equal(a, b)


def check_written(
  model: portable.Portable,
  again: portable.Portable,
  report: report_lib.Report,
  progress: Progress | None,
) -> None:
  """Compares a model, and every number of it, with what was read back.

  Args:
    model: the source.
    again: the new checkpoint.
    report: the report of the conversion; gets warnings.
    progress: called with the number of arrays checked and their total.

  Raises:
    UserError: they differ, or the source holds NaN or infinity.
  """
  check_described(model.spec, again.spec, report.target_format)
  kinds = [spec.get("probabilities") for spec in (model.spec, again.spec)]
  if kinds[0] != kinds[1]:
    report.warnings.append(
      f"The model was trained for {kinds[0]} probabilities; programs that read "
      f"the format {report.target_format!r} take it for a model with "
      f"{kinds[1]} ones."
    )
  written = again.leaves
  assert written.keys() == model.leaves.keys()
  for done, (path, leaf) in enumerate(model.leaves.items()):
    if progress:
      progress(done, len(model.leaves))
    zeros = True
    stacked = paths.is_stacked(path)
    for layer in range(leaf.shape[0]) if stacked else (None,):
      want, got = leaf.part(layer), written[path].part(layer)
      if not same_bits(want, got):
        raise errors.UserError(
          f"{path} (layer {layer}) did not come back as it was written; the "
          "disk or the memory may be failing. Nothing was kept."
        )
      if not np.isfinite(want).all():
        raise errors.UserError(
          f"The source holds NaN or infinity in what becomes {path}"
          f"{'' if layer is None else f', layer {layer}'}: it is damaged, or "
          "its training had failed. Nothing was written."
        )
      zeros = zeros and not want.any()
    if zeros and path.endswith(("/kernel", "/embedding")):
      report.warnings.append(f"{path} is all zeros.")
  if progress:
    progress(len(model.leaves), len(model.leaves))
