"""Images and texts become embeddings: the towers with what they read."""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from clip_jax import embedder, errors, terminal
from clip_jax import inputs as inputs_lib
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.models import clip as clip_lib

ImageInput = preprocess_lib.ImageInput
Images = ImageInput | Iterable[ImageInput]
Texts = str | Iterable[str]
# Called with the number of inputs done and the total (None for a generator).
Progress = Callable[[int, int | None], None]

_AT_ONCE = 256
# What each tower's inputs pass first.
_INPUTS = {"image": "preprocess", "text": "tokenizer"}


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
  """A model's towers, with the tokenizer and the preprocessing they need.

  The methods may be traced, with the variables as constants. Traced inputs must
  be preprocessed already: images as `preprocess` gives them (uint8) or also
  normalised (floating), texts as tokens, as `tokenize` gives them.

  Attributes:
    module: the two-tower linen module.
    variables: its parameters and batch statistics.
    tokenizer: turns texts into tokens (n, length). Without a text tower it is
      false, and using it raises UserError.
    preprocess: turns an image of any kind into the model's input, uint8
      (size, size, 3). Without an image tower it is false, as above.
    encoder: the compiled embedding functions.
    path: where the model was loaded from; "" if it was not loaded.
  """

  module: clip_lib.CLIP
  variables: Any
  tokenizer: tokenizer_lib.Tokenizer
  preprocess: preprocess_lib.Preprocess
  encoder: embedder.Embedder
  path: str = ""

  def __post_init__(self) -> None:
    for part, name in _INPUTS.items():
      if getattr(self, name) is None:
        lacking = inputs_lib.NoTower(self._lacks(part))
        object.__setattr__(self, name, lacking)

  def encode_image(
    self,
    images: Images,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns unit embeddings, float32 (n, embed).

    Args:
      images: one image, several in a list or from a generator, or an array
        (n, h, w, 3). An image is a path, encoded bytes, an open file, a Pillow
        image or a uint8 array (h, w, 3) of numpy, JAX or PyTorch.
      batch_size: the most images that are in memory at once; None for 256.
      progress: True for a bar on stderr; or a function that is called with the
        number of images done and their total, which is None for a generator.
      as_numpy: False to get a JAX array.

    Raises:
      UserError: the model has no image tower, or an image cannot be read; the
        message names the image.
    """
    preprocess = self.needed_preprocess()
    self.check_embeds()
    inputs_lib.check_progress(progress)
    images = inputs_lib.stacked(images)
    if inputs_lib.is_traced(images):
      return self._traced(images, "encode_image")
    images = preprocess_lib.each(images)
    total = len(images) if isinstance(images, list) else None
    rest, done = iter(images), 0
    size = inputs_lib.batch_size(batch_size, _AT_ONCE)
    parts = [np.zeros((0, self.module.embed_dim), np.float32)]

    def read(image, name):
      return inputs_lib.read_image(image, preprocess, name=name)

    with (
      concurrent.futures.ThreadPoolExecutor(4) as pool,
      terminal.told(progress, "encode_image", unit="images") as tell,
    ):
      while some := list(itertools.islice(rest, size)):
        numbers = itertools.count(done)
        names = (f"images[{i}]" if total != 1 else "" for i in numbers)
        pixels = np.stack(list(pool.map(read, some, names)))
        parts.append(self.embed_images(pixels))
        done += len(some)
        tell(done, total)
    return _joined(parts, as_numpy)

  def embed_images(self, images: np.ndarray | embedder.Share) -> np.ndarray:
    """Returns unit embeddings of preprocessed uint8 (n, size, size, 3).

    Where several processes share a batch (shared_batches.py), each gives its
    part and gets the embeddings of all.
    """
    self.check_embeds()
    return self._of_pixels(images, "encode_image")

  def _of_pixels(self, images, method) -> Any:
    self.check_towers("image")
    if inputs_lib.is_traced(images):
      return self._traced(images, method)
    pixels = images.pixels if isinstance(images, embedder.Share) else images
    # Not of `preprocess`, in whose place may stand any function.
    inputs_lib.check_pixels(pixels, self.module.image.image_size)
    embed = functools.partial(self.encoder.embed_images, method=method)
    return _now(embed, self.variables, images)

  def image_features(self, images: np.ndarray | embedder.Share) -> np.ndarray:
    """Returns features (n, width) of images as `embed_images` takes them.

    Features are the image tower's output before its projection, which the
    paper's linear probes use (appendix A.3).
    """
    return self._of_pixels(images, "image_features")

  def patch_embeddings(self, images: np.ndarray) -> np.ndarray:
    """Returns unit embeddings (n, rows, cols, embed) of the patches of images.

    Args:
      images: preprocessed uint8 (n, size, size, 3).
    """
    self.check_embeds()
    return self._of_pixels(images, "encode_patches")

  def patch_similarity(
    self, image: preprocess_lib.ImageInput, text: str
  ) -> np.ndarray:
    """Returns the cosine similarity of each patch of an image with a text.

    The result is float32 (rows, cols), of the image as the model sees it, which
    `preprocess` crops and resizes. How a patch is embedded: MaskCLIP, arXiv
    2112.01071, section 3.2.

    Args:
      image: as in `encode_image`.
      text: such as "a photo of a cat".

    Raises:
      UserError: the model has one tower only, or the image cannot be read.
    """
    self.check_towers("image", "text")
    pixels = inputs_lib.read_image(image, self.needed_preprocess(), name="")
    text_embed = self.embed_texts(tokenizer_lib.listed_texts(text))
    if len(text_embed) != 1:
      raise errors.UserError(f"One text was expected, got {len(text_embed)}.")
    return self.patch_embeddings(pixels[None])[0] @ text_embed[0]

  def encode_text(
    self,
    texts: Texts | np.ndarray | jax.Array,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
    cuts: tokenizer_lib.Cuts | None = None,
  ) -> np.ndarray | jax.Array:
    """Returns unit embeddings of texts, float32 (n, embed).

    Args:
      texts: one text, several in a list or from a generator, or tokens (n,
        length) as `tokenize` gives them.
      batch_size: the most texts that the model is given at once.
      progress: as in `encode_image`.
      as_numpy: False to get a JAX array.
      cuts: counts the texts that are cut, if the caller reports them itself;
        None logs their number.

    Raises:
      UserError: the model has no text tower, or an input is not a text.
    """
    self.check_towers("text")
    self.check_embeds()
    inputs_lib.check_progress(progress)
    texts = inputs_lib.stacked(texts)
    if inputs_lib.is_traced(texts):
      return self._traced(texts, "encode_text")
    tokens = self._tokens(texts, cuts)
    size = inputs_lib.batch_size(
      batch_size, _AT_ONCE if progress else len(tokens)
    )
    parts = [np.zeros((0, self.module.embed_dim), np.float32)]
    with terminal.told(progress, "encode_text", unit="texts") as tell:
      for start in range(0, len(tokens), size):
        some = tokens[start : start + size]
        parts.append(_now(self.encoder.embed_tokens, self.variables, some))
        tell(start + len(some), len(tokens))
    return _joined(parts, as_numpy)

  def encode(
    self,
    inputs: Images,
    *,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
  ) -> np.ndarray:
    """Returns unit embeddings, as sentence-transformers' `encode` takes inputs.

    A text is a `str`, never the path of an image: all else is an image, of any
    kind that `encode_image` takes.

    Args:
      inputs: one input, which gives float32 (embed,), or several, texts and
        images in any order, which give (n, embed).
      batch_size: as in `encode_image` and `encode_text`.
      show_progress_bar: whether to show a bar on stderr.

    Raises:
      UserError: the model lacks the tower of an input, or an input is neither.
    """
    inputs = inputs_lib.stacked(inputs)
    if inputs_lib.is_traced(inputs):
      embeds: Any = self.encode_image(inputs)
      return embeds[0] if inputs.ndim == 3 else embeds
    several: list[Any] = list(preprocess_lib.each(inputs))
    if len(several) == 1 and several[0] is inputs:
      return self.encode(several, batch_size=batch_size)[0]
    is_text = np.array([isinstance(x, str) for x in several], bool)
    embeds = np.zeros((len(several), self.module.embed_dim), np.float32)
    for encode, chosen in (
      (self.encode_text, is_text),
      (self.encode_image, ~is_text),
    ):
      if chosen.any():
        embeds[chosen] = encode(
          [several[i] for i in np.flatnonzero(chosen)],
          batch_size=batch_size,
          progress=show_progress_bar,
        )
    return embeds

  def embed_texts(
    self, texts: list[str], *, cuts: tokenizer_lib.Cuts | None = None
  ) -> np.ndarray:
    """Returns unit embeddings of texts; `cuts` as in `encode_text`."""
    return np.asarray(self.encode_text(texts, cuts=cuts))

  def tokenize(
    self, texts: Texts, *, cuts: tokenizer_lib.Cuts | None = None
  ) -> np.ndarray:
    """Returns the tokens of texts, int32 (n, length), padded or cut to length.

    Args:
      texts: one text, or several.
      cuts: as in `encode_text`.

    Raises:
      UserError: the model has no text tower, or an input is not a text.
    """
    tokenizer = self.needed_tokenizer()
    texts = tokenizer_lib.listed_texts(texts)
    if not isinstance(cuts, tokenizer_lib.Cuts | None):
      raise errors.UserError(
        f"cuts is a clip_jax.tokenizer.Cuts or None, got {cuts!r:.100}."
      )
    rows = tokenizer.rows(texts)
    counted = tokenizer_lib.Cuts() if cuts is None else cuts
    counted.add(texts, rows.cut)
    if cuts is None:
      counted.tell(tokenizer.context_length)
    return rows.ids

  def _tokens(self, texts, cuts) -> np.ndarray:
    """Returns the tokens (n, length) of texts; tokens are only checked."""
    tower = self.module.text
    if inputs_lib.are_given(texts):
      tokens = inputs_lib.rows(np.asarray(texts))
      inputs_lib.check_length(tokens, tower)
    else:
      tokens = self.tokenize(texts, cuts=cuts)
    if tokens.size:
      inputs_lib.check_ids(tokens, tower)
    return tokens

  def _traced(self, inputs: jax.Array, method: str) -> jax.Array:
    """Returns what a method of the module gives for prepared, traced inputs."""
    if method == "encode_text":
      inputs_lib.check_traced_tokens(inputs)
      inputs = inputs_lib.rows(inputs)
      inputs_lib.check_length(inputs, self.module.text)
    else:
      self.check_towers("image")
      size = self.module.image.image_size
      inputs_lib.check_traced_images(inputs, size)
      inputs = inputs.reshape(-1, size, size, 3)
    embeds: Any = self.module.apply(self.variables, inputs, method=method)
    return embeds.astype(jnp.float32)

  def similarity(
    self,
    images: Images,
    texts: Texts,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns the cosine similarity of each image with each text.

    The result is float32 (images, texts).

    Args:
      images: as in `encode_image`.
      texts: as in `encode_text`.
      batch_size: as in `encode_image`.
      progress: as in `encode_image`, for the images.
      as_numpy: False to get a JAX array.

    Raises:
      UserError: the model has one tower only, or an input cannot be read.
    """
    self.check_towers("image", "text")
    text_embeds = self.encode_text(texts, as_numpy=as_numpy)
    image_embeds = self.encode_image(
      images, batch_size=batch_size, progress=progress, as_numpy=as_numpy
    )
    return image_embeds @ text_embeds.T

  def check_towers(self, *needed: str) -> None:
    """Raises UserError if a needed tower ("image" or "text") is missing."""
    for part in needed:
      errors.check_known("tower", part, _INPUTS)
      if not getattr(self, _INPUTS[part]):
        raise errors.UserError(self._lacks(part))

  def _lacks(self, part: str) -> str:
    """Returns the message of a model without the tower `part`."""
    (there,) = _INPUTS.keys() - {part}
    return (
      f"{self.path or 'The model'} has only the {there} tower, and this "
      f"needs the {part} tower. Give a model with both, or train one that "
      f"starts from this tower (init.{there} in a config)."
    )

  def check_embeds(self) -> None:
    """Raises UserError unless images and texts share an embedding space."""
    if not self.module.contrastive:
      raise errors.UserError(
        f"{self.path or 'The model'} was trained to predict captions "
        "(objective.kind='bow' or 'lm') and has no embedding space that images "
        "and texts share. `clip-jax eval --task zero_shot` measures it by its "
        "own scores, and --task linear_probe or knn its image features; for "
        "anything else give a model of a contrastive objective."
      )

  def needed_preprocess(self) -> preprocess_lib.Preprocess:
    """Returns `preprocess`; raises UserError without an image tower."""
    self.check_towers("image")
    return self.preprocess

  def needed_tokenizer(self) -> tokenizer_lib.Tokenizer:
    """Returns `tokenizer`; raises UserError without a text tower."""
    self.check_towers("text")
    return self.tokenizer


def _now(embed: Callable[..., np.ndarray], *inputs: Any) -> np.ndarray:
  """Returns `embed(*inputs)`, computed at once even inside a JAX trace.

  A new thread is outside of the trace.
  """
  embedder.check_process()
  if not isinstance(jnp.zeros(()), core.Tracer):
    return embed(*inputs)
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(embed, *inputs).result()


def _joined(parts: list[np.ndarray], as_numpy: bool) -> np.ndarray | jax.Array:
  embeds = np.concatenate(parts)
  return embeds if as_numpy else jnp.asarray(embeds)
