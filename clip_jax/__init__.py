"""CLIP for JAX: contrastive image-text models, trained, used and converted.

Importing the package starts no device and imports nothing heavy; what
it offers is resolved on first use.
"""

import importlib

__version__ = "0.1.0"

_LAZY = {
  "UserError": ("clip_jax.errors", "UserError"),
  "create_model": ("clip_jax.models.variants", "create_model"),
  "load": ("clip_jax.inference", "load"),
}

__all__ = ["UserError", "__version__", "create_model", "load"]


def __getattr__(name: str):
  if name not in _LAZY:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  importlib.import_module("clip_jax.versions").check()
  module, attribute = _LAZY[name]
  return getattr(importlib.import_module(module), attribute)


def __dir__():
  return sorted(__all__)
