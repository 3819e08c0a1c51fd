"""How an image of any kind becomes the array that a model was trained on."""

import numpy as np

from clip_jax.preprocess import crop, image_inputs
from clip_jax.preprocess.spec import PreprocessSpec


class Preprocess(PreprocessSpec):
  """A description of preprocessing that can be called with an image."""

  def __call__(self, image: image_inputs.ImageInput) -> np.ndarray:
    """Returns one image as evaluation sees it, uint8 (size, size, 3).

    Raises:
      UserError: the image cannot be read.
    """
    return crop.eval_image(image_inputs.read(image, limits=self.limits), self)
