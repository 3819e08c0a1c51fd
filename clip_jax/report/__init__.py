"""Draws contact sheets: texts with the nearest images, images with texts."""

import contextlib
import io
import math
import os
import pathlib
from collections.abc import Sequence

from PIL import Image

from clip_jax import json_lines, whole_files
from clip_jax.report.canvas import Canvas, Change, Headline, Share
from clip_jax.report.nearest import Found, Guess, Rows, find_rows

__all__ = [
  "Change",
  "Found",
  "Guess",
  "Headline",
  "Rows",
  "Share",
  "draw",
  "find_rows",
  "read_losses",
  "save",
]


def draw(
  rows: Rows,
  *,
  title: str,
  headlines: Sequence[Headline] = (),
  changes: Sequence[Change] = (),
  losses: Sequence[tuple[int, float]] = (),
) -> Image.Image:
  """Draws `rows` under a title.

  Args:
    rows: of `find_rows`.
    title: the first line, such as the model and its data.
    headlines: numbers for the top of the page.
    changes: shares of the model before and after its fine-tuning.
    losses: (step, loss) in order; drawn if there are at least two.
  """
  page = Canvas()
  page.header(title, headlines)
  if changes:
    page.section("Before and after", "right, of how many, and 95 % intervals")
    page.changes(changes)
  if len(losses) > 1:
    page.section("Loss", "on the training pairs, by step")
    page.curve(losses)
  if rows.by_text:
    page.section("Text to image", "the five nearest, with cosine similarity")
    for text, found in rows.by_text:
      page.text_row(text, found)
  if rows.by_image:
    page.section("Image to text", "the five most probable")
    for image, guesses in rows.by_image:
      page.image_row(image, guesses)
  if rows.images:
    note = f"{rows.missed} of {rows.images} images"
    page.section(
      "Misses",
      note + (", the surest first, with the right text" if rows.misses else ""),
    )
    for image, guesses in rows.misses:
      page.image_row(image, guesses)
  return page.finished()


def read_losses(path: str | os.PathLike) -> list[tuple[int, float]]:
  """Returns (step, loss) of a run's metrics in order, without damaged lines."""
  found = {}
  with contextlib.suppress(OSError):
    fields = {"step": int, "loss": float}
    for _, entry in json_lines.read(pathlib.Path(path), fields):
      if entry is not None:
        found[entry["step"]] = entry["loss"]
  return sorted(x for x in found.items() if math.isfinite(x[1]))


def save(image: Image.Image, path: str | os.PathLike) -> None:
  """Writes a PNG whole or not at all."""
  buffer = io.BytesIO()
  image.save(buffer, format="PNG", optimize=True)
  whole_files.write(pathlib.Path(path), buffer.getvalue())
