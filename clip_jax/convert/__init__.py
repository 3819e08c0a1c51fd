"""Checkpoints of every format that matters, in and out, exactly.

Each format is a module with the same few functions: `recognise` a path, `read`
it into a `Portable`, name what it cannot hold (`refusals`), and `write` one.
"""

from clip_jax.convert.conversion import convert, open_model
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.report import MismatchError, Report

__all__ = [
  "MismatchError",
  "Options",
  "Portable",
  "Report",
  "convert",
  "open_model",
]
