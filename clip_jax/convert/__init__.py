"""Checkpoints of every format that matters, in and out, exactly.

`formats/table.py` lists the formats; `engine` says what one is made of and how
to write another.
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
