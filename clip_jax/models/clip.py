"""The model of two towers: projections, normalisation, temperature and bias."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import layers
from clip_jax.packing import packed_text

MAX_LOGIT_SCALE = 100.0  # Paper, section 2.5.
INIT_LOGIT_SCALE = 1 / 0.07  # Paper, section 2.5.
# Zhai et al. 2023, section 3.2.
SIGLIP_INIT_LOGIT_SCALE, SIGLIP_INIT_LOGIT_BIAS = 10.0, -10.0

PROJECTIONS = ("linear", "linear_bias", "mlp", "none")


@flax.struct.dataclass
class ClipOutput:
  """The outputs that a loss needs; None for those that a model does not have.

  Attributes:
    image_embeds: (batch, embed), of unit length.
    text_embeds: (batch, embed), of unit length.
    logit_scale: (), the factor that multiplies the cosine similarities.
    logit_bias: (), the number that is added to the scaled similarities.
    head_losses: (batch,), the loss of predicting each caption from its image,
      in nats.
  """

  # Nearly every model has these three; they are None for the others.
  image_embeds: jax.Array = None  # pyright: ignore[reportAssignmentType]
  text_embeds: jax.Array = None  # pyright: ignore[reportAssignmentType]
  logit_scale: jax.Array = None  # pyright: ignore[reportAssignmentType]
  logit_bias: jax.Array | None = None
  head_losses: jax.Array | None = None


def _length(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _rsqrt(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


# The normalisations of the code bases that weights come from: OpenAI, open_clip
# and transformers; big_vision; borisdayma/clip-jax.
EMBED_NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "l2": lambda x: x / _length(x),
  "l2_plus_1e-8": lambda x: x / (_length(x) + 1e-8),
  "l2_rsqrt_1e-6": _rsqrt,
}


def unit_length(x: jax.Array, how: str = "l2") -> jax.Array:
  """Divides by the Euclidean norm along the last axis, in at least float32.

  Args:
    x: (..., embed).
    how: a name in `EMBED_NORMS`.

  Raises:
    UserError: the name is unknown.
  """
  normalize = layers.lookup("embed_norm", how, EMBED_NORMS)
  return normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


class MlpProjection(nn.Module):
  """Two layers without bias around an exact GELU.

  The width between them is the mean of the input's and the output's.
  """

  embed_dim: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, width) to (batch, embed)."""
    hidden = (x.shape[-1] + self.embed_dim) // 2
    for name, features in (("fc_in", hidden), ("fc_out", self.embed_dim)):
      x = nn.Dense(
        features,
        use_bias=False,
        kernel_init=nn.initializers.normal(x.shape[-1] ** -0.5),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )(x)
      if name == "fc_in":
        x = layers.ACTIVATIONS["gelu"](x)
    return x


class CLIP(nn.Module):
  """An image tower and a text tower that meet in one embedding space.

  Images of type uint8 are normalised here by `image_mean` and `image_std`;
  images of a floating-point type must have been normalised before. Tokens are
  integers, padded as the text tower expects. Projections are named in
  `PROJECTIONS`: "none" is for towers whose output lies in the shared space
  already, such as CLIP's ResNets. If `init_logit_bias` is given, the model has
  a logit bias, as SigLIP's models do. Training keeps the logit scale at
  `max_logit_scale` or less, unless that is None.

  A `head` predicts captions from the image tower's features (heads.py). A model
  that is not `contrastive` has an image tower and a head only: no text tower,
  no projections and no temperature.
  """

  image: nn.Module
  text: nn.Module
  embed_dim: int
  image_mean: tuple[float, float, float]
  image_std: tuple[float, float, float]
  image_projection_kind: str = "linear"
  text_projection_kind: str = "linear"
  embed_norm: str = "l2"
  init_logit_scale: float = INIT_LOGIT_SCALE
  init_logit_bias: float | None = None
  max_logit_scale: float | None = MAX_LOGIT_SCALE
  head: nn.Module | None = None
  contrastive: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self) -> None:
    """Makes the projections, the logit scale and the logit bias."""
    self.image_projection = self._projection("image")
    self.text_projection = self._projection("text")
    wide = jnp.promote_types(self.param_dtype, jnp.float32)

    def scalar(name, value):
      return self.param(name, nn.initializers.constant(value), (), wide)

    if not self.contrastive:
      return
    self.log_scale = scalar("log_scale", math.log(self.init_logit_scale))
    if self.init_logit_bias is not None:
      self.logit_bias = scalar("logit_bias", self.init_logit_bias)

  def _projection(self, part):
    """Returns the projection of the tower `part`; None if it has none."""
    kind = getattr(self, f"{part}_projection_kind")
    layers.lookup(f"{part}_projection", kind, dict.fromkeys(PROJECTIONS))
    if kind == "none":
      return None
    dtypes = layers.dtypes_of(self)
    if kind == "mlp":
      return MlpProjection(self.embed_dim, **dtypes)
    width = getattr(self, part).width
    return nn.Dense(
      self.embed_dim,
      use_bias=kind == "linear_bias",
      kernel_init=nn.initializers.normal(width**-0.5),
      **dtypes,
    )

  def __call__(
    self,
    images: jax.Array,
    tokens: jax.Array | packed_text.PackedText,
    *,
    train: bool = False,
    locked: tuple[str, ...] = (),
    locked_norms: tuple[str, ...] = (),
    examples: jax.Array | None = None,
    axes: tuple[str, ...] = (),
  ) -> ClipOutput:
    """Embeds pairs; the head, if any, predicts each caption from its image.

    Args:
      images: (batch, h, w, 3).
      tokens: (batch, length), or packed captions.
      train: whether to update batch statistics and to drop patches.
      locked: "image" or "text": towers that compute as in inference even if
        `train` is true.
      locked_norms: paths of the batch norms that do so, such as
        "image/stem_1/norm".
      examples: (batch,), the numbers of the pairs in the global batch, if these
        are a part of it; random choices depend on them.
      axes: the mesh axes that split the batch, if each device runs a part of
        it.
    """
    features = self.image(
      self._normalize(images),
      train=train and "image" not in locked,
      locked_norms=locked_norms,
      examples=examples,
      axes=axes,
    )
    output = ClipOutput()
    if self.head is not None:
      losses = self.head(features, tokens)
      output = dataclasses.replace(output, head_losses=losses)
    if not self.contrastive:
      return output
    scale, bias = self.temperature()
    return dataclasses.replace(
      output,
      image_embeds=self._embed("image", self.image_projection, features),
      text_embeds=self.encode_text(
        tokens, train=train and "text" not in locked
      ),
      logit_scale=scale,
      logit_bias=bias,
    )

  def temperature(self) -> tuple[jax.Array, jax.Array | None]:
    """Returns the logit scale and the logit bias, None without one."""
    if not self.contrastive:
      return None, None  # pyright: ignore[reportReturnType]
    has_bias = self.init_logit_bias is not None
    return jnp.exp(self.log_scale), self.logit_bias if has_bias else None

  def encode_image(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    **training: Any,
  ) -> jax.Array:
    """Embeds images (batch, h, w, 3) as (batch, embed) of unit length.

    Args:
      images: (batch, h, w, 3).
      train: whether to update batch statistics and to drop patches.
      **training: `examples`, `locked_norms` and `axes`, as in `__call__`.
    """
    x = self.image(self._normalize(images), train=train, **training)
    return self._embed("image", self.image_projection, x)

  def encode_patches(self, images: jax.Array) -> jax.Array:
    """Embeds each patch of images (batch, h, w, 3) in the shared space.

    The result is (batch, rows, cols, embed) of unit length: the image tower's
    features of each patch by itself (`each_patch`), projected as an image's
    are. What it is near to says where in the image a text fits (MaskCLIP, arXiv
    2112.01071, section 3.2).
    """
    x = self.image(self._normalize(images), train=False, each_patch=True)
    return self._embed("image", self.image_projection, x)

  def image_features(self, images: jax.Array) -> jax.Array:
    """Returns the image tower's output before its projection (batch, width).

    The attention pool of a ResNet includes the projection: for a ResNet these
    are the embeddings before they are divided by their norm.
    """
    return self.image(self._normalize(images), train=False)

  def encode_text(
    self, tokens: jax.Array | packed_text.PackedText, *, train: bool = False
  ) -> jax.Array:
    """Embeds tokens (batch, length) as (batch, embed) of unit length.

    Packed captions give (captions, embed), if the tower can read them.
    """
    x = self.text(tokens, train=train)
    return self._embed("text", self.text_projection, x)

  def _embed(self, part, projection, x):
    if projection is not None:
      x = projection(x)
    elif x.shape[-1] != self.embed_dim:
      raise errors.UserError(
        f"{part}_projection='none' needs an {part} tower that ends in "
        f"embed_dim={self.embed_dim}; its features are {x.shape[-1]} wide. Try "
        f"{part}_projection='linear'."
      )
    return unit_length(x, self.embed_norm)

  def _normalize(self, images):
    if jnp.issubdtype(images.dtype, jnp.floating):
      return images.astype(self.dtype)
    wide = jnp.promote_types(self.dtype, jnp.float32)
    mean = jnp.asarray(self.image_mean, wide)
    std = jnp.asarray(self.image_std, wide)
    return ((images.astype(wide) / 255 - mean) / std).astype(self.dtype)
