"""Decoding keeps small images, and nothing that could fill the memory."""

import pickle

import pytest

from clip_jax import preprocess
from clip_jax.data import elements, pipeline


def test_small_images_are_decoded_once_and_are_the_same(png):
  decode = elements.Decoder()
  data = png(0)
  image = decode(data)
  assert image.tobytes() == preprocess.decode(data).tobytes()
  assert decode(bytes(bytearray(data))) is image
  assert decode(png(1)) is not image
  copy = pickle.loads(pickle.dumps(decode))
  assert copy(data) is not image


def test_what_is_kept_is_limited(png, monkeypatch):
  decode = elements.Decoder()
  many_pixels, many_bytes = _blank(65, 64), png(0, 60, 60)
  assert len(many_pixels) < 4096 < len(many_bytes)
  for data in (many_pixels, many_bytes):
    assert decode(data) is not decode(data)
  monkeypatch.setattr(elements, "_KEPT_TOTAL_PIXELS", 2 * 9 * 11)
  decode = elements.Decoder()
  kept = [decode(png(i)) is decode(png(i)) for i in range(4)]
  assert kept == [True, True, False, False]


def test_a_broken_image_is_broken_each_time(png):
  decode = elements.Decoder()
  for _ in range(2):
    with pytest.raises(preprocess.ImageError):
      decode(png(0)[:-30])


@pytest.mark.parametrize(("most", "fits"), [(98, False), (99, True)])
def test_training_and_evaluation_bound_the_pixels(
  png, list_source, pairs, most, fits
):
  source = list_source(pairs(2))
  spec = preprocess.Preprocess(
    image_size=4, mean=(0, 0, 0), std=(1, 1, 1)
  ).with_max_pixels(most)
  assert preprocess.Preprocess.from_dict(spec.to_dict()).limits != spec.limits
  with pipeline.eval_batches(source, batch_size=2, preprocess=spec) as batches:
    problems = next(batches)["problems"]
  reasons = [] if fits else ["too_many_pixels"] * 2
  assert [problem.reason for problem in problems] == reasons
  decode = pickle.loads(pickle.dumps(elements.Decoder(spec.limits)))
  if fits:
    assert decode(png(0)).size == (9, 11)
    return
  with pytest.raises(preprocess.ImageError, match="98 are allowed"):
    decode(png(0))


def _blank(width, height):
  import io

  from PIL import Image

  buffer = io.BytesIO()
  Image.new("RGB", (width, height)).save(buffer, "PNG")
  return buffer.getvalue()
