"""A model that answers a page: fixed batch shapes, remembered texts."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from clip_jax import errors, inference
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.app import limits

_TEXTS_KEPT = 8192
# Numbers of texts that lead to every batch shape of `clip_jax.embedder`.
_WARM_UP_TEXTS = (1, 16, 256)


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A picture as the model sees it.

  Attributes:
    name: of its file, which is not trusted.
    pixels: uint8 (size, size, 3), resized and cropped.
  """

  name: str
  pixels: np.ndarray


class TextCache:
  """Embeddings of the texts that were asked for last."""

  def __init__(
    self,
    embed: Callable[[list[str]], np.ndarray],
    *,
    kept: int = _TEXTS_KEPT,
  ):
    """Stores the arguments.

    Args:
      embed: texts to (n, embed).
      kept: the most texts that are remembered.
    """
    self._embed = embed
    self._kept = kept
    self._rows: collections.OrderedDict[str, np.ndarray] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._rows)

  def embed(self, texts: Sequence[str]) -> np.ndarray:
    """Returns (n, embed); computes only the texts that are not remembered."""
    with self._lock:
      known = {text: self._rows[text] for text in texts if text in self._rows}
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
      known |= dict(zip(new, self._embed(new), strict=True))
    with self._lock:
      for text, row in known.items():
        self._rows[text] = row
        self._rows.move_to_end(text)
      while len(self._rows) > self._kept:
        self._rows.popitem(last=False)
    return np.stack([known[text] for text in texts])


class Engine:
  """A model with both towers, asked by several threads at once.

  Attributes:
    clip: the model.
  """

  def __init__(self, clip: inference.Clip):
    """Checks the model; `warm_up` compiles it.

    Raises:
      UserError: it lacks a tower, or an embedding space.
    """
    clip.check_towers("image", "text")
    clip.check_embeds()
    self.clip = clip
    self._texts = TextCache(self._embed_texts)
    # One batch at a time: several would only share the same device.
    self._device = threading.Lock()

  def warm_up(self) -> None:
    """Compiles every program that a request can need."""
    encoder = self.clip.encoder
    size = self.clip.needed_preprocess().image_size
    for shape in encoder.image_shapes:
      if shape.rows <= _padded(limits.PICTURES, encoder):
        self.embed_pixels(np.zeros((shape.rows, size, size, 3), np.uint8))
    self.patches(np.zeros((size, size, 3), np.uint8))
    for count in _WARM_UP_TEXTS:
      self._embed_texts(["a"] * count)
    self._embed_texts(["a " * self.clip.needed_tokenizer().context_length])

  def read(self, data: bytes, name: str) -> Picture:
    """Returns an uploaded picture.

    Args:
      data: the encoded image.
      name: of its file.

    Raises:
      UserError: it is too large, or no image that can be read.
    """
    if len(data) > limits.UPLOAD_BYTES:
      raise errors.UserError(
        f"The file has more than {limits.UPLOAD_BYTES // 2**20} MiB; make the "
        "picture smaller."
      )
    return Picture(name, self.clip.needed_preprocess()(data))

  def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
    """Returns unit embeddings (n, embed) of uint8 (n, size, size, 3)."""
    with self._device:
      return self.clip.embed_images(pixels)

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns unit embeddings (n, embed) of texts."""
    return self._texts.embed(texts)

  def patches(self, pixels: np.ndarray) -> np.ndarray:
    """Returns unit embeddings (rows, cols, embed) of a picture's patches."""
    with self._device:
      return self.clip.patch_embeddings(pixels[None])[0]

  def count_cut(self, texts: Sequence[str]) -> int:
    """Returns the number of texts that are longer than the model reads."""
    cuts = tokenizer_lib.Cuts()
    self.clip.tokenize(list(texts), cuts=cuts)
    return cuts.cut

  def _embed_texts(self, texts: list[str]) -> np.ndarray:
    with self._device:
      return self.clip.embed_texts(texts, cuts=tokenizer_lib.Cuts())


def _padded(rows: int, encoder) -> int:
  """Returns the rows of the smallest batch shape that holds `rows`."""
  fitting = [x.rows for x in encoder.image_shapes if x.rows >= rows]
  return min(fitting, default=rows)
