"""The tab that compares pictures with texts, and their patches with one."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clip_jax import errors
from clip_jax.app import answering, limits


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
  """Similarities of pictures and texts.

  Attributes:
    pictures: in the order of the rows.
    texts: in the order of the columns.
    similarity: cosines, float32 (pictures, texts).
    cut: number of texts that the model did not read to their end.
  """

  pictures: tuple[answering.Picture, ...]
  texts: tuple[str, ...]
  similarity: np.ndarray
  cut: int


def compare(
  engine: answering.Engine,
  pictures: Sequence[answering.Picture],
  texts: object,
) -> Compared:
  """Returns the similarity of each picture with each text.

  Args:
    engine: the model.
    pictures: at most `limits.PICTURES`.
    texts: what was typed, one a line.

  Raises:
    UserError: there are no pictures or texts, or too many.
  """
  check_pictures(len(pictures))
  found = limits.lines(texts, "texts", most=limits.TEXTS)
  images = engine.embed_pixels(np.stack([p.pixels for p in pictures]))
  return Compared(
    pictures=tuple(pictures),
    texts=tuple(found),
    similarity=images @ engine.embed_texts(found).T,
    cut=engine.count_cut(found),
  )


def heat(
  engine: answering.Engine,
  pictures: Sequence[answering.Picture],
  text: object,
) -> list[np.ndarray]:
  """Returns the similarity of each patch of each picture to one text.

  Args:
    engine: the model.
    pictures: at most `limits.PICTURES`.
    text: what was typed.

  Returns:
    Cosines, float32 (rows, cols) for each picture.

  Raises:
    UserError: there are no pictures, too many, or no text.
  """
  check_pictures(len(pictures))
  found = limits.lines(text, "texts for the heat map", most=1)
  embed = engine.embed_texts(found)[0]
  return [engine.patches(picture.pixels) @ embed for picture in pictures]


def check_pictures(count: int) -> None:
  """Raises UserError unless there are some pictures, and not too many."""
  if not count:
    raise errors.UserError("Add at least one picture.")
  if count > limits.PICTURES:
    raise errors.UserError(
      f"There are {count} pictures; take at most {limits.PICTURES}."
    )
