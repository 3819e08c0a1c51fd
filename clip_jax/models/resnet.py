"""The ModifiedResNet image tower (paper, section 2.4)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import (
  attention,
  batch_norm,
  block_chain,
  convolution,
  layers,
  paths,
)

HEAD_DIM = 64  # Features of one head of the attention pool.
EXPANSION = 4  # Output channels of a bottleneck for each of its inner channels.

# With fewer equal blocks a loop saves no compile time.
_SHORTEST_LOOP = 4


def average_pool(x: jax.Array, size: int) -> jax.Array:
  """Averages (batch, h, w, channels) over windows of (size, size)."""
  return nn.avg_pool(x, (size, size), strides=(size, size))


class ConvNorm(nn.Module):
  """A convolution without bias, a batch norm and, optionally, a ReLU."""

  features: int
  kernel_size: int
  stride: int = 1
  relu: bool = False
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    locked_norms: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
  ) -> jax.Array:
    """Maps (batch, h, w, channels) to (batch, h', w', features)."""
    dtypes = layers.dtypes_of(self)
    conv = convolution.Conv(
      self.features, self.kernel_size, self.stride, name="conv", **dtypes
    )
    norm = batch_norm.BatchNorm(
      scale_init=self.scale_init, name="norm", **dtypes
    )
    x = norm(conv(x), train=train, locked_norms=locked_norms, axes=axes)
    return nn.relu(x) if self.relu else x


class Bottleneck(nn.Module):
  """A residual block that strides by average pooling before a convolution."""

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    locked_norms: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
  ) -> jax.Array:
    """Maps (batch, h, w, c) to (batch, h/stride, w/stride, 4 * features)."""
    dtypes = layers.dtypes_of(self)
    mode = {"train": train, "locked_norms": locked_norms, "axes": axes}
    features, out = self.features, EXPANSION * self.features
    y = ConvNorm(features, 1, relu=True, name="conv_1", **dtypes)(x, **mode)
    y = ConvNorm(features, 3, relu=True, name="conv_2", **dtypes)(y, **mode)
    if self.stride > 1:
      y = average_pool(y, self.stride)
    # The last scale is zero, so that each block is the identity at the start.
    y = ConvNorm(
      out, 1, scale_init=nn.initializers.zeros, name="conv_3", **dtypes
    )(y, **mode)
    if self.stride > 1 or x.shape[-1] != out:
      if self.stride > 1:
        x = average_pool(x, self.stride)
      x = ConvNorm(out, 1, name="downsample", **dtypes)(x, **mode)
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """Pools by attending from the mean token, as CLIP's ResNets do."""

  heads: int
  out_dim: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, each: bool = False) -> jax.Array:
    """Maps (batch, h, w, features) to (batch, out_dim).

    With `each` it maps to (batch, h, w, out_dim): each position's projected
    value, which is what a query gets that attends to this position only.
    """
    b, h, w, features = x.shape
    std = features**-0.5
    x = x.reshape(b, h * w, features)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean = x.mean(axis=1, keepdims=True, dtype=wide).astype(x.dtype)
    x = jnp.concatenate([mean, x], axis=1)  # (batch, 1 + h * w, features)
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(std),
      (1 + h * w, features),
      self.param_dtype,
    )
    x = x + positions.astype(x.dtype)
    attend = attention.MultiHeadAttention(
      heads=self.heads,
      in_std=std,
      out_std=std,
      out_dim=self.out_dim,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="attention",
    )
    if each:
      x = x[:, 1:]
      return attend(x, x, layers.itself(x)).reshape(b, h, w, self.out_dim)
    return attend(x[:, :1], x)[:, 0]


def pool_heads(width: int, stages: int) -> int:
  """Returns the number of heads of the attention pool after `stages` stages."""
  return width * EXPANSION * 2 ** (stages - 1) // HEAD_DIM


class ModifiedResNet(nn.Module):
  """ResNet-D with a three-convolution stem and attention pooling.

  Attributes:
    image_size: the side of an image in pixels.
    depths: the number of blocks of each stage.
    width: channels after the stem.
    embed_dim: the pool projects to it, so the model adds no projection.
    scan: whether to run all blocks of a stage but the first, which are equal,
      in a loop, where there are enough of them. A deep tower then compiles in a
      fraction of the time, and computes the same from the same parameters.
    remat: what is kept of the stem and of each block for the backward pass: see
      `block_chain`.
    gather: takes the name of a block and returns a function that gathers its
      parameters from the devices' parts; None if every device holds all.
    dtype: the type in which the tower computes.
    param_dtype: the type of the parameters.
  """

  image_size: int
  depths: tuple[int, ...]
  width: int
  embed_dim: int
  scan: bool = False
  remat: str = "none"
  gather: Callable[[str], Callable[[Any], Any]] | None = None
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
    """Maps normalised images (batch, h, w, 3) to (batch, embed_dim).

    Args:
      images: of `image_size` by `image_size`.
      train: whether to normalise by the batch's statistics and to update the
        collection "batch_stats".
      examples: has no effect, because nothing is random.
      locked_norms: paths in the model of the batch norms that use their running
        statistics even if `train` is true.
      axes: the mesh axes that split the batch, if each device runs a part of
        it.
      each_patch: whether to return the pool's projected value of each position
        of the last stage, (batch, rows, cols, embed_dim): MaskCLIP, arXiv
        2112.01071, section 3.2.

    Raises:
      UserError: the images are of another size, or `image_size` or `width` is
        not divisible as the tower needs it.
    """
    del examples
    self._check(images.shape)
    mode = {"train": train, "locked_norms": locked_norms, "axes": axes}
    chain = block_chain.Chain(self.remat, mode)
    dtypes = layers.dtypes_of(self)
    x = images.astype(self.dtype)
    stem = ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    x = chain.run(
      [
        ConvNorm(features, 3, stride, relu=True, name=f"stem_{i}", **dtypes)
        for i, (features, stride) in enumerate(stem, start=1)
      ],
      x,
    )
    x = average_pool(x, 2)  # (batch, h / 4, w / 4, width)
    for i, depth in enumerate(self.depths):
      features = self.width * 2**i
      names = [paths.block(i + 1, j + 1) for j in range(depth)]
      looped = self._names_to_loop(names[1:], locked_norms)
      blocks = [
        self._make_block(name)(
          features, stride=2 if i > 0 and j == 0 else 1, name=name, **dtypes
        )
        for j, name in enumerate(names)
        if name not in looped
      ]
      x = chain.run(blocks, x)
      if looped:
        block = Bottleneck(features, parent=None, **dtypes)
        x = self._loop(chain, block, looped, x)
    return AttentionPool(
      heads=x.shape[-1] // HEAD_DIM,
      out_dim=self.embed_dim,
      name="attention_pool",
      **dtypes,
    )(x, each=each_patch)

  def _make_block(self, name):
    """Returns a function that makes the block of this name."""
    if self.gather is None:
      return Bottleneck
    return nn.map_variables(Bottleneck, "params", trans_in_fn=self.gather(name))

  def _names_to_loop(self, names, locked_norms):
    """Returns the blocks to run in a loop: either all of `names`, or none."""
    if not self.scan or self.is_initializing() or len(names) < _SHORTEST_LOOP:
      return []
    # A compiled block cannot lock norms in some iterations only.
    locked = {self._locked(name, locked_norms) for name in names}
    return names if len(locked) == 1 else []

  def _locked(self, name, locked_norms):
    """Returns the paths, within a block, of its locked norms."""
    prefix = "/".join((*self.path, name, ""))
    within = [path for path in locked_norms if path.startswith(prefix)]
    return tuple(sorted(path.removeprefix(prefix) for path in within))

  def _loop(self, chain, block, names, x):
    """Runs `block` with the variables of each of the named blocks in turn."""
    locked = self._locked(names[0], chain.mode["locked_norms"])
    mode = {**chain.mode, "locked_norms": locked}
    variables = [
      {kind: self.variables[kind][name] for kind in ("params", "batch_stats")}
      for name in names
    ]
    # The blocks are equal, and so are their PartitionSpecs.
    gather = self.gather and self.gather(names[0])
    chain = dataclasses.replace(chain, mode=mode)
    x, stats = chain.loop(block, variables, x, gather=gather)
    if self.is_mutable_collection("batch_stats"):
      for name, updated in zip(names, stats, strict=True):
        self.put_variable("batch_stats", name, updated)
    return x

  def _check(self, shape):
    size, stride = self.image_size, 2 ** (1 + len(self.depths))
    if size % stride:
      raise errors.UserError(
        f"image_size={size} must be divisible by {stride}, the stride of "
        f"{len(self.depths)} stages; try {max(1, size // stride) * stride}."
      )
    layers.check_images(shape, size)
    if self.width < 2:
      raise errors.UserError(
        f"width={self.width} must be at least 2: the stem begins with half of "
        "it."
      )
    features = self.width * EXPANSION * 2 ** (len(self.depths) - 1)
    if features % HEAD_DIM:
      raise errors.UserError(
        f"width={self.width} gives {features} features, which must be "
        f"divisible by {HEAD_DIM}, the head size of the attention pool."
      )
