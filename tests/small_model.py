"""A model so small that embedding with it takes no time."""

import jax
import numpy as np
from PIL import Image

import image_bytes
from clip_jax.models import variants

OVERRIDES = {
  "embed_dim": 12,
  "image": {"image_size": 16, "patch_size": 8, "width": 24, "depth": 1},
  "text": {"context_length": 9, "width": 20, "depth": 1},
}
SPEC = variants.spec("tiny-vit", OVERRIDES)


def make():
  """A module with random numbers: its own initialisers take long to compile."""
  module = variants.create_model(SPEC)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.2).astype(x.dtype),
    variants.abstract_variables(module),
  )
  variables["params"]["log_scale"] = np.float32(np.log(1 / 0.07))
  return module, variables


def random_images(count, size=16, seed=0):
  shape = (count, size, size, 3)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(array):
  """Returns the bytes of a PNG."""
  return image_bytes.encode(Image.fromarray(array))
