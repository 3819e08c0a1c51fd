"""A picture of what a model knows: texts with images, images with texts."""

import collections
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip_jax import errors, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import pipeline
from clip_jax.evals import prompts as prompts_lib
from clip_jax.evals import tasks

_WIDTH = 1120
_MARGIN = 48
_TILE = 128
_GAP = 20
_CONTENT = _WIDTH - 2 * _MARGIN
_TEXT_COLUMN = _CONTENT - 5 * _TILE - 4 * _GAP - 32
_TEXT_ROW = _TILE + 52
_IMAGE_ROW = _TILE + 32
_LINE = _TILE / 5

_INK, _MUTED, _FAINT = "#1d2733", "#66727f", "#e6eaef"
_RIGHT, _WRONG, _NEUTRAL = "#16975a", "#cf4747", "#3f6fd1"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
  """One of the images nearest to a text; `correct` is None if not known."""

  image: Image.Image
  score: float
  correct: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Guess:
  """One of the texts nearest to an image; `correct` is None if not known."""

  text: str
  probability: float
  correct: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
  """What a report shows: each text with images, each image with texts."""

  by_text: Sequence[tuple[str, Sequence[Found]]]
  by_image: Sequence[tuple[Image.Image, Sequence[Guess]]]


def make_report(
  rows: Rows, *, title: str, figures: Sequence[tuple[str, str]] = ()
) -> Image.Image:
  """Draws `rows` under a title.

  Args:
    rows: of `find_rows`.
    title: the first line, such as the model and its data.
    figures: pairs of a short name and a value, such as ("top-1", "97.2 %").
  """
  height = 2 * _MARGIN + 50 + (84 if figures else 0)
  height += (54 + _TEXT_ROW * len(rows.by_text)) if rows.by_text else 0
  height += (66 + _IMAGE_ROW * len(rows.by_image)) if rows.by_image else 0
  page = Page(height)
  page.header(title, figures)
  if rows.by_text:
    page.section("Text to image", "the five nearest, with cosine similarity")
    for text, found in rows.by_text:
      page.text_row(text, found)
  if rows.by_image:
    page.section("Image to text", "the five most probable")
    for image, guesses in rows.by_image:
      page.image_row(image, guesses)
  return page.image


class Page:
  """A white page that is filled from the top."""

  def __init__(self, height: int):
    self.image = Image.new("RGB", (_WIDTH, height), "white")
    self.draw = ImageDraw.Draw(self.image)
    self.y = _MARGIN

  def text(
    self, x: float, y: float, text: str, *, size: int, ink=_INK, anchor="la"
  ) -> None:
    """Writes one line."""
    self.draw.text((x, y), text, font=_font(size), fill=ink, anchor=anchor)

  def header(self, title: str, figures: Sequence[tuple[str, str]]) -> None:
    """Writes the title and the figures below it."""
    title = fit(terminal.printable(title), size=34, width=_CONTENT)
    self.text(_MARGIN, self.y - 4, title, size=34)
    self.y += 50
    if not figures:
      return
    x = _MARGIN
    for name, value in figures:
      width = max(_length(name, 16), _length(value, 28))
      if x + width > _WIDTH - _MARGIN:
        break
      self.text(x, self.y + 4, value, size=28, ink=_NEUTRAL)
      self.text(x, self.y + 40, name, size=16, ink=_MUTED)
      x += width + 40
    self.y += 84

  def section(self, heading: str, note: str) -> None:
    """Starts a section with a rule."""
    self.draw.line(
      (_MARGIN, self.y, _WIDTH - _MARGIN, self.y), fill=_FAINT, width=2
    )
    self.text(_MARGIN, self.y + 30, heading, size=22, anchor="ls")
    x = _MARGIN + _length(heading, 22) + 14
    self.text(x, self.y + 30, note, size=16, ink=_MUTED, anchor="ls")
    self.y += 54

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
    self.y += _TEXT_ROW

  def image_row(self, image: Image.Image, guesses: Sequence[Guess]) -> None:
    """Draws an image and bars of its most probable texts."""
    self._tile(_MARGIN, image, _FAINT)
    left = _MARGIN + _TILE + 32
    right = _WIDTH - _MARGIN
    bar = (right - 70 - 340, right - 70)
    for i, guess in enumerate(guesses[:5]):
      y = self.y + _LINE * (i + 0.5)
      text = fit(
        terminal.printable(guess.text), size=18, width=bar[0] - left - 34
      )
      ink = _INK if i == 0 or guess.correct else _MUTED
      self.text(left, y, text, size=18, ink=ink, anchor="lm")
      if guess.correct:
        self._tick(bar[0] - 22, y)
      known = guess.correct is not None
      colour = _RIGHT if guess.correct else _WRONG if known else _NEUTRAL
      if i and not guess.correct and known:
        colour = "#b8c1cc"  # Only the first guess can be wrong.
      self._bar(bar, y, guess.probability, colour)
      percent = f"{100 * guess.probability:.1f} %"
      self.text(right, y, percent, size=16, ink=ink, anchor="rm")
    self.y += _IMAGE_ROW

  def _tile(self, x: float, image: Image.Image, colour: str) -> None:
    tile = enlarge(image, _TILE)
    self.image.paste(tile, (round(x), self.y))
    box = (x - 3, self.y - 3, x + _TILE + 2, self.y + _TILE + 2)
    self.draw.rectangle(box, outline=colour, width=3)

  def _tick(self, x: float, y: float) -> None:
    points = [(x, y), (x + 4, y + 5), (x + 12, y - 5)]
    self.draw.line(points, fill=_RIGHT, width=3, joint="curve")

  def _bar(
    self, ends: tuple[int, int], y: float, share: float, colour: str
  ) -> None:
    left, right = ends
    self.draw.rectangle((left, y - 7, right, y + 6), fill=_FAINT)
    filled = left + (right - left) * min(max(share, 0), 1)
    if filled - left >= 1:
      self.draw.rectangle((left, y - 7, filled, y + 6), fill=colour)


def _colour(correct: bool | None, *, unknown: str) -> str:
  return unknown if correct is None else _RIGHT if correct else _WRONG


def _font(size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.load_default(size=size)


def _length(text: str, size: int) -> float:
  return _font(size).getlength(text)


def fit(text: str, *, size: int, width: float) -> str:
  """Returns `text`, cut with an ellipsis to at most `width` pixels."""
  if _length(text, size) <= width:
    return text
  # Bisection: a caption may be long and measuring costs its length.
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


@dataclasses.dataclass(frozen=True)
class Spread:
  """At most `most` records of a source, evenly spread over it."""

  source: Any
  most: int

  def __len__(self) -> int:
    return min(len(self.source), self.most)

  def __getitem__(self, index: int) -> Any:
    return self.source[index * len(self.source) // len(self)]


def find_rows(
  source: Any,
  *,
  embed_images: Callable[[np.ndarray], np.ndarray],
  embed_texts: prompts_lib.EmbedTexts,
  preprocess: preprocess_lib.Preprocess,
  logit_scale: float,
  count: int = 4,
  most_records: int = 1000,
  progress: Callable[[int, int], None] | None = None,
) -> Rows:
  """Returns what a model finds among the records of `source`.

  The texts are the class names where the data has them, else its captions.

  Args:
    source: of `sources.open_source`.
    embed_images: uint8 (n, size, size, 3) to unit (n, embed).
    embed_texts: n texts to unit (n, embed).
    preprocess: how an image becomes an array.
    logit_scale: factor between cosine similarity and logit.
    count: texts and images shown.
    most_records: records looked at, spread evenly over the data.
    progress: called with the records done and their total.

  Raises:
    UserError: there is no usable record.
  """
  shown = Spread(source, most_records)
  embeds, labels, texts, records = [], [], [], []
  with pipeline.eval_batches(
    shown, batch_size=256, preprocess=preprocess
  ) as batches:
    bad = collections.Counter()
    for batch in tasks.watch(batches, bad, total=len(shown), progress=progress):
      embeds.append(embed_images(batch["image"]))
      labels.extend(batch["label"].tolist())
      texts.extend(batch["texts"])
      records.extend(batch["record"].tolist())
  if not records:
    raise errors.UserError("There is no usable record to report on.")
  image_embeds = np.concatenate(embeds)
  if source.class_names is not None and min(labels) >= 0:
    resolved = prompts_lib.resolve(source.class_names, source.templates)
    names = [prompts[0] for prompts in resolved.texts]
    text_embeds = prompts_lib.class_embeddings(resolved, embed_texts)
    owns = np.asarray(labels)[:, None] == np.arange(len(names))
  else:
    names = list(dict.fromkeys(text for own in texts for text in own))
    text_embeds = embed_texts(names)
    owns = np.array([[name in own for name in names] for own in texts])
  return _rank(
    image_embeds @ text_embeds.T,
    owns,
    names,
    lambda i: preprocess_lib.decode(
      shown[records[i]].image, limits=preprocess.limits
    ),
    logit_scale=logit_scale,
    count=count,
  )


def _rank(
  scores: np.ndarray,
  owns: np.ndarray,
  names: Sequence[str],
  image: Callable[[int], Image.Image],
  *,
  logit_scale: float,
  count: int,
) -> Rows:
  """Returns rows of evenly spread texts and images.

  Args:
    scores: cosine similarity, (images, texts).
    owns: whether a text belongs to an image, (images, texts).
    names: the texts.
    image: opens an image by its number.
    logit_scale: factor between score and logit.
    count: texts and images shown.
  """
  logits = logit_scale * scores.astype(np.float64)
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  probabilities = weights / weights.sum(axis=1, keepdims=True)
  by_text, by_image = [], []
  present = np.flatnonzero(owns.any(axis=0))  # A class may have no image here.
  for text in present[_spread(len(present), count)]:
    order = np.argsort(-scores[:, text], kind="stable")[:5]
    found = [
      Found(image(i), float(scores[i, text]), bool(owns[i, text]))
      for i in order
    ]
    by_text.append((names[text], found))
  for i in _spread(len(scores), count):
    order = np.argsort(-scores[i], kind="stable")[:5]
    guesses = [
      Guess(names[t], float(probabilities[i, t]), bool(owns[i, t]))
      for t in order
    ]
    by_image.append((image(i), guesses))
  return Rows(by_text, by_image)


def _spread(total: int, count: int) -> list[int]:
  """Returns at most `count` numbers below `total`, evenly spread."""
  count = min(total, count)
  return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def save(image: Image.Image, path: str | os.PathLike) -> None:
  """Writes a PNG whole or not at all."""
  path = pathlib.Path(path)
  buffer = io.BytesIO()
  image.save(buffer, format="PNG", optimize=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_bytes(buffer.getvalue())
  partial.replace(path)
