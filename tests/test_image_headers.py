"""Files that are no image, or whose header asks for too much, have a reason."""

import copy
import io
import multiprocessing
import pickle
import struct
import warnings
import zlib

import pytest
from PIL import Image

import image_bytes
from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.preprocess import image_inputs


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


# A directory of EXIF that ends in the middle of its first entry, one whose
# entry points behind the file, and frames that are said to follow and do not.
CUT_EXIF = b"II*\0\x08\0\0\0\x20\0\x12\x01\x03\0"
FAR_EXIF = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\x03\0\0\xff\xff\0\0\0\0"
FRAMES = (
  b"MPF\0II*\0\x08\0\0\0\x02\0\x01\xb0\x04\0\x01\0\0\0\x05\0\0\0"
  b"\x02\xb0\x07\0\x20\0\0\0\x32\0\0\0" + b"\xff" * 32
)


def _with_chunk(kind, data):
  """A PNG with a chunk behind its header."""
  whole = image_bytes.encode(Image.new("RGB", (4, 3)))
  return whole[:33] + image_bytes.chunk(kind, data) + whole[33:]


def _with_frames():
  whole = image_bytes.encode(Image.new("RGB", (4, 3)), "JPEG")
  size = struct.pack(">H", len(FRAMES) + 2)
  return whole[:2] + b"\xff\xe2" + size + FRAMES + whole[2:]


def _webp():
  exif = b"Exif\0\0" + CUT_EXIF
  return image_bytes.encode(Image.new("RGB", (4, 3)), "WEBP", exif=exif)


@pytest.mark.parametrize(
  "make",
  [
    _with_frames,
    _webp,
    lambda: _with_chunk(b"acTL", bytes(8)),
    lambda: _with_chunk(b"eXIf", CUT_EXIF),
    lambda: _with_chunk(b"eXIf", FAR_EXIF),
  ],
)
def test_damage_beside_the_pixels_is_no_warning_whatever_the_way_in(make):
  """Pillow warns of EXIF and of further frames, which nobody asked for."""
  data = make()
  with warnings.catch_warnings(record=True) as pillows:
    warnings.simplefilter("always")
    opened = Image.open(io.BytesIO(data))
    opened.load()
    opened.getexif().get(0x0112)
  with warnings.catch_warnings(record=True) as ours:
    warnings.simplefilter("always")
    opened = Image.open(io.BytesIO(data))
    del ours[:]  # Those of Pillow's own opening.
    for given in (data, io.BytesIO(data), opened):
      assert image_inputs.read(given).size == (4, 3)
    assert preprocess_lib.read_header(data).width == 4
  assert pillows and not ours


def test_filters_of_warnings_outlive_an_image_that_is_opened_meanwhile(
  monkeypatch,
):
  """Of two that change the process's filters, the later to end wins."""
  data = image_bytes.encode(Image.new("RGB", (4, 3)))
  factory, accept = Image.OPEN["PNG"]
  others = []

  def other_thread_begins(file, name):
    others.append(warnings.catch_warnings())
    others[0].__enter__()
    return factory(file, name)

  monkeypatch.setitem(Image.OPEN, "PNG", (other_thread_begins, accept))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    preprocess_lib.read_header(data)
    others[0].__exit__(None, None, None)
    with pytest.raises(UserWarning, match="heard"):
      warnings.warn("heard", stacklevel=1)


def test_filters_can_be_copied_and_do_not_grow_with_the_images():
  data = image_bytes.encode(Image.new("RGB", (4, 3)))
  with warnings.catch_warnings():
    for _ in range(20):
      warnings.simplefilter("always")  # It goes before ours.
      preprocess_lib.read_header(data)
    assert len(warnings.filters) < 20
    for copied in (
      copy.deepcopy(warnings.filters),
      pickle.loads(pickle.dumps(warnings.filters)),
    ):
      # As scikit-learn gives them to its workers.
      for _, message, _, module, _ in copied:
        for part in (message, module):
          assert part is None or isinstance(getattr(part, "pattern", part), str)
      assert all(
        not x[3].match("PIL.Image") for x in copied if hasattr(x[3], "match")
      )
    warnings.resetwarnings()
    for action, _, category, module, line in copied:
      module = getattr(module, "pattern", module) or ""
      warnings.filterwarnings(action, "", category, module, line)


def test_an_image_is_opened_in_a_process_forked_while_another_is(monkeypatch):
  data = image_bytes.encode(Image.new("RGB", (4, 3)))
  factory, accept = Image.OPEN["PNG"]
  endings = []

  def fork(file, name):
    monkeypatch.setitem(Image.OPEN, "PNG", (factory, accept))
    child = multiprocessing.get_context("fork").Process(
      target=preprocess_lib.read_header, args=(data,)
    )
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # JAX and Python warn of forks.
      child.start()
    child.join(20)
    child.kill()
    endings.append(child.exitcode)
    return factory(file, name)

  monkeypatch.setitem(Image.OPEN, "PNG", (fork, accept))
  preprocess_lib.read_header(data)
  assert endings == [0]
