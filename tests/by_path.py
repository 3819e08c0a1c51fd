"""Loads programs of tools/, which are no package."""

import importlib.util
import pathlib
import types

ROOT = pathlib.Path(__file__).parents[1]


def load(path: str) -> types.ModuleType:
  """Returns the module of a file of the repository."""
  file = ROOT / path
  spec = importlib.util.spec_from_file_location(f"of_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
