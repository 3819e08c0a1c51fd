"""Images and texts that reveal differences in preprocessing.

They leave out what this package preprocesses differently on purpose:
transparency, EXIF orientation, 16-bit grey, very long and narrow images, and
control tokens in texts.
"""

import itertools

import numpy as np
from PIL import Image

from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert.portable import Portable

# Odd margins to crop, sizes above and below usual ones, both orientations.
_SIZES = ((31, 47), (48, 33), (224, 225), (97, 300), (301, 299), (20, 23))
_SIZES += ((64, 64), (225, 500), (640, 427), (59, 40))
_MODES = ("RGB", "P", "RGB", "L")
PICTURES = 20

_LINES = (
  "A photo of a cat.",
  "a diagram",
  "two dogs, running -- fast!",
  "naïve CAFÉ façade",
  "an e\u0301clair and a man\u0303ana",
  "Tom &amp; Jerry",
  "1 &lt; 2 &gt; 0",
  "&quot;quoted&quot; &#39;twice&#39;",
  "caf&eacute;",
  "don't, can't, we'll, I'm, they've, he'd",
  "12345 67.89 1,000",
  "snake_case and kebab-case",
  "  spaces   between \t tabs  ",
  "two\nlines",
  "UPPER lower MiXeD",
  "größe straße",
  "Привет, мир",
  "日本語の写真",
  "emoji 🐈 here",
  "https://example.org/a?b=c&d=e",
  "e.g. U.S.A. 3.14",
  "(brackets) [more] {most}",
  "#tag @name 50% $5",
  "antidisestablishmentarianism",
  "x",
)


def pictures(rng: np.random.Generator) -> list[Image.Image]:
  """Returns `PICTURES` smooth images of odd sizes in several modes."""
  found = []
  for (w, h), mode in itertools.islice(
    zip(itertools.cycle(_SIZES), itertools.cycle(_MODES), strict=False),
    PICTURES,
  ):
    coarse = rng.integers(0, 256, (h // 9 + 2, w // 9 + 2, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((w, h))
    found.append(picture.convert(mode, colors=16 if mode == "P" else 256))
  return found


def texts(*, lower: bool = False) -> list[str]:
  """Returns 50 texts, from short ones to some longer than any context.

  Args:
    lower: whether to use only lower case, for SigLIP 2: this package changes
      texts to lower case, as in training, whatever the tokenizer's file says.
  """
  found = [*_LINES, *(" ".join([line] * 40) for line in _LINES)]
  return [text.lower() for text in found] if lower else found


def prepare(model: Portable, images: list[Image.Image]) -> np.ndarray:
  """Returns preprocessed, normalised images (n, size, size, 3)."""
  how = preprocess_lib.Preprocess.from_spec(model.spec)
  arrays = [preprocess_lib.eval_image(image, how) for image in images]
  return preprocess_lib.normalize(np.stack(arrays), how)


def tokenize(model: Portable, lines: list[str]) -> np.ndarray:
  """Returns the ids (n, length) of texts by the model's tokenizer."""
  tokenizer = tokenizer_lib.make_tokenizer(
    **model.spec["tokenizer"],
    context_length=model.spec["text"]["context_length"],
    contents=model.files,
  )
  return tokenizer(lines)
