"""Reads SVG drawings that nobody has checked: what they say, and a picture.

A drawing is opened in a process of its own, which has a limit on its memory and
on its processor time for each drawing, and which cannot open a file or a
socket: whatever a drawing refers to, it is not fetched. A process that ends or
takes too long costs its drawing alone. resvg draws, without the fonts of the
machine, so that every machine draws the same: a text in a drawing is left out.
"""

import codecs
import contextlib
import dataclasses
import html
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import sys
import types
import xml.parsers.expat

from PIL import Image, ImageChops

from clip_jax import errors
from clip_jax import versions as versions_lib

MAX_BYTES = 2**24  # Of a file; the largest of Debian's has 1.7 MB.
_MAX_DEPTH = 1000
_MAX_CHARACTERS = 2**24  # Of all texts, entities replaced.
_MAX_FIELD = 2000  # Characters of a title or a keyword; more is cut off.
_MAX_KEYWORDS = 200
_MEMORY_BYTES = 2**31
# Loaded before a process gives up files; others are taken as damage.
_ENCODINGS = ("ascii", "latin-1", "iso8859-15", "cp1252", "utf-8", "utf-16")
_CANVAS = 4  # Sides of a picture that a drawing is drawn at, then cropped.
_MARGIN = 0.03  # Of the side, around a cropped drawing.
_INK = 12  # Difference from white, of 255, that is seen.
_LEAST_INK = 0.002  # Share of a cropped picture that is not white.

_DC = "http://purl.org/dc/elements/1.1/"
_SVG = "http://www.w3.org/2000/svg"
_CC = ("http://web.resource.org/cc/", "http://creativecommons.org/ns#")
_PEOPLE = {f"{_DC} {x}" for x in ("creator", "publisher", "contributor")}
_ENCODING = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.-]{1,40})")

# Why a drawing is left out.
TOO_LARGE = "a file of more than 16 MiB"
NOT_XML = "not an XML file"
HOSTILE = "nested entities, or texts without end"
UNRENDERABLE = "cannot be drawn"
BLANK = "a blank picture"
TOO_SLOW = "takes too much time or memory to draw"


class UnusableError(ValueError):
  """A drawing that cannot be used; its text is the reason."""


@dataclasses.dataclass(frozen=True)
class Words:
  """What a drawing says of itself, as it stands there.

  Attributes:
    title: "" where there is none.
    description: of the work; "" where there is none.
    keywords: its subjects.
    people: who made it, gave it or published it.
  """

  title: str = ""
  description: str = ""
  keywords: tuple[str, ...] = ()
  people: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A drawing that can be used; `png` is a square picture on white."""

  words: Words
  png: bytes


def read_words(data: bytes) -> Words:
  """Returns the title, the keywords and the people of an SVG file.

  They are Dublin Core in RDF, as Inkscape writes them; without such a title,
  the drawing's own counts. Entities that the file declares are replaced, but
  none that names another one; nothing outside of the file is read.

  Raises:
    UnusableError: it is not XML, or written to exhaust its reader.
  """
  reader = _Reader()
  parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
  parser.buffer_text = True
  parser.StartElementHandler = reader.start
  parser.EndElementHandler = reader.end
  parser.CharacterDataHandler = reader.text
  parser.EntityDeclHandler = reader.entity
  try:
    parser.Parse(data, True)
  except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
    if isinstance(error, UnusableError):
      raise
    code = getattr(error, "code", None)
    bomb = xml.parsers.expat.errors.XML_ERROR_AMPLIFICATION_LIMIT_BREACH
    known = xml.parsers.expat.errors.codes[bomb]
    raise UnusableError(HOSTILE if code == known else NOT_XML) from None
  return reader.words()


class _Reader:
  """Collects the texts of the elements that matter."""

  def __init__(self):
    self.path: list[str] = []
    self.found: dict[str, list[str]] = {}
    self.field = ""
    self.pieces: list[str] = []
    self.characters = 0

  def start(self, name, attributes):
    self.path.append(name)
    if len(self.path) > _MAX_DEPTH:
      raise UnusableError(HOSTILE)
    self.text("".join(attributes.values()))
    if field := _field(self.path):
      self.field, self.pieces = field, []

  def end(self, name):
    if self.field and _field(self.path) == self.field:
      # Old editors wrote entities of HTML, escaped once more.
      text = html.unescape("".join(self.pieces)[:_MAX_FIELD])
      self.found.setdefault(self.field, []).append(" ".join(text.split()))
      self.field = ""
    self.path.pop()

  def text(self, data):
    self.characters += len(data)
    if self.characters > _MAX_CHARACTERS:
      raise UnusableError(HOSTILE)
    if self.field:
      self.pieces.append(data)

  def entity(self, name, is_parameter, value, *rest):
    if value is not None and re.search("[&%]", value):
      raise UnusableError(HOSTILE)

  def words(self) -> Words:
    def first(*fields):
      texts = (text for field in fields for text in self.found.get(field, ()))
      return next((text for text in texts if text), "")

    def every(field, most):
      texts = dict.fromkeys(filter(None, self.found.get(field, ())))
      return tuple(texts)[:most]

    return Words(
      title=first("title", "own title"),
      description=first("description"),
      keywords=every("keyword", _MAX_KEYWORDS),
      people=every("person", _MAX_KEYWORDS),
    )


def _field(path: list[str]) -> str:
  """Returns what the text of an element is; "" for nothing of interest."""
  name, parent = path[-1], path[-2] if len(path) > 1 else ""
  if name == f"{_SVG} title":
    return "own title" if len(path) == 2 else ""
  if name == f"{_DC} title":
    if any(part in _PEOPLE for part in path):
      return "person"
    return "title" if parent in [f"{cc} Work" for cc in _CC] else ""
  if name == f"{_DC} description":
    return "description"
  if name.endswith(" li") and f"{_DC} subject" in path[-3:]:
    return "keyword"
  return ""


def draw(data: bytes, size: int) -> bytes:
  """Returns an SVG file's drawing as PNG, cropped to a white square.

  This trusts the file: `Reader` draws in a process with limits.

  Args:
    data: the file.
    size: side of the square, in pixels.

  Raises:
    UnusableError: it cannot be drawn, or nothing is to be seen.
  """
  found = _ENCODING.match(data.removeprefix(b"\xef\xbb\xbf")[:400])
  encoding = found[1].decode() if found else "utf-8"
  try:
    text = data.decode(encoding).removeprefix("\ufeff")
  except (LookupError, UnicodeDecodeError):
    raise UnusableError(NOT_XML) from None
  side = _CANVAS * size
  try:
    drawn = _resvg().svg_to_bytes(
      svg_string=text,
      width=side,
      height=side,
      dpi=96.0,
      background="white",
      skip_system_fonts=True,
    )
  except errors.UserError:
    raise
  except (Exception, _panic()):
    raise UnusableError(UNRENDERABLE) from None
  return _squared(Image.open(io.BytesIO(drawn)).convert("RGB"), size)


def _panic() -> type[BaseException]:
  """Returns the class of the error that a crash in Rust code raises here.

  It is no subclass of `Exception`.
  """
  return getattr(sys.modules.get("pyo3_runtime"), "PanicException", Exception)


def _squared(image: Image.Image, size: int) -> bytes:
  white = Image.new("RGB", image.size, "white")
  ink = ImageChops.difference(image, white).convert("L")
  box = ink.point(lambda value: 255 * (value > _INK)).getbbox()
  if box is None:
    raise UnusableError(BLANK)
  image = image.crop(box)
  side = round(max(image.size) * (1 + 2 * _MARGIN)) + 1
  square = Image.new("RGB", (side, side), "white")
  corner = ((side - image.width) // 2, (side - image.height) // 2)
  square.paste(image, corner)
  square = square.resize((size, size), Image.Resampling.LANCZOS)
  seen = ImageChops.difference(square, Image.new("RGB", square.size, "white"))
  histogram = seen.convert("L").histogram()
  if sum(histogram[_INK:]) < _LEAST_INK * size * size:
    raise UnusableError(BLANK)
  file = io.BytesIO()
  square.save(file, "PNG")
  return file.getvalue()


def _resvg() -> types.ModuleType:
  try:
    import resvg_py
  except ImportError as error:
    raise errors.UserError(
      f"Drawings are drawn with resvg_py, which does not import ({error}); "
      f"install it: {versions_lib.install('svg')}"
    ) from None
  return resvg_py


def versions() -> dict[str, str]:
  """Returns the versions of what draws.

  Raises:
    UserError: it is not installed.
  """
  from PIL import __version__ as pillow

  return {"resvg": _resvg().__resvg_version__, "pillow": pillow}


class Reader:
  """A process that reads one drawing after another, within limits.

  Attributes:
    size: side of the pictures, in pixels.
    seconds: processor time for a drawing.
  """

  def __init__(self, size: int, *, seconds: int = 20):
    self.size, self.seconds = size, seconds
    self._process = None
    self._pipe = None

  def __enter__(self) -> "Reader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def read(self, data: bytes) -> Drawing:
    """Returns what a file says and a picture of it.

    Raises:
      UnusableError: it cannot be used.
      UserError: what draws is not installed.
    """
    if len(data) > MAX_BYTES:
      raise UnusableError(TOO_LARGE)
    if self._process is None:
      self._start()
    try:
      self._pipe.send_bytes(data)
      # Much more than the processor's time: the machine may be busy.
      if not self._pipe.poll(60 + 20 * self.seconds):
        raise EOFError
      answer = json.loads(self._pipe.recv_bytes())
      if "reason" in answer:
        raise UnusableError(answer["reason"])
      png = self._pipe.recv_bytes()
    except (EOFError, OSError):
      self.close()
      raise UnusableError(TOO_SLOW) from None
    lists = {x: tuple(answer[x]) for x in ("keywords", "people")}
    return Drawing(words=Words(**{**answer, **lists}), png=png)

  def _start(self):
    _resvg()
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, self.size, self.seconds), daemon=True
    )
    self._process.start()
    theirs.close()

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._pipe.close()
      self._process.kill()
      self._process.join()
    self._process = self._pipe = None


def _serve(
  pipe: multiprocessing.connection.Connection, size: int, seconds: int
) -> None:
  """Answers with words and pictures until the pipe is closed."""
  with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
    _prepare(size)
    while True:
      data = pipe.recv_bytes(MAX_BYTES)
      _allow(seconds)
      try:
        words, png = read_words(data), draw(data, size)
      except UnusableError as error:
        pipe.send_bytes(json.dumps({"reason": str(error)}).encode())
        continue
      pipe.send_bytes(json.dumps(dataclasses.asdict(words)).encode())
      pipe.send_bytes(png)


def _prepare(size: int) -> None:
  """Loads what draws, then gives up files, sockets and much memory."""
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 2)  # Rust's own words on what it gives up on.
  os.close(nothing)
  for encoding in _ENCODINGS:
    codecs.lookup(encoding)
  shape = f'<svg xmlns="{_SVG}"><path d="M0 0h9v9z"/></svg>'
  draw(shape.encode(), size)
  with contextlib.suppress(ValueError, OSError):  # Not on every system.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _allow(seconds: int) -> None:
  """Ends this process after so much more of the processor's time."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  until = int(used.ru_utime + used.ru_stime) + seconds + 1
  _, most = resource.getrlimit(resource.RLIMIT_CPU)
  if most != resource.RLIM_INFINITY:
    until = min(until, most)
  resource.setrlimit(resource.RLIMIT_CPU, (until, most))
