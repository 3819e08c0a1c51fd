"""Checks of a model's inputs: images, texts, tokens and batch sizes."""

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.models import padding

_DECODE: dict[type, str] = dict.fromkeys(
  (bytes, bytearray), "; write it as .decode()."
)


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
    if isinstance(image, str | os.PathLike):
      name = "" if str(image) in str(error) else str(image)
    if not name:
      raise
    message = f"{name}: {error}"
    if isinstance(error, preprocess_lib.ImageError):
      raise preprocess_lib.ImageError(message, reason=error.reason) from None
    raise errors.UserError(message) from None


def check_traced_images(images: jax.Array, size: int) -> None:
  """Raises UserError unless traced images are preprocessed already."""
  if images.ndim not in (3, 4) or images.shape[-3:] != (size, size, 3):
    raise errors.UserError(
      f"Images that are traced must be preprocessed, (n, {size}, {size}, 3), "
      f"each by clip.preprocess; got {images.shape}."
    )


def batch_size(given: int | None, default: int) -> int:
  """Returns the batch size `given`, or the default for None.

  Raises:
    UserError: `given` is not a positive integer.
  """
  is_integer = isinstance(given, numbers.Integral)
  if given is not None and not (is_integer and given >= 1):
    raise errors.UserError(
      f"batch_size={given!r} must be a whole number, at least 1."
    )
  return int(given or max(default, 1))


def is_traced(inputs: Any) -> TypeGuard[jax.Array]:
  """Whether this is an abstract array of a JAX trace."""
  return isinstance(inputs, core.Tracer)


def stacked(inputs: Any) -> Any:
  """Returns a list that holds traced arrays as one array."""
  if isinstance(inputs, list | tuple) and any(map(is_traced, inputs)):
    return jnp.stack([jnp.asarray(each) for each in inputs])
  return inputs


def listed_texts(texts: str | Iterable[str]) -> list[str]:
  """Returns a list of texts, from one text or several.

  Raises:
    UserError: the argument is neither.
  """
  refused = bytes | bytearray | Mapping | set | frozenset  # Sets have no order.
  if isinstance(texts, refused) or not isinstance(texts, Iterable):
    raise errors.UserError(
      "Texts are given as one str or as a list of several, got "
      f"{type(texts).__name__}{_DECODE.get(type(texts), '.')}"
    )
  return [texts] if isinstance(texts, str) else list(texts)
