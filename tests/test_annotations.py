"""Public functions say what they take and return, for checkers and readers."""

import ast
import pathlib
import re

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


def _undeclared(node):
  """Returns the names in "Args" of a docstring that are no parameters."""
  taken = node.args
  names = {x.arg for x in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)}
  names |= {x.arg for x in (taken.vararg, taken.kwarg) if x is not None}
  _, _, told = (ast.get_docstring(node) or "").partition("\nArgs:\n")
  lists = re.findall(
    r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):", told.partition("\n\n")[0], re.M
  )
  documented = [x.strip(" *") for each in lists for x in each.split(",")]
  return [name for name in documented if name not in names]


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}))
def test_every_documented_argument_is_one(folder):
  found = [
    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {', '.join(names)}"
    for path in FILES
    if path.parent == folder
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.FunctionDef) and (names := _undeclared(node))
  ]
  assert not found, found


def test_an_argument_that_is_gone_is_found():
  (node,) = ast.parse(
    'def f(a, *b):\n  """Does.\n\n  Args:\n    a, c: two.\n    *b: more\n'
    '      d: of it.\n    e: gone.\n\n  Raises:\n    g: no.\n  """'
  ).body
  assert _undeclared(node) == ["c", "e"]


def test_a_bare_parameter_is_found():
  source = (
    "def f(a, *, b: int, **c): ...\nclass C:\n  def g(self, d) -> int: ..."
  )
  found = [bare for _, bare in _functions(ast.parse(source).body)]
  assert found == [["a", "c", "return"], ["d"]]
