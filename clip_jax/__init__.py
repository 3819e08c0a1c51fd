"""CLIP for JAX: contrastive image-text models, trained, used and converted.

Importing the package starts no device and imports nothing heavy; its
names are resolved on first use.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

_OLDEST_PYTHON = (3, 11)
if sys.version_info[:2] < _OLDEST_PYTHON:
  raise ImportError(
    "clip_jax needs Python 3.11 or later, and this is "
    f"{'.'.join(map(str, sys.version_info[:3]))}. Make an environment with a "
    "newer one, such as `uv venv --python 3.12`, and install it there."
  )

if TYPE_CHECKING:  # At run time `_LAZY` resolves these names.
  from clip_jax.errors import AmbiguousError, UserError
  from clip_jax.inference import Clip
  from clip_jax.loading import load
  from clip_jax.models.clip import CLIP, ClipOutput
  from clip_jax.models.variants import create_model
  from clip_jax.preprocess import ImageInput, Preprocess
  from clip_jax.tokenizer import Tokenizer

__version__ = "0.1.0"

_LAZY = {
  "AmbiguousError": "clip_jax.errors",
  "CLIP": "clip_jax.models.clip",
  "Clip": "clip_jax.inference",
  "ClipOutput": "clip_jax.models.clip",
  "ImageInput": "clip_jax.preprocess",
  "Preprocess": "clip_jax.preprocess",
  "Tokenizer": "clip_jax.tokenizer",
  "UserError": "clip_jax.errors",
  "create_model": "clip_jax.models.variants",
  "load": "clip_jax.loading",
}

# What other libraries call it.
_ELSEWHERE = {
  "create_model_and_transforms": "load",
  "create_model_from_pretrained": "load",
  "from_pretrained": "load",
  "get_tokenizer": "load(MODEL).tokenize",
  "tokenize": "load(MODEL).tokenize",
  "available_models": "load, and `clip-jax models` lists architectures",
  "list_models": "load, and `clip-jax models` lists architectures",
  "list_pretrained": "load, with hf-hub:ORG/NAME of any model of the Hub",
}

__all__ = [
  "CLIP",
  "AmbiguousError",
  "Clip",
  "ClipOutput",
  "ImageInput",
  "Preprocess",
  "Tokenizer",
  "UserError",
  "__version__",
  "create_model",
  "load",
]


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    here = _ELSEWHERE.get(name)
    hint = f"; here it is {__name__}.{here}" if here else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
  importlib.import_module("clip_jax.versions").check()
  return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
