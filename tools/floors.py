"""Draws the floors of the package, from its imports, into ARCHITECTURE.md.

Run it after packages or what they import changed:

    python tools/floors.py
"""

import ast
import collections
import functools
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "clip_jax"
ARCHITECTURE = PACKAGE.parent / "ARCHITECTURE.md"
BEGIN, END = "<!-- tools/floors.py begins -->", "<!-- and ends -->"


def module_name(path: pathlib.Path) -> str:
  """Returns the name that a file of the package is imported by."""
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_name(module: str) -> str:
  """Returns what stands on a floor: a package, or a module beside them."""
  return module.split(".")[1]


def named(node: ast.Import | ast.ImportFrom) -> list[str]:
  """Returns what an import statement names: modules, as far as they are any."""
  if isinstance(node, ast.Import):
    return [name.name for name in node.names]
  assert node.level == 0, f"relative import: {ast.unparse(node)}"
  names = []
  for name in node.names:
    file = PACKAGE.parent.joinpath(*node.module.split("."), name.name)
    is_module = file.is_dir() or file.with_suffix(".py").exists()
    names.append(f"{node.module}.{name.name}" if is_module else node.module)
  return names


@functools.cache
def imports(path: pathlib.Path) -> list[str]:
  """Returns what a module imports, but for what only type checkers see."""
  pending, names = [ast.parse(path.read_text("utf-8"))], []
  while pending:
    for node in ast.iter_child_nodes(pending.pop()):
      if isinstance(node, ast.Import | ast.ImportFrom):
        names += named(node)
      elif not (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
      ):
        pending.append(node)
  return names


def own_imports(path: pathlib.Path) -> set[str]:
  """Returns the modules of this package that one of them imports."""
  return {name for name in imports(path) if name.startswith("clip_jax.")}


def graph() -> dict[str, set[str]]:
  """Returns each part of the package with the parts that it imports."""
  found = collections.defaultdict(set)
  for path in sorted(PACKAGE.rglob("*.py")):
    if path.parent == PACKAGE and path.stem.startswith("__"):
      continue  # The package itself, and `python -m clip_jax`.
    part = part_name(module_name(path))
    found[part] |= {part_name(name) for name in own_imports(path)} - {part}
  return dict(found)


def _below(part: str, found: dict[str, set[str]]) -> set[str]:
  """Returns all parts that `part` imports, and those that these import."""
  return found[part].union(*(_below(x, found) for x in found[part]))


def draw() -> str:
  """Returns the picture: a line for each part, the highest floor first.

  A floor's number is the length of the longest chain of imports below it. What
  one of the named imports imports in its turn is left out.
  """
  found = graph()
  below = {part: _below(part, found) for part in found}
  floors = collections.defaultdict(list)
  for part in sorted(found):
    chain, reached = 0, found[part]
    while reached:
      chain, reached = chain + 1, set().union(*(found[x] for x in reached))
    floors[chain].append(part)
  width = max(map(len, found))
  lines = []
  for floor in sorted(floors, reverse=True):
    for i, part in enumerate(floors[floor]):
      nearest = found[part] - set().union(*(below[x] for x in found[part]))
      number = "" if i else floor
      line = f"{number:>2}  {part:<{width}}  {' '.join(sorted(nearest))}"
      lines.append(line.rstrip())
  return "\n".join(lines)


def with_picture(text: str) -> str:
  """Returns the text of ARCHITECTURE.md with the picture drawn anew."""
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  return f"{before}{BEGIN}\n```text\n{draw()}\n```\n{END}{after}"


if __name__ == "__main__":
  ARCHITECTURE.write_text(
    with_picture(ARCHITECTURE.read_text("utf-8")), "utf-8"
  )
