"""One HTML page that needs nothing else: pictures inside, and no scripts."""

import base64
import html
from collections.abc import Mapping, Sequence

from clip_jax.evals import published
from clip_jax.results import collected
from clip_jax.results.picture import Figure, Table

# Says that the page was made here, and may be replaced.
MARK = '<meta name="generator" content="clip_jax">'
_STYLE = """
body { color: #1d2733; font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1180px; padding: 24px; }
h1 { font-size: 28px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { border-top: 1px solid #e6eaef; font-size: 20px; margin: 40px 0 4px;
  padding-top: 20px; }
p { color: #66727f; margin: 0 0 12px; max-width: 75ch; }
.wide { overflow-x: auto; }
.wide img { max-width: 100%; min-width: min(640px, 100%); }
@media (max-width: 700px) { body { padding: 12px; }
  .wide img { max-width: none; width: 640px; } }
table { border-collapse: collapse; font-size: 14px; }
th, td { border-bottom: 1px solid #e6eaef; padding: 4px 10px; text-align: left;
  max-width: 34ch; overflow-wrap: break-word; }
th { vertical-align: bottom; }
td:first-child { min-width: 22ch; }
td.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.published { background: #f4f6f8; color: #4d5761; }
li { overflow-wrap: anywhere; }
"""


def render(
  collection: collected.Collection,
  *,
  figures: Sequence[tuple[Figure, bytes]],
  tables: Sequence[Table],
  missing: Mapping[str, str],
) -> str:
  """Returns the page.

  Args:
    collection: what is reported on.
    figures: with their PNGs.
    tables: after the figures.
    missing: what is not on the page, and what it is drawn from.
  """
  parts = [
    line
    for figure, png in figures
    for line in picture(figure.name, figure.title, figure.note, png)
  ]
  parts += map(as_table, tables)
  parts += _rest(collection, missing)
  if any(table.published_columns or table.published_rows for table in tables):
    parts += _sources()
  return document(f"Report: {', '.join(collection.models)}", parts)


def document(title: str, parts: Sequence[str], *, mark: str = MARK) -> str:
  """Returns a page of this title; `parts` are HTML, `mark` says its kind."""
  begin = [
    "<!DOCTYPE html>",
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src data:; style-src 'unsafe-inline'\">",
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    mark,
    f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
    f"<h1>{_text(title)}</h1>",
  ]
  return "\n".join([*begin, *parts, "</body></html>", ""])


def picture(name: str, title: str, note: str, png: bytes) -> list[str]:
  """Returns a picture with its heading, as lines of HTML."""
  inlined = base64.b64encode(png).decode("ascii")
  return [
    f'<h2 id="{name}">{_text(title)}</h2>',
    f"<p>{_text(note)}</p>",
    f'<div class="wide"><img alt="{_text(title)}" '
    f'src="data:image/png;base64,{inlined}"></div>',
  ]


def _text(text: str) -> str:
  # Names of files may hold bytes that are no UTF-8.
  return html.escape(text.encode("utf-8", "backslashreplace").decode())


def as_table(table: Table) -> str:
  """Returns a table with its heading, as HTML."""
  rows = []
  for i, row in enumerate(table.rows):
    is_published = i >= len(table.rows) - table.published_rows
    opening = '<tr class="published">' if is_published else "<tr>"
    cells = [_cell(table, j, text) for j, text in enumerate(row)]
    rows.append(f"{opening}{''.join(cells)}</tr>")
  heads = [
    f'<th scope="col"{_class(table, j)}>{_text(name)}</th>'
    for j, name in enumerate(table.header)
  ]
  return (
    f'<h2 id="{table.name}">{_text(table.title)}</h2>\n'
    f"<p>{_text(table.note)}</p>\n"
    f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _cell(table: Table, column: int, text: str) -> str:
  digits = text.removesuffix(" *").replace(".", "").replace(",", "")
  is_number = digits.isdigit()
  own = "number" if is_number else ""
  return f"<td{_class(table, column, own)}>{_text(text)}</td>"


def _class(table: Table, column: int, own: str = "") -> str:
  is_published = column >= len(table.header) - table.published_columns
  names = " ".join(filter(None, (own, "published" if is_published else "")))
  return f' class="{names}"' if names else ""


def _rest(
  collection: collected.Collection, missing: Mapping[str, str]
) -> list[str]:
  parts = []
  if missing:
    parts.append('<h2 id="missing">Not on this page</h2><ul>')
    parts += [
      f"<li>{_text(name)}: needs {_text(needs)}</li>"
      for name, needs in missing.items()
    ]
    parts.append("</ul>")
  if collection.left_out:
    parts.append('<h2 id="left_out">Files left out</h2><ul>')
    parts += [
      f"<li>{_text(left.path)}: {_text(left.why)}</li>"
      for left in collection.left_out
    ]
    parts.append("</ul>")
  return parts


def _sources() -> list[str]:
  items = [
    f'<li><a href="{_text(source["url"])}">{_text(source["title"])}</a>: '
    f"{_text(source['where'])}</li>"
    for source in published.table()["sources"].values()
  ]
  return ['<h2 id="sources">Sources</h2><ul>', *items, "</ul>"]
