"""One image to one array: decode safely, resize, crop.

`eval_image` gives the same pixel values as each family of checkpoints; a
`Preprocess` says which family. The default is OpenAI's: bicubic
resize of the shortest side in the file's own mode, centre crop, conversion to
RGB last. It departs from them where they give no sensible picture, and says so:
16-bit grey is scaled where they clip it to white, transparency is laid on white
(`Preprocess.alpha`; HuggingFace does too), EXIF orientation is applied
(`decode`), and no image is too narrow to be resized.
"""

from clip_jax.preprocess.callable_spec import Preprocess
from clip_jax.preprocess.colour import to_rgb
from clip_jax.preprocess.crop import eval_image, normalize, train_image
from clip_jax.preprocess.decoding import (
  DEFAULT_LIMITS,
  Header,
  ImageError,
  Limits,
  check_header,
  decode,
  read_header,
)
from clip_jax.preprocess.image_inputs import ImageInput, each
from clip_jax.preprocess.jpeg import decoder
from clip_jax.preprocess.shrinking import shrink
from clip_jax.preprocess.spec import (
  ALPHAS,
  CONVERSIONS,
  CROP_ROUNDINGS,
  INTERPOLATIONS,
  RESIZES,
)

__all__ = [
  "ALPHAS",
  "CONVERSIONS",
  "CROP_ROUNDINGS",
  "DEFAULT_LIMITS",
  "INTERPOLATIONS",
  "RESIZES",
  "Header",
  "ImageError",
  "ImageInput",
  "Limits",
  "Preprocess",
  "check_header",
  "decode",
  "decoder",
  "each",
  "eval_image",
  "normalize",
  "read_header",
  "shrink",
  "to_rgb",
  "train_image",
]
