"""Text from elsewhere, for Markdown: shown as it is, and never as markup."""

import re
from collections.abc import Sequence

from clip_jax import terminal

_MARKS = re.compile(r"([\\`*_\[\]#|~$])")


def text(words: str) -> str:
  """Returns words on one line that no renderer takes for markup or HTML."""
  words = _MARKS.sub(r"\\\1", terminal.printable(words))
  words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  # A scheme or "www." would become a link.
  return words.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; its cells are texts of any kind."""
  lines = [header, ["---"] * len(header)]
  lines += [[text(cell) for cell in row] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
