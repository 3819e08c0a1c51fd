"""Files that are small and ask for hours: refused before they are decoded."""

import io
import os
import random
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import image_bytes
from clip_jax import preprocess
from clip_jax.cli import parser
from clip_jax.config import schema

# The size of each bomb; 20 MB is what was measured for the pull request.
BYTES = int(os.environ.get("CLIP_JAX_BOMB_BYTES", 1_000_000))
PROGRESSIVE = int(os.environ.get("CLIP_JAX_PROGRESSIVE_FILES", 6))


def encode(file_format="JPEG", size=(40, 30), mode="RGB", **options):
  image = Image.new(mode, size, 99)
  return image_bytes.encode(image, file_format, **options)


def decode(data, **limits):
  """Returns the image or the reason, and the seconds of this thread's CPU."""
  start = time.thread_time()
  try:
    found = preprocess.decode(data, limits=preprocess.Limits(**limits))
  except preprocess.ImageError as error:
    found = error.reason
  return found, time.thread_time() - start


def scans(jpeg):
  """Returns the scans of a progressive JPEG without comments, as bytes."""
  starts, at = [], jpeg.find(b"\xff\xda")
  while at >= 0:
    starts.append(at)
    at = jpeg.find(b"\xff\xda", at + 1)
  return [jpeg[a:b] for a, b in zip(starts, [*starts[1:], -2], strict=True)]


def tiff(entries, tail=b""):
  packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
  return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + tail


JPEG, PNG = encode(), encode("PNG")
GIF = encode("GIF", mode="P")
GIF_BODY = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
BMP = bytearray(encode("BMP", (3000, 2500), "P")[:1078])
BMP[30:34] = struct.pack("<I", 1)  # Run lengths.


def after(data, at, piece):
  return bytes(data[:at] + piece * (BYTES // len(piece)) + data[at:])


BOMBS = {
  "empty JPEG segments": after(JPEG, 2, b"\xff\xe5\0\2"),
  "JPEG comments": after(JPEG, 2, b"\xff\xfe\0\2"),
  "JPEG fill bytes": after(JPEG, 2, b"\xff"),
  "JPEG metadata": JPEG[:2]
  + (b"\xff\xe1\x40\x00Exif\0\0II*\0" + bytes(0x3FF4)) * 70
  + JPEG[2:],
  "empty PNG chunks": after(PNG, 33, image_bytes.chunk(b"abCd", b"")),
  "PNG texts": after(PNG, 33, image_bytes.chunk(b"tEXt", b"a\0b")),
  "GIF comment": after(GIF + b"\0", GIF_BODY, b"\x21\xfe\1a\0"),
  "GIF junk": after(GIF, GIF_BODY, b"\1"),
  "BMP runs": after(BMP, len(BMP), b"\1\5"),
  "BMP lines": after(BMP, len(BMP), b"\0\0"),
  "PPM as text": after(b"P3 4000 2000 255 ", 17, b"1 "),
  "PPM of few levels": b"P6 2000 1000 7 " + bytes(6_000_000),
  "PPM comments": b"P2 7000 7000 255\n" + b"#\n" * 400_000,
  "PNG profiles": after(
    PNG, 33, image_bytes.chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6)))
  ),
  # 100 tiles of 16 x 2**20 pixels, all of them the same bytes.
  "TIFF tiles": tiff(
    [
      *((256, 4, 1, 1600), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8)),
      *((262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 16), (323, 4, 1, 2**20)),
      *((324, 4, 100, 130), (325, 4, 100, 530)),
    ],
    struct.pack("<200I", *[930] * 100, *[16323] * 100)
    + zlib.compress(bytes(2**24), 9),
  ),
  "TIFF tags": tiff([(t, 7, BYTES, 8) for t in range(1000, 60000)])
  + bytes(BYTES),
  "TIFF strips": tiff([(256, 4, 1, 9), (257, 4, 1, 9), (273, 4, 200_000, 99)])
  + bytes(BYTES),
}
HARMLESS = {
  "PNG of many zeros": PNG[:33]
  + image_bytes.chunk(b"IDAT", zlib.compress(bytes(50_000_000)))
  + PNG[-12:],
  "trailing zeros": JPEG + bytes(BYTES),
}


@pytest.mark.parametrize("name", BOMBS)
def test_work_in_many_small_pieces_is_refused(name):
  found, seconds = decode(BOMBS[name])
  assert found in ("too_complex", "damaged")
  assert seconds < 2


@pytest.mark.parametrize(
  ("data", "was", "size", "most"),
  [
    (
      encode("JPEG2000"),
      (">II", 30, 40),
      (5000, 5100),
      "25,000,000 .*JPEG2000",
    ),
    (encode("AVIF"), (">II", 40, 30), (8000, 6300), "50,000,000 .*AVIF"),
    (BMP, ("<ii", 3000, 2500), (16_000, 3900), "8,000,000 .*BMP_RLE"),
  ],
  ids=["JPEG 2000", "AVIF", "BMP"],
)
def test_few_bytes_of_many_pixels_are_refused(data, was, size, most):
  large = bytes(data).replace(struct.pack(*was), struct.pack(was[0], *size))
  with pytest.raises(preprocess.ImageError, match=f"{most}.*--max-pixels"):
    preprocess.decode(large)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_costs_nothing_is_decoded(name):
  found, seconds = decode(HARMLESS[name])
  assert found.size == (40, 30)
  assert seconds < 1


@pytest.mark.parametrize("seed", range(PROGRESSIVE))
def test_the_scans_of_a_progressive_jpeg_are_bounded(seed):
  rng = random.Random(seed)
  size = [(64, 48), (900, 700), (3000, 2000), (5000, 4000)][seed % 4]
  pixels = np.random.default_rng(seed).integers(
    0, 256, (size[1] // 50, size[0] // 50, 3), dtype=np.uint8
  )
  file = io.BytesIO()
  Image.fromarray(pixels).resize(size).save(file, "JPEG", progressive=True)
  jpeg = file.getvalue()
  assert decode(jpeg)[0].width in (size[0], size[0] // 2)
  scan = rng.choice(scans(jpeg))
  if seed % 3 == 0:
    scan = scan[:10]  # Its header alone.
  data = after(jpeg, len(jpeg) - 2, scan)
  found, seconds = decode(data)
  assert found == "too_many_scans" or found.size
  assert seconds < 2  # A bound of 1 s on a machine with nothing else to do.


def test_scans_are_counted_as_libjpeg_meets_them():
  jpeg = encode(size=(300, 200), progressive=True)
  own = len(scans(jpeg))
  # Neither those of a thumbnail nor those of a second picture count.
  hidden = b"\xff\xe9\x40\x02" + (b"\xff\xda\0\x08" * 4096)[:0x4000]
  harmless = jpeg[:2] + hidden + jpeg[2:] + jpeg
  pixels = 300 * 200 * 1.5e-9
  enough = own * pixels + 40e-9 * len(harmless) + pixels / 2
  assert decode(harmless, max_scan_seconds=enough)[0].size == (300, 200)
  assert decode(harmless, max_scan_seconds=enough - pixels)[0] == (
    "too_many_scans"
  )
  # Fill bytes before a marker are allowed, and do not hide it.
  filled = jpeg.replace(b"\xff\xda", b"\xff\xff\xff\xda")
  assert decode(filled, max_scan_seconds=own * pixels / 2)[0] == (
    "too_many_scans"
  )


def test_a_single_scan_is_called_one():
  limits = preprocess.Limits(max_scan_seconds=1e-9)
  with pytest.raises(preprocess.ImageError, match="may have 1 scan, so"):
    preprocess.decode(encode(size=(99, 99), progressive=True), limits=limits)


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size():
  data = encode(size=(6000, 4500), mode="L")
  assert decode(data)[0].size == (3000, 2250)
  assert decode(encode(size=(5000, 5000), mode="L"))[0].size == (5000, 5000)


@pytest.mark.slow
def test_the_jpeg_of_a_phone_of_200_megapixels_is_read():
  found, _ = decode(encode(size=(16_320, 12_240), mode="L"))
  assert found.size == (4080, 3060)


@pytest.mark.parametrize(
  ("file_format", "options"),
  [
    ("AVIF", {"quality": 100}),
    ("BMP", {}),
    ("JPEG2000", {}),
    ("PPM", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
  ],
)
def test_the_formats_that_pillow_reads_safely_are_read(file_format, options):
  found, _ = decode(encode(file_format, **options))
  assert np.abs(np.asarray(found, int) - [99, 0, 0]).max() <= 2


@pytest.mark.parametrize(
  "data",
  [
    encode("TIFF", compression="jpeg"),
    encode("TIFF", mode="1", compression="group4"),
    b"\0\0\0\x18ftypheic",
    b"8BPS\0\1",
    b"\xff\x0a\xfa",
    JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
  ],
  ids=["TIFF with JPEG", "fax", "HEIC", "PSD", "JPEG XL", "arithmetic JPEG"],
)
def test_other_images_are_called_unsupported(data):
  assert decode(data)[0] == "unsupported_image"


@pytest.mark.parametrize("verb", ["classify", "embed"])
def test_the_help_tells_the_limit_of_every_kind_of_image(verb):
  _, verbs = parser.make_parser()
  said = " ".join(verbs[verb].format_help().split())
  for told in (said, schema.SCHEMA["data.max_pixels"].help):
    limits = preprocess.DEFAULT_LIMITS
    for kind, name in (
      *(("JPEG", "a JPEG,"), ("JPEG2000", "a JPEG 2000"), ("AVIF", "an AVIF")),
      *(("BMP_RLE", "a BMP of run lengths"), ("PNG", "any other")),
    ):
      millions = limits.pixels_of(kind) // 10**6
      assert re.search(rf"\b{millions} (million )?of {name}", told), (
        kind,
        told,
      )


def test_a_larger_image_is_read_on_request_and_the_message_says_how():
  data = encode("PNG")
  with pytest.raises(preprocess.ImageError, match=r"--max-pixels.*max_pixels"):
    preprocess.decode(data, limits=preprocess.Limits(max_pixels=1199))
  assert decode(data, max_pixels=1200)[0].size == (40, 30)
