"""What each tab answers, as HTML: the whole page but for its layout.

What comes in is not trusted, whoever lays out the page: each value may be of
any type. What goes out is HTML in which every text is escaped.
"""

import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping

from clip_jax import errors, regular_files
from clip_jax import search as search_lib
from clip_jax.app import (
  answering,
  classifying,
  comparing,
  drawn,
  limits,
  markup,
  searching,
  watching,
)

_SECONDS = 10.0  # Between two looks for new runs, whoever asks.
_LOGGER = logging.getLogger(__name__)


def _answered(function: Callable[..., str]) -> Callable[..., str]:
  """Returns `function` with its errors as HTML."""

  @functools.wraps(function)
  def answer(*args):
    try:
      return function(*args)
    except errors.UserError as error:
      return markup.error(str(error))
    except Exception:
      _LOGGER.exception("A request of the page failed.")
      return markup.error("This failed; the server's log says why.")

  return answer


class Tabs:
  """Answers the requests of the page's tabs.

  Attributes:
    engine: the model.
    uploads: the directory of uploaded files; no other file is read.
    index: to search in; None without one.
    pictures: of the index.
    runs: workdirs to watch, by name.
  """

  def __init__(
    self,
    engine: answering.Engine,
    *,
    uploads: str,
    index: search_lib.Index | None = None,
    runs: Mapping[str, pathlib.Path] | None = None,
    find: Callable[[], Mapping[str, pathlib.Path]] | None = None,
  ):
    """Takes what `Attributes` says; `find` looks for the runs again."""
    self.engine = engine
    self.uploads = uploads
    self.index = index
    self.pictures = None
    if index is not None:
      of_images = engine.clip.needed_preprocess().limits
      self.pictures = searching.Pictures(index, limits_of_images=of_images)
    self.runs = dict(runs or {})
    self._find, self._found_at = find, time.monotonic()

  @_answered
  def classify(self, upload: object, labels: object, templates: object) -> str:
    """Returns bars: the probability of each label for a picture."""
    if upload is None:
      return markup.note("Add a picture, and the labels to choose from.")
    picture = self._read(upload)
    return markup.bars(
      classifying.classify(self.engine, picture, labels, templates)
    )

  @_answered
  def search(self, text: object, upload: object, count: object) -> str:
    """Returns a grid of what is nearest to a picture, or else to a text."""
    if self.index is None or self.pictures is None:
      raise errors.UserError("This page was started without an index.")
    picture = None if upload is None else self._read(upload)
    found = searching.search(
      self.engine, self.index, text=text, picture=picture, count=count
    )
    return markup.hits(
      found,
      why_no_pictures=self.pictures.why_not,
      cut=self._count_cut(text) if picture is None else 0,
    )

  @_answered
  def compare(self, uploads: object, texts: object) -> str:
    """Returns a table of the similarities of pictures and texts."""
    pictures = self._read_all(uploads)
    return markup.matrix(comparing.compare(self.engine, pictures, texts))

  @_answered
  def heat(self, uploads: object, text: object) -> str:
    """Returns a heat map of each picture for one text."""
    pictures = self._read_all(uploads)
    maps = comparing.heat(self.engine, pictures, text)
    return markup.heat_maps(
      pictures, maps, str(text).strip(), cut=self._count_cut(text)
    )

  @_answered
  def watch(self, name: object) -> str:
    """Returns the curves of a run of this name."""
    return markup.run(watching.look(self._run(name)))

  def find_runs(self) -> list[str]:
    """Returns the names of the runs, also of those that began since."""
    now = time.monotonic()
    if self._find is not None and now - self._found_at >= _SECONDS:
      self._found_at = now
      try:
        self.runs = dict(self._find())
      except (errors.UserError, OSError) as error:  # They may come back.
        _LOGGER.info("The runs are not there: %s", error)
    return list(self.runs)

  def stamp(self, name: object) -> tuple[float, ...]:
    """Returns numbers that change when a run does; none of an unknown one."""
    try:
      return watching.stamp(self._run(name))
    except errors.UserError:
      return ()

  def thumbnail(self, row: int) -> tuple[str, bytes]:
    """Returns media type and content of the picture of a row of the index.

    Raises:
      UserError: there is no index, or it has no picture of this row.
    """
    if self.pictures is None:
      raise searching.NoPictureError("There is no index.")
    data = self.pictures.thumbnail(row)
    return drawn.media_type(data), data

  def _count_cut(self, text: object) -> int:
    """Returns 1 for one typed text that is longer than the model reads."""
    typed = limits.plain(text, "the text", most=limits.TEXT_CHARACTERS + 1)
    return self.engine.count_cut([typed.strip()])

  def _run(self, name: object) -> pathlib.Path:
    if not isinstance(name, str) or name not in self.runs:
      raise errors.UserError("There is no such run; choose another one.")
    return self.runs[name]

  def _read_all(self, uploads: object) -> list[answering.Picture]:
    if not isinstance(uploads, list | None):
      raise errors.UserError("Pictures are uploaded as a list of files.")
    comparing.check_pictures(len(uploads or []))
    return [self._read(upload) for upload in uploads or []]

  def _read(self, upload: object) -> answering.Picture:
    """Returns an uploaded picture; reads no file but an upload."""
    if not isinstance(upload, str):
      raise errors.UserError("A picture is an uploaded file.")
    name = os.path.basename(upload)
    try:
      if os.path.commonpath([self.uploads, upload]) != self.uploads:
        raise ValueError
      data = regular_files.read_regular(
        upload, limit=limits.UPLOAD_BYTES, within=self.uploads
      )
    except (OSError, ValueError) as error:
      _LOGGER.info("An upload could not be read: %s", error)
      raise errors.UserError(
        f"{name} is no uploaded file, or it was removed since; add it again."
      ) from None
    try:
      return self.engine.read(data, name)
    except errors.UserError as error:
      why = str(error).removeprefix("The image: ")
      raise errors.UserError(f"{name}: {why}") from None
