"""The page that a contact sheet is drawn on."""

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from clip_jax import preprocess as preprocess_lib
from clip_jax import terminal
from clip_jax.report.nearest import Found, Guess

_WIDTH = 1120
_MARGIN = 48
_TILE = 128
_GAP = 20
_CONTENT = _WIDTH - 2 * _MARGIN
_TEXT_COLUMN = _CONTENT - 5 * _TILE - 4 * _GAP - 32
_TEXT_ROW = _TILE + 52
_IMAGE_ROW = _TILE + 32
_LINE = _TILE / 5
_FIGURES_ROW = 108
_CURVE_HEIGHT = 150
_CHANGE_COLUMN, _CHANGE_ROW = 366, 30
_GUESS_BAR = 332
# The widest texts of `terminal.percent`, and room beside the bar.
_WIDEST_PERCENT = ("100.0 %", "<0.0001 %", "0.00088 %")
_PERCENT_GAP = 10
_GROWTH = 400  # More than the height of anything that is drawn at once.

_INK, _MUTED, _FAINT = "#1d2733", "#66727f", "#e6eaef"
_RIGHT, _WRONG, _NEUTRAL = "#16975a", "#cf4747", "#3f6fd1"


@dataclasses.dataclass(frozen=True, slots=True)
class Headline:
  """A number for the top of the page, such as 97.2 % from 96.1 to 98.0 %."""

  name: str
  value: str
  range: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
  """A fraction of `examples` that are right, with its 95 % interval."""

  value: float
  low: float
  high: float
  examples: int


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
  """A share before and after a training; `main` is drawn in another colour."""

  name: str
  before: Share
  after: Share
  main: bool = False


class Canvas:
  """A white page that is filled from the top."""

  def __init__(self):
    self.y = _MARGIN
    self._draw_on(Image.new("RGB", (_WIDTH, _GROWTH), "white"))

  def _draw_on(self, image: Image.Image) -> None:
    self.image = image
    self.draw = ImageDraw.Draw(image)

  def _down(self, height: int) -> None:
    """Moves down, and keeps at least `_GROWTH` of the page below."""
    self.y += height
    if self.y + _GROWTH > self.image.height:
      longer = Image.new("RGB", (_WIDTH, 2 * self.image.height), "white")
      longer.paste(self.image)
      self._draw_on(longer)

  def finished(self) -> Image.Image:
    """Returns the filled part of the page."""
    return self.image.crop((0, 0, _WIDTH, self.y + _MARGIN))

  def text(
    self,
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    ink: str = _INK,
    anchor: str = "la",
  ) -> None:
    """Writes one line."""
    self.draw.text((x, y), text, font=_font(size), fill=ink, anchor=anchor)

  def header(self, title: str, headlines: Sequence[Headline]) -> None:
    """Writes the title and, below it, as many headlines as have room."""
    title = fit(terminal.printable(title), size=34, width=_CONTENT)
    self.text(_MARGIN, self.y - 4, title, size=34)
    self._down(50)
    if not headlines:
      return
    x = _MARGIN
    for line in headlines:
      name = terminal.printable(line.name, limit=40)
      width = max(
        _length(name, 16), _length(line.value, 28), _length(line.range, 16)
      )
      if x + width > _WIDTH - _MARGIN:
        break
      self.text(x, self.y + 4, line.value, size=28, ink=_NEUTRAL)
      self.text(x, self.y + 40, name, size=16)
      self.text(x, self.y + 62, line.range, size=16, ink=_MUTED)
      x += width + 40
    self._down(_FIGURES_ROW)

  def curve(self, losses: Sequence[tuple[int, float]]) -> None:
    """Draws the loss, from zero up, over the steps.

    Args:
      losses: (step, loss) of at least two different steps, in order.
    """
    left, right = _MARGIN + 64, _WIDTH - _MARGIN
    top, bottom = self.y + 8, self.y + _CURVE_HEIGHT
    first, last = losses[0][0], losses[-1][0]
    lowest = min(0.0, *(loss for _, loss in losses))
    highest = max(loss for _, loss in losses)
    if highest == lowest:
      highest += 1

    def place(step, loss):
      across = (step - first) / (last - first)
      up = (loss - lowest) / (highest - lowest)
      return left + across * (right - left), bottom - up * (bottom - top)

    for value in (lowest, (lowest + highest) / 2, highest):
      _, y = place(first, value)
      self.draw.line((left, y, right, y), fill=_FAINT, width=2)
      label = f"{value:.3g}"
      self.text(left - 12, y, label, size=16, ink=_MUTED, anchor="rm")
    points = [place(*pair) for pair in losses]
    self.draw.line(points, fill=_NEUTRAL, width=3, joint="curve")
    final = f"{losses[-1][1]:.3g} at step {last}"
    self.text(left, bottom + 10, f"step {first}", size=16, ink=_MUTED)
    self.text(right, bottom + 10, final, size=16, ink=_MUTED, anchor="ra")
    self._down(_CURVE_HEIGHT + 46)

  def changes(self, changes: Sequence[Change]) -> None:
    """Draws shares before and after, side by side."""
    columns = [_WIDTH - _MARGIN - (2 - i) * _CHANGE_COLUMN for i in range(2)]
    for x, name in zip(columns, ("before", "after"), strict=True):
      self.text(x, self.y, name, size=16, ink=_MUTED)
    self._down(30)
    for change in changes:
      y = self.y + 12
      examples = f"  {change.after.examples}"
      room = columns[0] - _MARGIN - 24 - _length(examples, 16)
      name = fit(terminal.printable(change.name), size=18, width=room)
      self.text(_MARGIN, y, name, size=18, anchor="lm")
      x = _MARGIN + _length(name, 18)
      self.text(x, y, examples, size=16, ink=_MUTED, anchor="lm")
      for x, share in zip(columns, (change.before, change.after), strict=True):
        self._share(x, y, share, _NEUTRAL if change.main else _RIGHT)
      self._down(_CHANGE_ROW)
    self._down(_GAP)

  def _share(self, x: float, y: float, share: Share, colour: str) -> None:
    """Draws a bar with its interval, and writes both as numbers."""
    bar = (x, x + 150)
    self._bar(bar, y, share.value, colour)
    low, high = (x + 150 * end for end in (share.low, share.high))
    self.draw.line((low, y, high, y), fill=_INK, width=2)
    for end in (low, high):
      self.draw.line((end, y - 4, end, y + 4), fill=_INK, width=2)
    value = f"{100 * share.value:.1f} %"
    between = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
    self.text(x + 232, y, value, size=18, anchor="rm")
    self.text(x + 244, y, between, size=16, ink=_MUTED, anchor="lm")

  def section(self, heading: str, note: str) -> None:
    """Starts a section with a rule."""
    self.draw.line(
      (_MARGIN, self.y, _WIDTH - _MARGIN, self.y), fill=_FAINT, width=2
    )
    self.text(_MARGIN, self.y + 30, heading, size=22, anchor="ls")
    x = _MARGIN + _length(heading, 22) + 14
    self.text(x, self.y + 30, note, size=16, ink=_MUTED, anchor="ls")
    self._down(54)

  def text_row(self, text: str, found: Sequence[Found]) -> None:
    """Draws a text and its nearest images."""
    lines = wrap(terminal.printable(text), size=20, width=_TEXT_COLUMN, most=4)
    y = self.y + _TILE / 2 - 13 * (len(lines) - 1)
    for line in lines:
      self.text(_MARGIN, y, line, size=20, anchor="lm")
      y += 26
    x = _MARGIN + _TEXT_COLUMN + 32
    for hit in found[:5]:
      self._tile(x, hit.image, _colour(hit.correct, unknown=_FAINT))
      self.text(
        x + _TILE / 2,
        self.y + _TILE + 19,
        f"{hit.score:.3f}",
        size=16,
        ink=_colour(hit.correct, unknown=_MUTED),
        anchor="mm",
      )
      x += _TILE + _GAP
    self._down(_TEXT_ROW)

  def image_row(self, image: Image.Image, guesses: Sequence[Guess]) -> None:
    """Draws an image and bars of its most probable texts."""
    self._tile(_MARGIN, image, _FAINT)
    left = _MARGIN + _TILE + 32
    right = _WIDTH - _MARGIN
    end = right - _PERCENT_GAP - max(_length(x, 16) for x in _WIDEST_PERCENT)
    bar = (end - _GUESS_BAR, end)
    for i, guess in enumerate(guesses[:5]):
      y = self.y + _LINE * (i + 0.5)
      text = fit(
        terminal.printable(guess.text), size=18, width=bar[0] - left - 34
      )
      ink = _INK if i == 0 or guess.correct else _MUTED
      self.text(left, y, text, size=18, ink=ink, anchor="lm")
      if guess.correct:
        self._tick(bar[0] - 22, y)
      colour = _colour(guess.correct, unknown=_NEUTRAL)
      if i and colour == _WRONG:
        colour = "#b8c1cc"  # Only the first guess can be wrong.
      self._bar(bar, y, guess.probability, colour)
      percent = terminal.percent(guess.probability)
      self.text(right, y, percent, size=16, ink=ink, anchor="rm")
    self._down(_IMAGE_ROW)

  def _tile(self, x: float, image: Image.Image, colour: str) -> None:
    tile = enlarge(image, _TILE)
    self.image.paste(tile, (round(x), self.y))
    box = (x - 3, self.y - 3, x + _TILE + 2, self.y + _TILE + 2)
    self.draw.rectangle(box, outline=colour, width=3)

  def _tick(self, x: float, y: float) -> None:
    points = [(x, y), (x + 4, y + 5), (x + 12, y - 5)]
    self.draw.line(points, fill=_RIGHT, width=3, joint="curve")

  def _bar(
    self, ends: tuple[float, float], y: float, share: float, colour: str
  ) -> None:
    left, right = ends
    self.draw.rectangle((left, y - 7, right, y + 6), fill=_FAINT)
    filled = left + (right - left) * min(max(share, 0), 1)
    if filled - left >= 1:
      self.draw.rectangle((left, y - 7, filled, y + 6), fill=colour)


def _colour(correct: bool | None, *, unknown: str) -> str:
  return unknown if correct is None else _RIGHT if correct else _WRONG


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size=size)


def _length(text: str, size: int) -> float:
  return _font(size).getlength(text)


def fit(text: str, *, size: int, width: float) -> str:
  """Returns `text`, cut with an ellipsis to at most `width` pixels."""
  if _length(text, size) <= width:
    return text
  # Bisection: the time to measure a text grows with its length.
  low, high = 0, len(text)
  while low < high:
    middle = (low + high + 1) // 2
    if _length(text[:middle].rstrip() + "...", size) <= width:
      low = middle
    else:
      high = middle - 1
  return text[:low].rstrip() + "..."


def wrap(text: str, *, size: int, width: float, most: int) -> list[str]:
  """Returns `text` in at most `most` lines of `width` pixels."""
  lines, words = [""], text.split()
  for i, word in enumerate(words):
    longer = f"{lines[-1]} {word}".strip()
    if not lines[-1] or _length(longer, size) <= width:
      lines[-1] = longer
    elif len(lines) < most:
      lines.append(word)
    else:
      lines[-1] = " ".join([lines[-1], *words[i:]])
      break
  return [fit(line, size=size, width=width) for line in lines]


def enlarge(image: Image.Image, size: int) -> Image.Image:
  """Returns `image` within a square of `size` pixels, on light grey.

  Small images keep their pixels visible.
  """
  image = preprocess_lib.to_rgb(image)
  scale = size / max(image.size)
  shape = [max(1, round(side * scale)) for side in image.size]
  method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
  tile = Image.new("RGB", (size, size), "#f4f6f8")
  corner = ((size - shape[0]) // 2, (size - shape[1]) // 2)
  tile.paste(image.resize(shape, method), corner)
  return tile
