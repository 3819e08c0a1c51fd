"""simplejpeg gives Pillow's pixels, and leaves the rest to Pillow."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from clip_jax import preprocess
from clip_jax.preprocess import crop, jpeg
from clip_jax.train import journal

_KINDS = {
  "plain": {},
  "whole colours": {"subsampling": 0},
  "half colours": {"subsampling": 1},
  "progressive": {"progressive": True},
  "restarts": {"restart_marker_rows": 1},
  "stored as RGB": {"keep_rgb": True},
  "grey": {"mode": "L"},
  "CMYK": {"mode": "CMYK"},
  "odd profile": {"icc_profile": b"no profile"},
}


def _jpeg(width=61, height=47, *, mode="RGB", **options) -> bytes:
  rng = np.random.default_rng(width)
  coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
  buffer = io.BytesIO()
  image.convert(mode).save(buffer, "JPEG", **options)
  return buffer.getvalue()


def _decoded(data: bytes):
  try:
    image = preprocess.decode(data)
  except preprocess.ImageError as error:
    return error.reason, str(error)
  return image.mode, image.size, image.tobytes()


@pytest.fixture
def pillow_alone(monkeypatch):
  """Returns what `_decoded` gives without simplejpeg."""
  pytest.importorskip("simplejpeg")

  def decode(data: bytes):
    with monkeypatch.context() as patch:
      patch.setattr(jpeg, "_library", lambda: None)
      return _decoded(data)

  return decode


@pytest.mark.parametrize("kind", _KINDS)
def test_pixels_are_equal_level_by_level(pillow_alone, kind):
  data = _jpeg(**_KINDS[kind])
  assert _decoded(data) == pillow_alone(data)


def test_images_are_turned_as_exif_says(pillow_alone):
  exif = Image.Exif()
  exif[0x0112] = 6
  data = _jpeg(exif=exif)
  assert _decoded(data) == pillow_alone(data)
  assert _decoded(data)[1] == (47, 61)


def test_damaged_files_come_to_the_same_end(pillow_alone):
  rng = np.random.default_rng(0)
  ends = set()
  for number in range(300):
    data = bytearray(_jpeg(**list(_KINDS.values())[number % len(_KINDS)]))
    match number % 3:
      case 0:
        del data[int(rng.integers(2, len(data))) :]
      case 1:
        del data[len(data) - int(rng.integers(1, 12)) :]
      case 2:
        data[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
    found = _decoded(bytes(data))
    assert found == pillow_alone(bytes(data))
    ends.add(found[0])
  assert {"truncated", "damaged", "RGB"} <= ends


@pytest.mark.parametrize("factors", [0x12, 0x14, 0x22, 0x31, 0x41, 0x44])
@pytest.mark.parametrize("kind", ["plain", "whole colours"])
def test_any_sampling_of_colours_comes_to_the_same_end(
  pillow_alone, kind, factors
):
  data = bytearray(_jpeg(**_KINDS[kind]))
  frame = data.index(b"\xff\xc0")
  data[frame + 11] = factors  # Of the first component (ITU T.81, B.2.2).
  assert _decoded(bytes(data)) == pillow_alone(bytes(data))


def test_it_is_simplejpeg_that_decodes_small_colour_jpegs(monkeypatch):
  library = pytest.importorskip("simplejpeg")
  opened = preprocess.decoding._open_checked
  seen = {}
  for kind in ("plain", "progressive", "grey", "CMYK"):
    image, _, data = opened(_jpeg(**_KINDS[kind]), preprocess.DEFAULT_LIMITS)
    seen[kind] = jpeg.decode(image, data) is not None
  assert seen == {
    **{"plain": True, "progressive": True, "grey": False, "CMYK": False}
  }
  image, _, data = opened(_jpeg(), preprocess.DEFAULT_LIMITS)
  # A header that the two read differently is left to Pillow, and its limits.
  monkeypatch.setattr(library, "decode_jpeg_header", lambda _: (9000, 9000))
  assert jpeg.decode(image, data) is None


def test_limits_hold_with_it():
  data = _jpeg()
  limits = preprocess.Limits(max_pixels=1000)
  with pytest.raises(preprocess.ImageError, match="1,000 are allowed"):
    preprocess.decode(data, limits=limits)


@pytest.mark.parametrize(
  "size",
  [(61, 47), (30, 47), (31, 41), (200, 101), (300, 40), (31, 62), (20, 19)],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
@pytest.mark.parametrize("side", [23, 29])
def test_a_training_crop_is_one_of_the_whole_resized_image(size, mode, side):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
  image = Image.fromarray(noise).convert(mode)
  spec = preprocess.Preprocess(image_size=23, mean=(0.5,) * 3, std=(0.5,) * 3)
  whole = image.resize(crop._shortest(image.size, side), spec.resample)
  whole = np.asarray(whole.convert("RGB")).astype(int)
  off = []
  for seed in range(10):
    corner = np.random.default_rng(seed)
    top, left = (int(corner.integers(n - 22)) for n in whole.shape[:2])
    found = preprocess.train_image(
      image, spec, rng=np.random.default_rng(seed), resize_ratio=side / 23
    )
    off.append(abs(found - whole[top : top + 23, left : left + 23]))
  # Pillow takes the crop's place in float32: a value next to a half is rounded
  # to the other side, and the second pass may weigh that by a little above 1.
  # In the other order of the passes, a quarter of these values would differ.
  assert np.max(off) <= 2
  assert np.mean(np.array(off) > 0) <= (0.005 if mode in ("RGB", "L") else 0)


def test_a_resume_with_another_decoder_is_told(caplog):
  journal.tell_decoder({})
  journal.tell_decoder({"decoder": jpeg.decoder()})
  assert not caplog.records
  with caplog.at_level(logging.WARNING):
    journal.tell_decoder({"decoder": "Pillow 1"})
  assert "Pillow 1" in caplog.text and jpeg.decoder() in caplog.text
