"""Reads and writes checkpoints in the formats of other libraries, exactly.

`formats/table.py` lists the formats; the docstring of `engine` explains what a
format consists of and how to add one.
"""

from clip_jax.convert.conversion import convert
from clip_jax.convert.opening import open_model
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
