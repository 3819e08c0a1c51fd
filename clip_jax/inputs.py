"""Checks of a model's inputs: images, texts, tokens and batch sizes."""

import itertools
import numbers
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.models import padding


class NoTowerError(errors.UserError, AttributeError):
  """A model lacks a tower; to `hasattr` the attribute is not there."""


class NoTower:
  """Stands for the tokenizer or preprocessing of a tower that a model lacks.

  It is false. Any other use raises UserError.
  """

  def __init__(self, message: str):
    """Stores what the error says."""
    self._message = message

  def __bool__(self) -> bool:
    return False

  def __call__(self, *_: Any, **__: Any) -> Any:
    """Raises UserError."""
    raise NoTowerError(self._message)

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_"):  # Python itself asks for these, as to copy.
      raise AttributeError(name)
    raise NoTowerError(self._message)


def check_ids(tokens: np.ndarray, tower: nn.Module) -> None:
  """Raises UserError if a token is outside of the tower's vocabulary."""
  for token in (tokens.min(), tokens.max()):
    if not 0 <= token < tower.vocab_size:
      raise errors.UserError(
        f"The tokens hold the id {token}, but the text tower knows only the "
        f"ids 0 to {tower.vocab_size - 1}: another tokenizer made them."
      )


def check_length(tokens: np.ndarray | jax.Array, tower: nn.Module) -> None:
  """Raises UserError unless tokens are (n, length) with a valid length."""
  wanted = tower.context_length
  fits = len(tokens.shape) == 2 and (
    tokens.shape[1] == wanted
    or (0 < tokens.shape[1] < wanted and padding.can_be_cut(tower))
  )
  if not fits:
    raise errors.UserError(
      f"Tokens must be of shape (n, {wanted}), as clip.tokenize gives them; "
      f"got {tuple(tokens.shape)}."
    )


def rows(tokens: Any) -> Any:
  """Returns tokens as an array of rows; those of one text are one row."""
  return tokens[None] if len(tokens.shape) == 1 else tokens


def are_given(texts: Any) -> bool:
  """Whether `texts` are tokens: an integer array of numpy, JAX or PyTorch."""
  kind = str(getattr(texts, "dtype", "")).rpartition(".")[2]
  return kind.startswith(("int", "uint"))


def read_image(
  image: preprocess_lib.ImageInput,
  preprocess: preprocess_lib.Preprocess,
  *,
  name: str,
) -> np.ndarray:
  """Returns a preprocessed image, uint8 (size, size, 3).

  Args:
    image: an image of any kind.
    preprocess: the model's preprocessing.
    name: the image's name in errors, if it is not a path; "" for no name.

  Raises:
    UserError: the image cannot be read.
  """
  try:
    return preprocess(image)
  except errors.UserError as error:
    advice = ""
    if isinstance(image, str | os.PathLike):
      name = "" if str(image) in str(error) else str(image)
      advice = _about(image)
    if not (name or advice):
      raise
    message = f"{f'{name}: ' if name else ''}{error}{advice}"
    if isinstance(error, preprocess_lib.ImageError):
      raise preprocess_lib.ImageError(message, reason=error.reason) from None
    raise errors.UserError(message) from None


def check_file(path: str) -> None:
  """Raises UserError or OSError if an image is missing, before long work."""
  errors.check_local("The image", path)
  try:
    os.stat(path)
  except FileNotFoundError as error:
    said = f"{error.strerror}: {path or repr(path)}.{_about(path)}"
    raise errors.UserError(said) from None


def _about(path: str | os.PathLike) -> str:
  """Returns advice about a path that is not a file; "" where it is one."""
  if not os.path.isdir(path):
    return "" if os.path.exists(path) else errors.beside(path)
  inside = os.path.join(path, "*.jpg")
  data = shlex.quote(f"folder:{os.fspath(path)}")
  return (
    f" Give its images, such as {inside}, or measure all of them by `clip-jax "
    f"eval MODEL --task zero_shot --data {data}`."
  )


def check_pixels(images: Any, size: int) -> None:
  """Raises UserError unless images are uint8 (n, size, size, 3)."""
  shape = tuple(getattr(images, "shape", ()))
  kind = str(getattr(images, "dtype", type(images).__name__))
  if not kind.endswith("uint8") or shape[1:] != (size, size, 3):
    raise errors.UserError(
      f"Preprocessed images must be uint8 (n, {size}, {size}, 3), each by "
      f"clip.preprocess; got {kind}{f' {shape}' if shape else ''}. "
      "clip.encode_image takes images of any kind."
    )


def check_traced_images(images: jax.Array, size: int) -> None:
  """Raises UserError unless traced images are preprocessed already."""
  if images.ndim not in (3, 4) or images.shape[-3:] != (size, size, 3):
    raise errors.UserError(
      f"Images that are traced must be preprocessed, (n, {size}, {size}, 3), "
      f"each by clip.preprocess; got {images.shape}."
    )
  if images.dtype != jnp.uint8 and not jnp.issubdtype(
    images.dtype, jnp.floating
  ):
    raise errors.UserError(
      "Images that are traced must be uint8 from 0 to 255, or floating and "
      f"normalised; got {images.dtype}. Write x.astype('uint8')."
    )


def check_traced_tokens(tokens: jax.Array) -> None:
  """Raises UserError unless traced texts are tokens."""
  if not are_given(tokens):
    raise errors.UserError(
      "Texts that are traced must be tokens, whole numbers as clip.tokenize "
      f"gives them; got {tokens.dtype} {tokens.shape}."
    )


def batch_size(given: int | None, default: int) -> int:
  """Returns the batch size `given`, or the default for None.

  Raises:
    UserError: `given` is not a positive integer.
  """
  is_integer = isinstance(given, numbers.Integral) and not isinstance(
    given, bool
  )
  if given is not None and not (is_integer and given >= 1):
    raise errors.UserError(
      f"batch_size={given!r} must be a whole number, at least 1."
    )
  return min(int(given or max(default, 1)), sys.maxsize)


def check_progress(progress: Any) -> None:
  """Raises UserError unless `progress` is a truth value or a function."""
  if not isinstance(progress, bool | None) and not callable(progress):
    raise errors.UserError(
      "progress is True, False or a function of the number done and the total; "
      f"got {progress!r:.100}."
    )


def is_traced(inputs: Any) -> TypeGuard[jax.Array]:
  """Whether this is an abstract array of a JAX trace."""
  return isinstance(inputs, core.Tracer)


def stacked(inputs: Any) -> Any:
  """Returns several inputs that are traced arrays as one array.

  Raises:
    UserError: there is something else among them.
  """
  if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):
    first = list(itertools.islice(inputs, 1))
    is_one = any(map(is_traced, first))
    inputs = [*first, *inputs] if is_one else itertools.chain(first, inputs)
  if isinstance(inputs, list | tuple) and any(map(is_traced, inputs)):
    try:
      return jnp.stack([jnp.asarray(each) for each in inputs])
    except (TypeError, ValueError) as error:
      raise errors.UserError(
        "A list with arrays that are traced must hold arrays of one shape and "
        f"nothing else ({errors.first_line(error)})."
      ) from None
  return inputs
