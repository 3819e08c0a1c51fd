"""What users give to a model: images, texts, tokens and batch sizes."""

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

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
  """Raises UserError where a text tower does not know some of `tokens`."""
  for token in (tokens.min(), tokens.max()):
    if not 0 <= token < tower.vocab_size:
      raise errors.UserError(
        f"The tokens hold the id {token}, but the text tower knows those from "
        f"0 to {tower.vocab_size - 1} only: they are not of its tokenizer."
      )


def check_length(tokens: np.ndarray | jax.Array, tower: nn.Module) -> None:
  """Raises UserError unless tokens are (n, length) of a length that fits."""
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
  """Whether these are integers in an array, of numpy, JAX or PyTorch."""
  kind = str(getattr(texts, "dtype", "")).rpartition(".")[2]
  return kind.startswith(("int", "uint"))


def read_image(
  image: preprocess_lib.ImageInput,
  preprocess: preprocess_lib.Preprocess,
  *,
  name: str,
) -> np.ndarray:
  """Returns an image as the model sees it, uint8 (size, size, 3).

  Args:
    image: of any kind.
    preprocess: how it becomes an array.
    name: that an error calls it by, unless it is a path; "" for none.

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
  """Raises UserError unless images under a trace are prepared."""
  if images.ndim not in (3, 4) or images.shape[-3:] != (size, size, 3):
    raise errors.UserError(
      f"Images that are traced must be prepared, (n, {size}, {size}, 3), "
      f"as clip.preprocess does it for each; got {images.shape}."
    )


def batch_size(given: int | None, default: int) -> int:
  """Returns how many inputs are taken at once.

  Raises:
    UserError: what is given is no whole number from 1 up.
  """
  is_integer = isinstance(given, numbers.Integral)
  if given is not None and not (is_integer and given >= 1):
    raise errors.UserError(
      f"batch_size={given!r} must be a whole number, at least 1."
    )
  return int(given or max(default, 1))


def stacked(inputs: Any) -> Any:
  """Returns a list with traced arrays in it as one array."""
  if isinstance(inputs, list | tuple) and any(
    isinstance(each, core.Tracer) for each in inputs
  ):
    return jnp.stack([jnp.asarray(each) for each in inputs])
  return inputs


def listed_texts(texts: str | Iterable[str]) -> list[str]:
  """Returns texts in a list, which are given as one or as several.

  Raises:
    UserError: they are neither.
  """
  refused = bytes | bytearray | Mapping | set | frozenset  # Sets have no order.
  if isinstance(texts, refused) or not isinstance(texts, Iterable):
    raise errors.UserError(
      "Texts are given as one str or as a list of several, got "
      f"{type(texts).__name__}{_DECODE.get(type(texts), '.')}"
    )
  return [texts] if isinstance(texts, str) else list(texts)
