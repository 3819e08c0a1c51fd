"""Images of one colour each, and a model that knows colours by their names."""

import numpy as np
from PIL import Image

from clip_jax import preprocess
from clip_jax.evals import embedding_model

SPEC = preprocess.Preprocess(image_size=4, mean=(0, 0, 0), std=(1, 1, 1))
# By name, in alphabetical order: the channel that is bright.
COLOURS = {"blue": 2, "green": 1, "red": 0}
NO_PNG = b"\x89PNG no more"


def save(path, channel, *, dark=0, bright=255):
  """Writes an image of 5 x 6 pixels; makes its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.full((5, 6, 3), dark, np.uint8)
  pixels[..., channel] = bright
  Image.fromarray(pixels).save(path)


def embed_images(images):
  return images.mean(axis=(1, 2)) / 255 + 1e-3


def embed_texts(texts):
  axes = [next(i for name, i in COLOURS.items() if name in t) for t in texts]
  return np.eye(3)[axes]


def functions():
  return embedding_model.Functions(embed_images, embed_texts, SPEC)
