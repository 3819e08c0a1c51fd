"""Public functions say what they take and return, for checkers and readers."""

import ast
import pathlib

import pytest

import clip_jax

ROOT = pathlib.Path(clip_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def _is_public(name):
  return not name.startswith("_") or name.endswith("__")


def _functions(body, *, methods=False):
  """Yields public functions and methods, and what of each is annotated."""
  for node in body:
    if isinstance(node, ast.ClassDef) and _is_public(node.name):
      yield from _functions(node.body, methods=True)
    if isinstance(node, ast.FunctionDef) and _is_public(node.name):
      taken = node.args
      names = [*taken.posonlyargs, *taken.args]
      is_static = any(
        isinstance(each, ast.Name) and each.id == "staticmethod"
        for each in node.decorator_list
      )
      names = names[1:] if methods and not is_static else names
      names += [*taken.kwonlyargs, taken.vararg, taken.kwarg]
      bare = [x.arg for x in names if x is not None and x.annotation is None]
      if node.returns is None and node.name != "__init__":
        bare.append("return")
      yield node, bare


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}))
def test_every_public_parameter_and_result_is_annotated(folder):
  found = [
    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {', '.join(bare)}"
    for path in FILES
    if path.parent == folder
    for node, bare in _functions(ast.parse(path.read_text("utf-8")).body)
    if bare
  ]
  assert not found, found


def test_a_bare_parameter_is_found():
  source = (
    "def f(a, *, b: int, **c): ...\nclass C:\n  def g(self, d) -> int: ..."
  )
  found = [bare for _, bare in _functions(ast.parse(source).body)]
  assert found == [["a", "c", "return"], ["d"]]
