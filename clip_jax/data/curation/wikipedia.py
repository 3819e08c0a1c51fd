"""Articles of Wikipedia's dumps (`pages-articles.xml`), as titles and text.

A dump is read in pieces, so that memory does not depend on its size. It is not
trusted: a document type (which could define entities), deep nesting and endless
tags are refused.
"""

import dataclasses
import html
import re
from collections.abc import Callable, Iterator
from typing import Any
from xml.parsers import expat

from clip_jax import errors

_PIECE_BYTES = 2**20
MAX_TEXT = 16 * 2**20  # Characters. MediaWiki itself accepts 2 MiB a page.
_MAX_DEPTH = 32
# Read while the parser reports nothing, which is to say within one tag.
_MAX_SILENT_BYTES = 64 * 2**20
_ELEMENTS = ("title", "ns", "text")  # Those that are read; "ns": namespace.
_ARTICLES = "0"  # The number of the namespace of articles.

# Elements that are dropped with what they contain.
_DROPPED = (
  *("ref", "math", "gallery", "timeline", "score", "hiero", "chem", "ce"),
  *("code", "pre", "source", "syntaxhighlight", "imagemap", "templatestyles"),
  *("style", "script", "table", "graph", "mapframe", "maplink"),
)
_TOKENS = re.compile(
  r"<!--|-->|\{\{|\}\}|\{\||\|\}(?!\})|\[\[|\]\]"
  rf"|<(?P<end>/?)(?P<name>{'|'.join(_DROPPED)})\b[^<>]*>",
  re.IGNORECASE,
)
_CLOSES = {"-->": "<!--", "}}": "{{", "|}": "{|", "]]": "[["}
_OPENS = frozenset(_CLOSES.values())
_MAX_NESTED = 50
_WITH_NAMESPACE = re.compile(r"\s*[^\s:|]+:\S")  # "File:", "Category:", "de:".
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_EXTERNAL_LINK = re.compile(
  r"\[(?:[a-z]{3,6}:)?//[^\s\[\]]*+[ \t]*+([^\[\]\n]*+)\]"
)
_TOO_LONG_NUMBER = re.compile(r"&#[0-9]{100,};?")  # `int` could refuse it.
_ADDRESS = re.compile(r"\b(?:https?|ftp)://\S+")
_EMPHASIS = re.compile("'{2,}")
_BEHAVIOUR_SWITCH = re.compile(r"__[A-Z]+__")


@dataclasses.dataclass(frozen=True)
class Page:
  """An article.

  Attributes:
    title: its name.
    text: in wiki markup; None where it is longer than `MAX_TEXT`.
  """

  title: str
  text: str | None


class _Pages:
  """Collects articles from what an XML parser reports.

  Attributes:
    done: the articles that have ended, until the caller takes them away.
    seen: the number of pages that have ended, articles or not.
    silent_bytes: those read since the parser last reported anything.
    parser: to be given the XML.
  """

  def __init__(self):
    self.done: list[Page] = []
    self.seen = 0
    self.silent_bytes = 0
    self._depth = 0
    self._reading = ""
    self._clear()
    self.parser = expat.ParserCreate()
    self.parser.buffer_text = True
    self.parser.StartElementHandler = self._start
    self.parser.EndElementHandler = self._end
    self.parser.CharacterDataHandler = self._characters
    self.parser.StartDoctypeDeclHandler = self._refuse

  def _clear(self) -> None:
    self._found: dict[str, list[str]] = {name: [] for name in _ELEMENTS}
    self._size, self._is_redirect, self._is_too_long = 0, False, False

  def _refuse(self, *_: Any) -> None:
    raise errors.UserError(
      "it has a document type, which no dump of Wikipedia has"
    )

  def _start(self, name: str, _: Any) -> None:
    self.silent_bytes = 0
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise errors.UserError(f"its elements are nested {self._depth} deep")
    if name == "page":
      self._clear()
    elif name == "redirect":
      self._is_redirect = True
    elif name in _ELEMENTS:
      self._reading = name
      self._found[name] = []
      self._size = 0

  def _characters(self, text: str) -> None:
    self.silent_bytes = 0
    if self._reading and self._size <= MAX_TEXT:
      self._size += len(text)
      self._found[self._reading].append(text)

  def _end(self, name: str) -> None:
    self.silent_bytes = 0
    self._depth -= 1
    if name == self._reading:
      self._reading = ""
      if self._size > MAX_TEXT:
        self._found[name], self._is_too_long = [], True
    elif name == "page":
      self.seen += 1
      title, space, text = ("".join(self._found[name]) for name in _ELEMENTS)
      if space.strip() == _ARTICLES and not self._is_redirect:
        self.done.append(Page(title, None if self._is_too_long else text))
      self._clear()


def read_pages(read: Callable[[int], bytes], *, name: str) -> Iterator[Page]:
  """Yields the articles of a dump, without redirects.

  Args:
    read: takes a number of bytes and returns at most as many of the XML.
    name: the dump's, for messages.

  Raises:
    UserError: it is not such a dump, or damaged, or made to do harm.
  """
  pages = _Pages()
  try:
    while data := read(_PIECE_BYTES):
      pages.silent_bytes += len(data)
      if pages.silent_bytes > _MAX_SILENT_BYTES:
        raise errors.UserError("a tag in it has no end")
      pages.parser.Parse(data, False)
      yield from pages.done
      pages.done.clear()
    pages.parser.Parse(b"", True)
  except expat.ExpatError as error:
    raise errors.UserError(
      f"{name} is not a dump of Wikipedia's pages-articles, or is damaged: "
      f"{error}; get it again."
    ) from None
  except errors.UserError as error:
    raise errors.UserError(
      f"{name} is not a dump of Wikipedia's pages-articles: {error}."
    ) from None
  yield from pages.done
  if not pages.seen:
    raise errors.UserError(
      f"{name} contains no page of Wikipedia; give a dump of pages-articles."
    )


def plain(text: str) -> str:
  """Returns the plain text of wiki markup, a paragraph or list item a line.

  Templates, tables, comments, references, formulas, and links with a namespace
  (pictures, categories, other languages) are dropped with all they contain. Of
  other links, headings, lists, emphasis and tags the text stays.
  """
  text = _TAG.sub(" ", _without_nested(text))
  text = html.unescape(_TOO_LONG_NUMBER.sub("\ufffd", text))
  text = _ADDRESS.sub(" ", _EXTERNAL_LINK.sub(r"\1", text))
  text = _BEHAVIOUR_SWITCH.sub(" ", _EMPHASIS.sub("", text))
  lines = (line.strip("*#:;=| \t") for line in text.splitlines())
  return "\n".join(filter(None, lines))


def _without_nested(text: str) -> str:
  """Returns `text` without what is between pairs of brackets or tags.

  Of links in double square brackets the words stay. A bracket or tag without
  its partner is dropped, and the text after it stays.
  """
  out: list[str] = []
  stack: list[tuple[str, int]] = []  # What is open, and where in `out`.
  at = 0
  for match in _TOKENS.finditer(text):
    out.append(text[at : match.start()])
    at = match.end()
    token, name = match[0], (match["name"] or "").lower()
    if name and token.endswith("/>"):
      continue
    if token in _OPENS or (name and not match["end"]):
      if len(stack) < _MAX_NESTED:
        stack.append((name or token, len(out)))
      continue
    opened = _CLOSES.get(token, name)
    if all(kind != opened for kind, _ in stack):
      continue
    while True:
      kind, start = stack.pop()
      if kind == opened:
        break
    inside = "".join(out[start:]) if kind == "[[" else ""
    del out[start:]
    out.append(_words_of_link(inside))
  return "".join([*out, text[at:]])


def _words_of_link(inside: str) -> str:
  if _WITH_NAMESPACE.match(inside):
    return ""
  target, _, label = inside.partition("|")
  return label.rpartition("|")[2] or target
