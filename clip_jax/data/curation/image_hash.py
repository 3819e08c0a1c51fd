"""Perceptual hashes, of 8 + 48 bytes: those of similar images differ little.

The hash of 64 bits finds candidates fast (`hamming.py`). Drawings on white have
much in common at so low frequencies, so that candidates must also have nearly
the same colours in the same places: the correlation of thumbnails of 4 x 4
pixels is at least `MIN_CORRELATION`.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import fft

from clip_jax import preprocess

BITS = 64
THUMB = 4
MIN_CORRELATION = 0.99
_SIDE = 32
# A coefficient counts as positive beyond this share of their mean magnitude: in
# symmetrical drawings half of them are zero, of which any noise would flip.
_MARGIN = 0.25
_AT_ONCE = 2**12  # Pairs that are compared, for bounded memory.
_FLAT = 1.0  # Grey levels; less than this root mean square shows nothing.


@dataclasses.dataclass(frozen=True)
class Look:
  """The perceptual hashes of an image.

  Attributes:
    bits: the hash.
    mirrored: the hash of the mirror image.
    thumb: a thumbnail, uint8 (4, 4, 3).
    flat: whether it shows nothing, so that the hash says nothing.
  """

  bits: int
  mirrored: int
  thumb: np.ndarray
  flat: bool


NOTHING = Look(0, 0, np.zeros((THUMB, THUMB, 3), np.uint8), flat=True)


def _lowest() -> tuple[np.ndarray, np.ndarray]:
  """Returns rows and columns of the 64 lowest frequencies but the constant."""
  rows, cols = np.divmod(np.arange(_SIDE**2), _SIDE)
  order = np.lexsort((rows, cols, rows**2 + cols**2))[1 : BITS + 1]
  return rows[order], cols[order]


_ROWS, _COLS = _lowest()


def of(image: Image.Image) -> Look:
  """Returns the looks of `image`.

  The bits say which of the lowest frequencies of the grey image, by a discrete
  cosine transform, are above a small margin (pHash; Zauner, 2010).
  """
  rgb = preprocess.to_rgb(image)
  small = rgb.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
  waves = fft.dctn(np.asarray(small, np.float64), norm="ortho")
  found = np.asarray(waves)[_ROWS, _COLS]
  size = np.sqrt(np.mean(np.square(found)))
  # Mirroring turns the sign of the odd frequencies along a row.
  mirrored = found * np.where(_COLS % 2, -1, 1)
  margin = _MARGIN * np.abs(found).mean()
  return Look(
    bits=_packed(found > margin),
    mirrored=_packed(mirrored > margin),
    thumb=np.asarray(rgb.resize((THUMB, THUMB), Image.Resampling.BOX)),
    flat=bool(size * np.sqrt(BITS) / _SIDE < _FLAT),
  )


def _packed(bits: np.ndarray) -> int:
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


def are_alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Whether thumbnails correlate, bool (n,).

  Args:
    first: uint8 (n, 4, 4, 3).
    second: likewise.
  """
  alike = np.empty(len(first), bool)
  for start in range(0, len(first), _AT_ONCE):
    rows = slice(start, start + _AT_ONCE)
    one, other = _centred(first[rows]), _centred(second[rows])
    alike[rows] = np.einsum("nx,nx->n", one, other) >= MIN_CORRELATION
  return alike


def _centred(thumbs: np.ndarray) -> np.ndarray:
  x = thumbs.reshape(len(thumbs), 3 * THUMB**2).astype(np.float32)
  x -= x.mean(axis=1, keepdims=True)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
  return x
