"""The two-tower model: projections, normalisation and temperature."""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

MAX_LOG_SCALE = math.log(100.0)  # Paper, section 2.5.
INIT_LOGIT_SCALE = 1 / 0.07  # Paper, section 2.5.


@flax.struct.dataclass
class ClipOutput:
  """What a loss needs.

  Attributes:
    image_embeds: (batch, embed), unit length.
    text_embeds: (batch, embed), unit length.
    logit_scale: (), the factor of the cosine similarities.
  """

  image_embeds: jax.Array
  text_embeds: jax.Array
  logit_scale: jax.Array


def unit_length(x: jax.Array) -> jax.Array:
  """Divides by the Euclidean norm of the last axis, in at least float32."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nn.Module):
  """An image tower and a text tower that meet in one embedding space.

  Images are uint8, which are normalised here by `image_mean` and `image_std`,
  or floating, which are taken as normalised. Tokens are integers, padded by
  zeros. `project_image` is False for towers that end in the shared space by
  themselves: CLIP's ResNets.
  """

  image: nn.Module
  text: nn.Module
  embed_dim: int
  image_mean: tuple[float, float, float]
  image_std: tuple[float, float, float]
  project_image: bool = True
  init_logit_scale: float = INIT_LOGIT_SCALE
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    """Makes the projections and the temperature."""
    if self.project_image:
      self.image_projection = self._projection(self.image.width)
    self.text_projection = self._projection(self.text.width)
    self.log_scale = self.param(
      "log_scale",
      nn.initializers.constant(math.log(self.init_logit_scale)),
      (),
      jnp.promote_types(self.param_dtype, jnp.float32),
    )

  def _projection(self, width):
    return nn.Dense(
      self.embed_dim,
      use_bias=False,
      kernel_init=nn.initializers.normal(width**-0.5),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

  def __call__(
    self, images: jax.Array, tokens: jax.Array, *, train: bool = False
  ) -> ClipOutput:
    """Embeds pairs: images (batch, h, w, 3) and tokens (batch, length)."""
    return ClipOutput(
      image_embeds=self.encode_image(images, train=train),
      text_embeds=self.encode_text(tokens, train=train),
      # The gradient vanishes above the bound: an optimizer that may overshoot
      # it has to clip the parameter too.
      logit_scale=jnp.exp(jnp.minimum(self.log_scale, MAX_LOG_SCALE)),
    )

  def encode_image(
    self, images: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Embeds images (batch, h, w, 3) as (batch, embed) of unit length."""
    x = self.image(self._normalize(images), train=train)
    if self.project_image:
      x = self.image_projection(x)
    return unit_length(x)

  def encode_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Embeds tokens (batch, length) as (batch, embed) of unit length."""
    return unit_length(self.text_projection(self.text(tokens, train=train)))

  def _normalize(self, images):
    if jnp.issubdtype(images.dtype, jnp.floating):
      return images.astype(self.dtype)
    wide = jnp.promote_types(self.dtype, jnp.float32)
    mean = jnp.asarray(self.image_mean, wide)
    std = jnp.asarray(self.image_std, wide)
    return ((images.astype(wide) / 255 - mean) / std).astype(self.dtype)
