"""Imports point down only, and importing the package is light."""

import ast
import collections
import graphlib
import subprocess
import sys

import pytest

import by_path
import clip_jax

floors = by_path.load("tools/floors.py")
PACKAGE, module_name = floors.PACKAGE, floors.module_name

# The floors of the package, the lowest first; what stands on one imports from
# its own and from those below.
FLOORS = (
  "buckets collector config cpu_compiler errors host_devices host_memory hosts"
  " interrupts json_lines json_text kept_files mirrors names npy_header"
  " other_trainers packing places preprocess programs regular_files sharding"
  " terminal tokenizer versions whole_files",
  "models",
  "data losses",
  "evals report",
  "checkpoints",
  "convert",
  "embedder encoding fingerprint inference inputs shared_batches",
  "search train",
  "loading",
  "doctor plan results",
  "app",
  "cli",
  "__main__",
)
FLOOR_OF = {name: i for i, row in enumerate(FLOORS) for name in row.split()}

# What these may not import at all.
_HEAVY = {"jax", "flax", "optax", "orbax", "grain"}
_OUTSIDE_OF_MODELS = {"optax", "orbax", "grain", "PIL"}
FORBIDDEN = {
  "buckets": _HEAVY,
  "collector": _HEAVY,
  "config": _HEAVY,
  "cpu_compiler": _OUTSIDE_OF_MODELS,
  "data": {"jax", "flax", "optax", "orbax"},
  "errors": _HEAVY,
  "host_devices": _HEAVY,
  "host_memory": _HEAVY,
  "hosts": _OUTSIDE_OF_MODELS,
  "interrupts": _HEAVY,
  "json_lines": _HEAVY,
  "json_text": _HEAVY,
  "kept_files": _HEAVY,
  "losses": _OUTSIDE_OF_MODELS,
  "mirrors": _HEAVY,
  "models": _OUTSIDE_OF_MODELS,
  "npy_header": _HEAVY,
  "other_trainers": _HEAVY,
  "packing": _OUTSIDE_OF_MODELS,
  "places": _HEAVY,
  "preprocess": _HEAVY,
  "programs": _OUTSIDE_OF_MODELS,
  "regular_files": _HEAVY,
  "sharding": _OUTSIDE_OF_MODELS,
  "terminal": _HEAVY,
  "tokenizer": _HEAVY,
  "versions": _HEAVY,
  "whole_files": _HEAVY,
}
# What only one corner needs may be imported inside the function that does.
# (transformers takes a second to import and is for one kind of export; Flax's
# NNX, a tenth of that, is for one function.)
OPTIONAL = {
  "flax.nnx",
  *("apache_beam", "google_crc32c", "huggingface_hub", "matplotlib"),
  "py3langid",
  *("sentencepiece", "simplejpeg", "trackio", "transformers", "wandb"),
  *("faiss", "usearch"),
  # Clients of buckets, which start threads; pyarrow is at the top elsewhere.
  *("pyarrow", "tensorstore"),
  *("gradio", "fastapi", "uvicorn"),  # Gradio brings the other two.
}
# What finds a module by its name, in a table that stands there.
BY_NAME = {
  "clip_jax",
  "clip_jax.cli.verbs",
  "clip_jax.data.sources",
}
EVERYWHERE = {"torch", "tensorflow", "torchvision", "open_clip", "timm"}
# Folders whose modules are named after verbs, and after formats.
AFTER_OTHERS = (
  *("clip_jax.cli.arguments", "clip_jax.cli.commands"),
  *("clip_jax.convert.formats", "clip_jax.convert.verify"),
)
TWICE = {
  # The lists that users choose from, and a checkpoint's tensors.
  "names": ["clip_jax.convert.engine", "clip_jax"],
  # What became of each tensor, and the picture at a training's end.
  "report": ["clip_jax.convert", "clip_jax"],
}
# Compares with other libraries, and imports them inside its functions only.
ORACLES = "clip_jax.convert.verify"


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES[1:], ids=module_name)
def test_imports_point_down(path):
  package = floors.part_name(module_name(path))
  roots = {name.split(".")[0] for name in floors.imports(path)}
  assert not roots & {"configs", "tools", "tests"}
  assert not roots & FORBIDDEN.get(package, set())
  assert not roots & EVERYWHERE or module_name(path).startswith(ORACLES)
  for name in floors.own_imports(path):
    below = FLOOR_OF[floors.part_name(name)] <= FLOOR_OF[package]
    assert below, f"{module_name(path)} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
  graph = {module_name(path): floors.own_imports(path) for path in MODULES}
  graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError.


def test_no_packages_import_each_other_in_a_circle():
  graphlib.TopologicalSorter(floors.graph()).prepare()


def test_functions_import_optional_dependencies_only():
  found = []
  for path in MODULES:
    if module_name(path).startswith(ORACLES):
      continue
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
      if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        found += [
          f"{module_name(path)}.{function.name}: {name}"
          for node in ast.walk(function)
          if isinstance(node, ast.Import | ast.ImportFrom)
          for name in floors.named(node)
          if not {name, name.split(".")[0]} & OPTIONAL
        ]
  assert not found


def test_only_tables_find_modules_by_their_names():
  found = {module_name(p) for p in MODULES if "import_module(" in p.read_text()}
  assert found == BY_NAME


@pytest.mark.parametrize(
  "path",
  [p for p in MODULES if module_name(p).startswith(ORACLES)],
  ids=module_name,
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


def test_a_module_has_its_name_alone():
  """A module called `report` beside three others says nothing.

  Packages count, too: `results` may not be a module's name elsewhere.
  """
  places = collections.defaultdict(list)
  for path in MODULES:
    folder, _, name = module_name(path).rpartition(".")
    if folder not in AFTER_OTHERS:
      places[name].append(folder)
  assert {n: x for n, x in places.items() if len(x) > 1} == TWICE
