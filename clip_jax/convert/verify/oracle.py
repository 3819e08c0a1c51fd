"""Reference implementations to compare a model with, where one is installed.

They run on PyTorch, which this package never needs otherwise. Each module
loads a source in its own library and gives what its towers hold on the way.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable

# Intermediate results by name, in the order in which they are computed.
Stages = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Oracle:
  """A source in the hands of its own library.

  Attributes:
    library: its name and version.
    image_stages: from normalised images (batch, h, w, 3).
    text_stages: from ids (batch, length).
    logits: (images, texts) from both unit embeddings.
    pixels: normalised float images (n, h, w, 3) of Pillow images by the
      library's own preprocessing; None where it has none here.
    tokens: ids (n, length) of texts by the library's own tokenizer; likewise.
    missing: why "pixels" or "tokens" is None.
  """

  library: str
  image_stages: Callable[[np.ndarray], Stages] | None
  text_stages: Callable[[np.ndarray], Stages] | None
  logits: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
  pixels: Callable[[list], np.ndarray] | None = None
  tokens: Callable[[list[str]], np.ndarray] | None = None
  missing: dict[str, str] = dataclasses.field(default_factory=dict)


def complaint(error: Exception) -> str:
  """Returns the first line of an error that another library raised."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


# Format -> (module here, the library that it needs, what installs it).
ORACLES = {
  "huggingface": ("huggingface", "transformers", "pip install torch"),
  "bert": ("huggingface", "transformers", "pip install torch"),
  "sentence-transformers": ("huggingface", "transformers", "pip install torch"),
  "open-clip": ("open_clip", "open_clip", "pip install open_clip_torch"),
  "openai": ("openai", "clip", "pip install clip-anytorch"),
  "timm": ("timm", "timm", "pip install timm"),
}


def load(
  source_format: str,
  path: pathlib.Path,
  *,
  double: bool,
  spec: dict[str, Any],
  options: portable.Options,
) -> Oracle:
  """Returns the oracle for a source.

  Args:
    source_format: a name in `convert.conversion.FORMATS`.
    path: the source.
    double: compute in float64.
    spec: our description of the source.
    options: what a user says about it.

  Raises:
    UserError: no library reads the format, or it is not installed.
  """
  if source_format not in ORACLES:
    raise errors.UserError(
      f"No other library here reads the format {source_format!r}. Verify "
      "against a source in one of: " + ", ".join(ORACLES) + "."
    )
  module, library, install = ORACLES[source_format]
  for needed in ("torch", library):
    if importlib.util.find_spec(needed) is None:
      raise errors.UserError(
        f"To verify a source in the format {source_format!r}, {needed} must be "
        f"installed: {install}."
      )
  chosen = importlib.import_module(f"clip_jax.convert.verify.{module}")
  try:
    return chosen.load(path, double=double, spec=spec, options=options)
  except ImportError as error:
    raise errors.UserError(
      f"{library} is installed but cannot be imported: {error}."
    ) from error
