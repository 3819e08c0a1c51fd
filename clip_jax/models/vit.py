"""The Vision Transformer image tower."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import encoder, layers, paths


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts (batch, h, w, channels) into (batch, patches, patch_values).

  Patches are in row-major order; so are the pixels of a patch, with the channel
  as the last axis. Pixels to the right of the last whole patch and below it are
  ignored.
  """
  b, h, w, c = images.shape
  rows, cols = h // patch_size, w // patch_size
  images = images[:, : rows * patch_size, : cols * patch_size]
  x = images.reshape(b, rows, patch_size, cols, patch_size, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, rows * cols, patch_size * patch_size * c)


def _class_token(x: jax.Array, first_patch: int) -> jax.Array:
  del first_patch
  return x[:, 0]


def _patch_mean(x: jax.Array, first_patch: int) -> jax.Array:
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return x[:, first_patch:].mean(axis=1, dtype=wide).astype(x.dtype)


class VisionTransformer(nn.Module):
  """A Vision Transformer with an optional norm before the encoder (paper, 2.4).

  The order of tokens is: class token, registers, patches. Registers have no
  position embedding; the class token has one if `class_position` is true.
  `pooling` takes the class token ("class"), the mean of the patches ("gap"), or
  a learned query over the patches ("map"), after the last norm; with
  `norm_after_pool` the mean is taken before it. `drop_edge` allows an
  `image_size` that is not a multiple of the patch size: the pixels to the right
  of the last whole patch and below it are ignored.
  """

  image_size: int
  patch_size: int
  width: int
  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  pooling: str = "class"
  norm_after_pool: bool = False
  class_token: bool = True
  class_position: bool = True
  registers: int = 0
  pre_norm: bool = True
  patch_bias: bool = False
  patch_dropout: float = 0.0
  drop_edge: bool = False
  scan: bool = True
  unroll: int = 1
  remat: str = "dots_no_batch"
  gather: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    examples: jax.Array | None = None,
    locked_norms: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
    each_patch: bool = False,
  ) -> jax.Array:
    """Maps normalised images (batch, h, w, 3) to features (batch, width).

    Args:
      images: of `image_size` by `image_size`.
      train: whether to drop patches, with random numbers of the stream
        "dropout".
      examples: (batch,), the numbers of the images in the global batch, which
        decide which patches are dropped; None if this is the global batch.
      locked_norms: has no effect, because there are no batch norms.
      axes: has no effect, because images do not depend on each other.
      each_patch: whether to return features of each patch, (batch, rows, cols,
        width), as of a pooling that sees this patch alone. If it is the class
        token that pools, the last block does so, and its patches see themselves
        alone (MaskCLIP, arXiv 2112.01071, section 3.2).

    Raises:
      UserError: sizes do not fit, or `pooling` is unknown.
    """
    del locked_norms, axes
    self._check(images.shape)
    dtypes = layers.dtypes_of(self)
    if examples is None:
      examples = jnp.arange(len(images))
    x = self._embed(images, examples, train=train)
    first_patch = int(self.class_token) + self.registers
    if self.pre_norm:
      x = layers.layer_norm(self.norm_epsilon, name="ln_pre", dtypes=dtypes)(x)
    x = self._encode(x, first_patch, each_patch=each_patch)
    norm = layers.layer_norm(self.norm_epsilon, name="ln_post", dtypes=dtypes)
    if each_patch:
      x = norm(x)
      if self.pooling == "map":
        x = self._attention_pool(x, 0, each=True)
      rows = self.image_size // self.patch_size
      return x.reshape(len(x), rows, rows, self.width)
    poolings = {
      "class": _class_token,
      "gap": _patch_mean,
      "map": self._attention_pool,
    }
    pool = layers.lookup("pooling", self.pooling, poolings)
    if self.norm_after_pool:
      return norm(pool(x, first_patch))
    return pool(norm(x), first_patch)

  def _encode(self, x, first_patch, *, each_patch):
    """Returns the tokens after the blocks: all, the class token, or patches."""
    at = last_mask = None
    if self.pooling == "class" and not each_patch:
      at = jnp.zeros((len(x), 1), int)  # Only the class token is read.
    elif each_patch and self.pooling == "class":
      at = jnp.arange(first_patch, x.shape[1])
      at = jnp.broadcast_to(at, (len(x), len(at)))
      last_mask = layers.itself(x)[:, first_patch:]
    x = encoder.of_tower(self, name=paths.ENCODER)(
      x, at=at, last_mask=last_mask
    )
    return x[:, first_patch:] if each_patch and at is None else x

  def _check(self, shape):
    size, patch_size = self.image_size, self.patch_size
    if size < patch_size:
      raise errors.UserError(
        f"image_size={size} must be at least patch_size={patch_size}; try "
        f"{patch_size}, or smaller patches."
      )
    if size % patch_size and not self.drop_edge:
      raise errors.UserError(
        f"image_size={size} must be divisible by patch_size={patch_size}; try "
        f"{size // patch_size * patch_size}, or drop_edge=True to ignore the "
        "pixels beyond the last whole patch."
      )
    layers.check_images(shape, size)
    if self.pooling == "class" and not self.class_token:
      raise errors.UserError(
        "pooling='class' needs class_token=True; try pooling='gap'."
      )
    if self.norm_after_pool and self.pooling != "gap":
      raise errors.UserError(
        f"norm_after_pool=True needs pooling='gap', got {self.pooling!r}: only "
        "a mean differs before and after the norm."
      )

  def _embed(self, images, examples, *, train):
    """Returns class token, registers and patches with position embeddings."""
    p, width = self.patch_size, self.width
    normal = nn.initializers.normal(width**-0.5)
    # A matrix product instead of a strided convolution: the same sums, and a
    # gradient that every backend computes as a matrix product too.
    kernel = self.param(
      "patch_kernel",
      nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=(0, 1, 2)
      ),
      (p, p, 3, width),
      self.param_dtype,
    )
    x = patchify(images.astype(self.dtype), p)
    x = x @ kernel.reshape(p * p * 3, width).astype(self.dtype)
    b, patches, _ = x.shape  # (batch, patches, width)
    if self.patch_bias:
      x = x + self.param(
        "patch_bias", nn.initializers.zeros, (width,), self.param_dtype
      ).astype(self.dtype)
    positioned_class = int(self.class_token and self.class_position)
    positions = self.param(
      "position_embedding",
      normal,
      (positioned_class + patches, width),
      self.param_dtype,
    ).astype(self.dtype)
    x = x + positions[positioned_class:]
    if train and self.patch_dropout > 0:
      x = layers.drop_patches(
        self.make_rng("dropout"),
        x,
        rate=self.patch_dropout,
        examples=examples,
      )
    prefix = []
    if self.class_token:
      token = self.param("class_embedding", normal, (width,), self.param_dtype)
      token = token.astype(self.dtype)[None]
      prefix.append(token + positions[:1] if positioned_class else token)
    if self.registers:
      registers = self.param(
        "registers", normal, (self.registers, width), self.param_dtype
      )
      prefix.append(registers.astype(self.dtype))
    prefix = [jnp.broadcast_to(t, (b, *t.shape)) for t in prefix]
    return jnp.concatenate([*prefix, x], axis=1)

  def _attention_pool(self, x, first_patch, *, each=False):
    return layers.MapHead(
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="map_head",
    )(x[:, first_patch:], each=each)
