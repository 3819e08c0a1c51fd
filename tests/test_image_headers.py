"""Files that are no image, or whose header asks for too much, have a reason."""

import struct
import warnings
import zlib

import pytest
from PIL import Image

import image_bytes
from clip_jax import errors
from clip_jax import preprocess as preprocess_lib


def png_header(width, height):
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(1000))
  chunks = (
    image_bytes.chunk(b"IHDR", header)
    + image_bytes.chunk(b"IDAT", pixels)
    + image_bytes.chunk(b"IEND", b"")
  )
  return b"\x89PNG\r\n\x1a\n" + chunks


def gif_header(screen, frame):
  return (
    b"GIF89a"
    + struct.pack("<HHBBB", *screen, 0x80, 0, 0)
    + bytes(6)
    + struct.pack("<BHHHHB", 0x2C, 0, 0, *frame, 0)
    + b"\x08\x02\x00\x00;"
  )


def bmp_header(width, height):
  return (
    struct.pack("<2sIHHI", b"BM", 100, 0, 0, 54)
    + struct.pack("<IiiHH", 40, width, height, 1, 24)
    + bytes(24)
  )


def webp_header(width, height):
  sides = [(side - 1).to_bytes(3, "little") for side in (width, height)]
  body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + b"".join(sides)
  return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (b"", "empty"),
    (bytes(100), "unknown_format"),
    (b"<!DOCTYPE html>\n<html>", "not_an_image"),
    ("Zugriff verweigert: ungültig\n".encode(), "not_an_image"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "unsupported_image"),
    (b"<?xml version='1.0'?>\n<svg width='9'></svg>", "unsupported_image"),
    (image_bytes.encode(Image.new("RGB", (4, 4)), "EPS"), "not_an_image"),
    (b"\xff\xd8\xff\xe0", "damaged"),
    (b"\x89PNG\r\n\x1a\n", "damaged"),
    (bytes(64 * 2**20 + 1), "too_many_bytes"),
    (png_header(60000, 60000), "side_too_long"),
    (png_header(16385, 1), "side_too_long"),
    (png_header(8001, 8000), "too_many_pixels"),
    (png_header(13000, 13000), "too_many_pixels"),  # Pillow only warns.
    (png_header(2**31 - 1, 2**31 - 1), "side_too_long"),
    (gif_header((10000, 9500), (1, 1)), "too_many_pixels"),
    (gif_header((9, 9), (10000, 10000)), "too_many_pixels"),  # As above.
    (gif_header((9, 9), (65535, 65535)), "too_many_pixels"),
    (bmp_header(60000, 60000), "side_too_long"),
    (bmp_header(0, 7), "damaged"),
    (webp_header(16000, 16000), "too_many_pixels"),
    (3, "unreadable"),
    ("/nonexistent/cat.jpg", "unreadable"),
    ("a\0b", "unreadable"),
    (".", "unreadable"),
  ],
  ids=lambda value: ascii(value)[:24],
)
def test_what_is_no_image_is_refused_with_a_reason(data, reason):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with pytest.raises(preprocess_lib.ImageError) as info:
      preprocess_lib.decode(data)
  assert info.value.reason == reason
  assert isinstance(info.value, errors.UserError)
  assert not caught
