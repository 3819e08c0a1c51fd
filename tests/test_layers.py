"""Imports point down only, and importing the package is light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import clip_jax

PACKAGE = pathlib.Path(clip_jax.__file__).parent

# Longest prefix wins. A module imports lower ranks, or its own.
RANKS = {
  "clip_jax": -1,
  "clip_jax.errors": 0,
  "clip_jax.versions": 0,
  "clip_jax.json_lines": 0,
  "clip_jax.json_text": 0,
  "clip_jax.regular_files": 0,
  "clip_jax.host_memory": 0,
  "clip_jax.config": 0,
  "clip_jax.tokenizer": 0,
  "clip_jax.preprocess": 0,
  "clip_jax.terminal": 0,
  "clip_jax.models": 1,
  "clip_jax.losses": 1,
  "clip_jax.sharding": 1,
  "clip_jax.programs": 1,
  "clip_jax.embedder": 1.5,
  "clip_jax.fingerprint": 1.5,
  "clip_jax.tokens": 1.5,
  "clip_jax.data": 2,
  "clip_jax.evals": 3.0,
  "clip_jax.search": 3.0,
  "clip_jax.report": 3.0,
  "clip_jax.train": 3.1,
  "clip_jax.convert": 3.15,
  "clip_jax.train.initial": 3.16,
  "clip_jax.inference": 3.2,
  "clip_jax.loading": 3.25,
  "clip_jax.plan": 3.3,
  "clip_jax.train.run": 3.3,
  "clip_jax.train.evaluation": 3.3,
  "clip_jax.train.loop": 3.3,
  "clip_jax.doctor": 3.4,
  "clip_jax.cli": 4,
  "clip_jax.__main__": 5,
}

# What a layer may not import at all, not even inside a function.
FORBIDDEN = {
  0: {"jax", "flax", "optax", "orbax", "grain"},
  1: {"optax", "orbax", "grain", "PIL"},
  2: {"flax", "optax", "orbax"},
}
EVERYWHERE = {"torch", "tensorflow", "torchvision", "open_clip", "timm"}
# Compares with other libraries, and imports them inside its functions only.
ORACLES = "clip_jax.convert.oracles"


def _module(path):
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _rank(module):
  names = [n for n in RANKS if module == n or module.startswith(n + ".")]
  longest = max(names, key=len)
  assert longest != "clip_jax" or module == "clip_jax", f"{module} has no layer"
  return RANKS[longest]


def _nodes(tree):
  """Yields all nodes but those that only type checkers see."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
      continue
    yield node
    yield from _nodes(node)


def _imports(path):
  for node in _nodes(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      base = node.module
      for name in node.names:
        file = PACKAGE.parent.joinpath(*base.split("."), name.name)
        is_module = file.is_dir() or file.with_suffix(".py").exists()
        yield f"{base}.{name.name}" if is_module else base


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_imports_point_down(path):
  rank = _rank(_module(path))
  for name in _imports(path):
    root = name.split(".")[0]
    assert root not in EVERYWHERE or _module(path).startswith(ORACLES)
    assert root not in FORBIDDEN.get(int(max(rank, 0)), set()) or rank == 5
    assert root not in ("configs", "tools", "tests")
    if root == "clip_jax" and name != "clip_jax":
      assert _rank(name) <= rank, f"{_module(path)} imports {name}"


@pytest.mark.parametrize(
  "path", [p for p in MODULES if _module(p).startswith(ORACLES)], ids=_module
)
def test_oracles_import_other_libraries_inside_functions(path):
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [n.name for n in node.names]
      roots = {x.split(".")[0] for x in [getattr(node, "module", ""), *names]}
      assert not roots & EVERYWHERE


def test_import_is_light_and_starts_no_device():
  code = (
    "import sys, clip_jax;"
    "heavy = {'jax', 'flax', 'numpy', 'PIL', 'transformers', 'grain'};"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_an_unknown_attribute_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    clip_jax.lod  # noqa: B018
