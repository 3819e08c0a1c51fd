"""How Sphinx builds the pages: see CONTRIBUTING.md for the command.

The source folder is the repository's root, so that README and the other pages
there are pages as they stand. The pages on the command line and on the config
are written anew by each build, from the parser and from the schema.
"""

import os
import pathlib
import re
import shutil
import sys

os.environ["COLUMNS"] = "80"  # argparse fits its help to the terminal.

import clip_jax
from clip_jax.cli import parser
from clip_jax.config import schema

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import floors

GENERATED = pathlib.Path(__file__).parent / "generated"

project = "clip_jax"
copyright = "the clip_jax authors"
release = clip_jax.__version__
html_title = f"clip_jax {release}"
html_theme = "furo"
root_doc = "docs/index"
include_patterns = [
  "docs/**",
  "ARCHITECTURE.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "README.md",
  "tools/bench/RESULTS.md",
]
exclude_patterns = ["docs/_build"]
extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
]
myst_heading_anchors = 3
# `UserError` is found in its module and in the package, and is one class.
suppress_warnings = ["ref.python"]
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Options", "params_style")]


def command_line() -> str:
  """Returns the page on the command line: each verb's `--help`."""
  _, verbs = parser.make_parser()
  parts = ["# The command line\n"]
  for name, verb in verbs.items():
    parts.append(f"## clip-jax {name}\n\n```text\n{verb.format_help()}```\n")
    for action, of_action in verb.actions.items():
      parts.append(
        f"### clip-jax {name} {action}\n\n"
        f"```text\n{of_action.format_help()}```\n"
      )
  return "\n".join(parts)


def configuration() -> str:
  """Returns the page on the config: a table of all fields of the schema."""
  parts = ["# The config\n", "## A run\n", *_table(schema.SCHEMA)]
  parts += ["\n## An entry of `evals`\n", *_table(schema.EVAL_SCHEMA)]
  return "\n".join(parts) + "\n"


def _table(fields: dict[str, schema.Field]) -> list[str]:
  rows = [
    "| field | type | default | unit | meaning |",
    "|---|---|---|---|---|",
  ]
  for path, field in fields.items():
    meaning = field.help
    # Only a field of texts has choices: no other check takes this one.
    if field.type is str and (choices := field.check("\0")):
      meaning += f"; {choices}"
    default = "" if field.default in ("", None) else f"`{field.default}`"
    meaning = meaning.replace("|", "\\|")
    cells = f"`{path}`", field.type.__name__, default, field.unit, meaning
    rows.append(f"| {' | '.join(cells)} |")
  return rows


def reference(part: str) -> str:
  """Returns the page on a package, or on a module beside the packages."""
  lines = [f"# clip_jax.{part}\n", "```{eval-rst}"]
  for path in sorted(floors.PACKAGE.rglob("*.py")):
    name = floors.module_name(path)
    if f"{name}.".startswith(f"clip_jax.{part}."):
      lines += [f".. automodule:: {name}", "   :members:\n"]
  return "\n".join([*lines, "```\n"])


def to_restructured_text(app, what, name, obj, options, lines) -> None:
  """Rewrites a docstring, whose marks are Markdown's, for Sphinx."""
  text = "\n".join(lines)
  # What is set off by a blank line and by spaces is a block of code.
  text = re.sub(r"(?<=[^:\s]):\n\n(?=  +\S)", "::\n\n", text)
  text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``\\ ", text)
  text = re.sub(r"(?<![\w`*])(\*+)(?=[\w,])", r"\\\1", text)
  lines[:] = text.split("\n")


def setup(app) -> None:
  """Writes the pages that are made from the code before they are read."""
  shutil.rmtree(GENERATED, ignore_errors=True)  # Pages of what is gone.
  (GENERATED / "reference").mkdir(parents=True)
  (GENERATED / "command_line.md").write_text(command_line())
  (GENERATED / "config.md").write_text(configuration())
  for part in floors.graph():
    page = GENERATED / "reference" / f"{part}.md"
    page.write_text(reference(part))
  # Before napoleon, which reads the sections.
  app.connect("autodoc-process-docstring", to_restructured_text, priority=400)
