"""The libraries that a model is compared with, if they are installed.

They need PyTorch, which the rest of this package never does. Each module loads
a source in its own library.
"""

import importlib.util

import clip_jax.convert.verify.open_clip as open_clip_library
import clip_jax.convert.verify.timm as timm_library
from clip_jax import errors
from clip_jax.convert.verify import huggingface, openai
from clip_jax.convert.verify.oracle import Checkpoint, Oracle

_TRANSFORMERS = (huggingface.load, "transformers", "pip install torch")
# Format -> (loader, the library that it needs, how to install it).
LIBRARIES = {
  "huggingface": _TRANSFORMERS,
  "bert": _TRANSFORMERS,
  "sentence-transformers": _TRANSFORMERS,
  "open-clip": (
    open_clip_library.load,
    "open_clip",
    "pip install open_clip_torch",
  ),
  "openai": (openai.load, "clip", "pip install clip-anytorch"),
  "timm": (timm_library.load, "timm", "pip install timm"),
}


def load(source_format: str, source: Checkpoint) -> Oracle:
  """Returns a source, loaded by the library of its format.

  Raises:
    UserError: no library reads the format, or it is not installed.
  """
  if source_format not in LIBRARIES:
    raise errors.UserError(
      f"No other library here reads the format {source_format!r}. Give a "
      "SOURCE in one of these, such as what `clip-jax convert` has exported, "
      f"and the other one as MODEL: {', '.join(LIBRARIES)}."
    )
  load_there, library, install = LIBRARIES[source_format]
  for needed in ("torch", library):
    if importlib.util.find_spec(needed) is None:
      raise errors.UserError(
        f"To verify a source in the format {source_format!r}, {needed} must be "
        f"installed: {install}."
      )
  try:
    return load_there(source)
  except ImportError as error:
    raise errors.UserError(
      f"{library} is installed but cannot be imported: {error}."
    ) from error
