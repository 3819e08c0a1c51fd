"""Bounds on the time of decoding, which an image's size alone does not bound.

A few bytes can take long: a progressive JPEG of very many scans, a PNG of a
million empty chunks, a TIFF of millions of strips. `MeteredFile` bounds the
work that Pillow does in Python; the work of C libraries is bounded by what the
header says, before they begin.
"""

import contextlib
import io
import itertools
import re
import struct

import numpy as np
from PIL import Image, PpmImagePlugin, TiffImagePlugin

# Files of common tools have ten scans.
_MAX_SCANS = 500
# On one core of an AMD EPYC libjpeg-turbo takes 0.8 for a pixel of an
# empty scan and 35 for a byte of a dense one.
_NANOSECONDS_PER_SCANNED_PIXEL = 1.5
_NANOSECONDS_PER_BYTE = 40
_HEADER_READS = 20_000
_LOAD_READS = 100_000
_BYTES_PER_LOAD_READ = 256
_SPARE_BYTES = 2**28
_TIFF_COMPRESSIONS = (
  *("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"),
)
_TILE_SIZE_TAGS = (322, 323)  # TIFF 6.0, section 15.
_MAX_TILE_PIXELS = 2**24  # Of one tile, and beside the image's own, of all.
_MAX_TIFF_VALUES = 100_000  # Of one tag; Pillow makes each a Python number.
_BYTE_TYPES = (1, 2, 6, 7)
# What takes a second: OpenJPEG reads 7 MB of what does not compress, dav1d
# 15 MB, Pillow's Python decoder of numbers written as text 2 MB.
_MAX_BYTES = {
  "JPEG2000": 8_000_000,
  "AVIF": 16_000_000,
  "PPM as text": 1_000_000,
}
_MAX_PPM_COMMENTS = 1000  # Each copies what follows it.
_MAX_PROFILES = 16  # Of colours, in a PNG; each may unpack to a megabyte.

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_SOS, _EOI, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)
_START = 0xFF | _SOS << 8  # The bytes FF DA as a little-endian number.
# Frames that are arithmetically coded or differential (ITU T.81, table B.1).
_SLOW_FRAMES = frozenset((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_ARITHMETIC = re.compile(rb"\xff[\xc9-\xcb\xcd-\xcf]")
_EXIF = b"Exif\0\0"
_MAX_EXIF_BYTES = 2**20
_BIG_TIFF = 43


_read = io.BytesIO.read


class WorkError(Exception):
  """Decoding would take more than its bounds; `reason` is one word."""

  def __init__(self, message: str, reason: str = "too_complex"):
    super().__init__(message)
    self.reason = reason


class MeteredFile(io.BytesIO):
  """A file in memory that allows a limited number of reads.

  Pillow reads headers, chunks and short runs piece by piece in Python.
  """

  def __init__(self, encoded: bytes):
    super().__init__(encoded)
    self._size = len(encoded)
    self._exif_bytes = 0
    self._profiles = 0
    self._allow(_HEADER_READS)

  def allow_load(self) -> None:
    """Allows the reads that decoding needs, once the header is known."""
    self._allow(_LOAD_READS + self._size // _BYTES_PER_LOAD_READ)

  def _allow(self, reads: int) -> None:
    self._reads_left = reads
    self._bytes_left = 4 * self._size + _SPARE_BYTES

  def read(self, size: int | None = -1, /) -> bytes:
    """Reads as io.BytesIO does; raises `WorkError` at the bound."""
    piece = _read(self, size)
    self._reads_left -= 1
    if len(piece) > len(_EXIF) or self._reads_left < 0:
      self._meter(piece)
    return piece

  def _meter(self, piece: bytes) -> None:
    self._bytes_left -= len(piece)
    if self._reads_left < 0 or self._bytes_left < 0:
      raise WorkError("it consists of too many small or repeated pieces")
    if piece.startswith(_EXIF):  # A JPEG's, which Pillow joins.
      self._exif_bytes += len(piece)
      if self._exif_bytes > _MAX_EXIF_BYTES:
        raise WorkError(f"its EXIF has more than {_MAX_EXIF_BYTES:,} bytes")
    if piece[4:] == b"iCCP":  # The header of a PNG's chunk.
      self._profiles += 1
      if self._profiles > _MAX_PROFILES:
        raise WorkError(f"it has more than {_MAX_PROFILES} colour profiles")


def kind_of(image: Image.Image) -> str | None:
  """Returns Pillow's name of an opened image's format, for a limit of pixels.

  A BMP of run lengths is a kind of its own, as Pillow decodes it in Python.
  """
  tiles = getattr(image, "tile", ())
  if tiles and tiles[0][0] == "bmp_rle":
    return "BMP_RLE"
  return image.format


def check_encoded(plugin: str, encoded: bytes) -> None:
  """Raises WorkError where `plugin` should not even open the bytes."""
  if plugin in _MAX_BYTES:
    _check_bytes(plugin, encoded)
  elif plugin == "TIFF":
    if encoded[2] == _BIG_TIFF:
      raise WorkError("it is a BigTIFF", "unsupported_image")
    for kind, length in _entries(encoded):
      if length > _MAX_TIFF_VALUES and kind not in _BYTE_TYPES:
        raise WorkError(f"a tag has {length:,} values")


def check_opened(
  image: Image.Image, encoded: bytes, *, max_scan_seconds: float
) -> None:
  """Raises WorkError where decoding `image`, so far only opened, is costly."""
  if image.format in ("JPEG", "MPO"):
    _check_scans(image, encoded, max_scan_seconds)
  elif isinstance(image, TiffImagePlugin.TiffImageFile):
    compression = image.info.get("compression")
    if compression not in _TIFF_COMPRESSIONS:
      raise WorkError(
        f"its compression {compression!r} is none of "
        f"{', '.join(_TIFF_COMPRESSIONS)}",
        "unsupported_image",
      )
    w, h = (int(image.tag_v2.get(tag, 1)) for tag in _TILE_SIZE_TAGS)
    if w * h > _MAX_TILE_PIXELS:
      raise WorkError(f"its tiles have {w} x {h} pixels")
    tiles = -(-image.width // max(w, 1)) * -(-image.height // max(h, 1))
    most = _MAX_TILE_PIXELS + 2 * image.width * image.height
    if _TILE_SIZE_TAGS[0] in image.tag_v2 and tiles * w * h > most:
      raise WorkError(
        f"its {tiles:,} tiles of {w} x {h} pixels hold far more than its "
        f"{image.width} x {image.height} pixels"
      )
  elif (
    isinstance(image, PpmImagePlugin.PpmImageFile)
    and image.tile[0][0] == "ppm_plain"
  ):
    _check_bytes("PPM as text", encoded)
    if encoded.count(b"#") > _MAX_PPM_COMMENTS:
      raise WorkError(f"it has more than {_MAX_PPM_COMMENTS} comments")


def _check_bytes(kind: str, encoded: bytes) -> None:
  if len(encoded) > _MAX_BYTES[kind]:
    raise WorkError(
      f"{kind} may have {_MAX_BYTES[kind]:,} bytes, this has {len(encoded):,}"
    )


def _check_scans(
  image: Image.Image, encoded: bytes, max_seconds: float
) -> None:
  if _ARITHMETIC.search(encoded, 0, encoded.find(b"\xff\xda")):
    header = itertools.takewhile(lambda m: m != _SOS, _markers(encoded))
    if not _SLOW_FRAMES.isdisjoint(header):
      raise WorkError(
        "its JPEG is arithmetically coded or differential", "unsupported_image"
      )
  pixels = image.width * image.height
  room = max_seconds * 1e9 - _NANOSECONDS_PER_BYTE * len(encoded)
  most = int(room / (_NANOSECONDS_PER_SCANNED_PIXEL * max(pixels, 1)))
  most = max(1, min(_MAX_SCANS, most))
  # Never too few: thumbnails are counted too.
  if _count_starts(encoded) <= most:
    return
  scans = 0
  for marker in _markers(encoded):
    scans += marker == _SOS
    if scans > most:
      noun = "scan" if most == 1 else "scans"
      raise WorkError(
        f"a JPEG of {image.width} x {image.height} pixels and "
        f"{len(encoded):,} bytes may have {most} {noun}, so that it decodes in "
        f"about {max_seconds:g} s; this has more. Save it as a baseline JPEG",
        "too_many_scans",
      )


def _count_starts(encoded: bytes) -> int:
  """Returns how often a scan's marker occurs; bytes are compared in pairs."""
  found = 0
  for offset in range(2):  # Pairs that begin at even and at odd places.
    count = (len(encoded) - offset) // 2
    pairs = np.frombuffer(encoded, "<u2", count, offset)
    found += int(np.count_nonzero(pairs == _START))
  return found


def _markers(encoded: bytes):
  """Yields the markers of a JPEG up to its end, as libjpeg meets them.

  Markers inside a segment, such as those of a thumbnail, are not yielded.
  """
  position = 2
  while match := _MARKER.search(encoded, position):
    marker = match[1][0]
    position = match.end()
    if marker == _EOI:
      return
    yield marker
    if marker not in _ALONE:
      position += int.from_bytes(encoded[position : position + 2], "big")


def _entries(tiff: bytes):
  """Yields type and number of values of the first directory's entries."""
  order = "<" if tiff.startswith(b"II") else ">"
  with contextlib.suppress(struct.error):  # Where it ends early.
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      yield struct.unpack_from(order + "HI", tiff, entry + 2)
