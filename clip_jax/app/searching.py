"""The tab that searches an index, and the pictures of its records."""

import bisect
import collections
import logging
import threading

import numpy as np

from clip_jax import errors, preprocess
from clip_jax import search as search_lib
from clip_jax.app import answering, drawn, limits
from clip_jax.data import sources
from clip_jax.search import entry_table

_LOGGER = logging.getLogger(__name__)
_THUMBNAILS_KEPT = 512
# Slots that are read to find the record of one row.
_MOST_TRIES = 256


class NoPictureError(errors.UserError):
  """A row of an index whose picture cannot be shown."""


class Pictures:
  """The pictures of an index's records, by the number of their row.

  An index holds no pictures: they are read from the DATA address that it was
  made of. Its rows are the records of that source in their order, without those
  that could not be read, so that row i lies at slot i or a little behind; the
  key tells which it is, and a picture with another key is never shown.

  Attributes:
    why_not: why there are no pictures; "" if there are.
  """

  def __init__(
    self, index: search_lib.Index, *, limits_of_images: preprocess.Limits
  ):
    """Opens the source of the index; logs where that lies.

    Args:
      index: the index.
      limits_of_images: of what is decoded.
    """
    self._index = index
    self._limits = limits_of_images
    self._lock = threading.Lock()
    # How many slots were left out before some rows: both ascend.
    self._rows: list[int] = [-1, len(index)]
    self._kept: collections.OrderedDict[int, bytes] = collections.OrderedDict()
    self._source, self.why_not = None, ""
    address = index.meta.get("data")
    if not isinstance(address, str) or not address:
      self.why_not = "the index does not say which data it was made of."
      return
    try:
      self._source = sources.open_source(address, with_texts=False)
    except (errors.UserError, OSError) as error:
      _LOGGER.warning("The data of the index cannot be opened: %s", error)
      # Without the error, which names directories of this machine.
      self.why_not = "the data of the index cannot be opened here."
      return
    left_out = len(self._source) - len(index)
    if left_out < 0:
      self._source = None
      self.why_not = "the data of the index have changed: records are gone."
      return
    self._offsets = [0, left_out]
    _LOGGER.info("Pictures of the index are read from %s.", address)

  def thumbnail(self, row: int) -> bytes:
    """Returns the picture of a row, small, as a new PNG or JPEG.

    Raises:
      NoPictureError: there is no such row, or no picture of it.
    """
    if self._source is None:
      raise NoPictureError(self.why_not)
    if not 0 <= row < len(self._index):
      raise NoPictureError(f"The index has no row {row}.")
    with self._lock:
      if row in self._kept:
        self._kept.move_to_end(row)
        return self._kept[row]
    try:
      made = drawn.thumbnail(self._encoded(row), limits=self._limits)
    except (errors.UserError, OSError) as error:
      raise NoPictureError(str(error)) from error
    with self._lock:
      self._kept[row] = made
      while len(self._kept) > _THUMBNAILS_KEPT:
        self._kept.popitem(last=False)
    return made

  def _encoded(self, row: int) -> bytes:
    """Returns the image of the record with the key of this row."""
    assert self._source is not None
    key = self._index.key(row)
    with self._lock:
      at = bisect.bisect_left(self._rows, row)
      known = self._rows[at] == row
      first, last = self._offsets[at if known else at - 1], self._offsets[at]
    most = min(last, first + _MOST_TRIES)
    for offset in range(first, most + 1):
      try:
        record = self._source[row + offset]
      except sources.BadRecord:
        continue
      if entry_table.text(record.key) == key:
        self._remember(row, offset)
        return record.image
    if most < last:
      raise NoPictureError(
        f"The record of this key lies behind more than {_MOST_TRIES} that the "
        "index left out, or is gone; no more are looked through."
      )
    raise NoPictureError("The data has no record of this key any more.")

  def _remember(self, row: int, offset: int) -> None:
    with self._lock:
      at = bisect.bisect_left(self._rows, row)
      if self._rows[at] != row:
        self._rows.insert(at, row)
        self._offsets.insert(at, offset)


def open_index(
  path: str, engine: answering.Engine, *, keys: str | None = None
) -> search_lib.Index:
  """Returns an index that this model made.

  Args:
    path: a directory, or a file of FAISS or usearch.
    engine: the model.
    keys: of a file, the index that it was made of; None for that beside it.

  Raises:
    UserError: it is no index, damaged, or of another model.
  """
  index = search_lib.open_index(path, keys=keys)
  if index.meta["fingerprint"] != engine.clip.fingerprint:
    raise errors.UserError(
      f"Index {path} was made by another model ({index.meta['model'] or '?'}), "
      "or this one was trained further since. Give that model, or make the "
      "index again with `clip-jax embed`."
    )
  return index


def search(
  engine: answering.Engine,
  index: search_lib.Index,
  *,
  text: object = "",
  picture: answering.Picture | None = None,
  count: object = 12,
) -> list[search_lib.Hit]:
  """Returns the records nearest to a picture, or to a text if there is none.

  Args:
    engine: the model.
    index: of the same model.
    text: what was typed.
    picture: to find similar ones of; it goes before the text.
    count: number of records.

  Raises:
    UserError: there is neither, or the number is none.
  """
  most = limits.whole_number(count, "number of results", most=limits.RESULTS)
  if picture is not None:
    query = engine.embed_pixels(picture.pixels[None])[0]
  else:
    typed = limits.plain(text, "the search", most=limits.TEXT_CHARACTERS)
    if not typed.strip():
      raise errors.UserError("Write what to search for, or add a picture.")
    query = engine.embed_texts([typed.strip()])[0]
  return index.search(np.asarray(query), k=most)
