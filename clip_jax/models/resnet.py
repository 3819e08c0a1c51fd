"""The ModifiedResNet image tower (paper, section 2.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import attention, layers

HEAD_DIM = 64  # One head of the attention pool for 64 of its features.
EXPANSION = 4  # A bottleneck's output channels over its inner ones.

# PyTorch's default for convolutions, which OpenAI left in place.
_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nn.Module):
  """Batch norm as torch computes it, over the whole global batch.

  Flax's own keeps a running average of the biased variance; torch's, which the
  published weights carry, averages the unbiased one. The variance takes two
  passes, in at least float32. A running average moves by 1 - `momentum`.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
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
    """Normalises (batch, h, w, channels) over all axes but the last.

    Args:
      x: of any floating type.
      train: by the batch's statistics, and the running ones move.
      locked_norms: those, by their paths in the model, that do not so.
      axes: of the mesh, that split the batch where each device runs a part.
    """
    channels = x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    running_type = jnp.promote_types(self.param_dtype, jnp.float32)
    running_mean = self.variable(
      "batch_stats", "mean", jnp.zeros, (channels,), running_type
    )
    running_var = self.variable(
      "batch_stats", "var", jnp.ones, (channels,), running_type
    )
    scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, (channels,), self.param_dtype
    )
    x = x.astype(wide)
    if train and "/".join(self.path) not in locked_norms:
      mean = _mean(x, axes)
      var = _mean(jnp.square(x - mean), axes)
      if not self.is_initializing():
        count = x.size // channels * jax.lax.psum(1, axes)
        self._average(running_mean, mean)
        self._average(running_var, var * (count / max(count - 1, 1)))
    else:
      mean, var = running_mean.value, running_var.value
    factor = jax.lax.rsqrt(var.astype(wide) + self.epsilon) * scale
    return ((x - mean) * factor + bias).astype(self.dtype)

  def _average(self, running, value):
    kept = self.momentum * running.value
    running.value = kept + (1 - self.momentum) * value.astype(kept.dtype)


def _mean(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Means over all but the last axis, and over equal parts on other devices."""
  mean = x.mean(axis=(0, 1, 2))
  return jax.lax.pmean(mean, axes) if axes else mean


def average_pool(x: jax.Array, size: int) -> jax.Array:
  """Means over (size, size) windows of (batch, h, w, channels)."""
  return nn.avg_pool(x, (size, size), strides=(size, size))


class PointwiseConv(nn.Module):
  """A 1 x 1 convolution as the matrix product that it is.

  XLA's CPU backend takes a third longer for a block whose 1 x 1 convolutions
  are convolutions, forward and backward. The kernel keeps its four axes.
  """

  features: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, h, w, channels) to (batch, h, w, features)."""
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param("kernel", _conv_init, shape, self.param_dtype)
    return x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)


class ConvNorm(nn.Module):
  """A bias-free convolution with its batch norm."""

  features: int
  kernel_size: int
  stride: int = 1
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
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if self.kernel_size == 1 and self.stride == 1:
      conv = PointwiseConv(self.features, name="conv", **dtypes)
    else:
      conv = nn.Conv(
        self.features,
        (self.kernel_size, self.kernel_size),
        strides=self.stride,
        padding=self.kernel_size // 2,
        use_bias=False,
        kernel_init=_conv_init,
        name="conv",
        **dtypes,
      )
    norm = BatchNorm(scale_init=self.scale_init, name="norm", **dtypes)
    return norm(conv(x), train=train, locked_norms=locked_norms, axes=axes)


class Bottleneck(nn.Module):
  """A residual block whose strides are average pools before a convolution."""

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
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    mode = {"train": train, "locked_norms": locked_norms, "axes": axes}
    out = EXPANSION * self.features
    y = ConvNorm(self.features, 1, name="conv_1", **dtypes)(x, **mode)
    y = nn.relu(y)
    y = ConvNorm(self.features, 3, name="conv_2", **dtypes)(y, **mode)
    y = nn.relu(y)
    if self.stride > 1:
      y = average_pool(y, self.stride)
    # Each block starts as the identity.
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
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, h, w, features) to (batch, out_dim)."""
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
    x = attention.MultiHeadAttention(
      heads=self.heads,
      in_std=std,
      out_std=std,
      out_dim=self.out_dim,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="attention",
    )(x[:, :1], x)
    return x[:, 0]


def pool_heads(width: int, stages: int) -> int:
  """Returns the heads of the attention pool after `stages` stages."""
  return width * EXPANSION * 2 ** (stages - 1) // HEAD_DIM


class ModifiedResNet(nn.Module):
  """ResNet-D with a three-convolution stem and attention pooling.

  `depths` counts the blocks of each stage. The pool projects to `embed_dim`
  by itself, so the model adds no projection. `remat` names what the backward
  pass keeps of the stem and of each block: see `layers.REMAT_POLICIES`.
  """

  image_size: int
  depths: tuple[int, ...]
  width: int
  embed_dim: int
  remat: str = "none"
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
  ) -> jax.Array:
    """Maps normalised images (batch, h, w, 3) to (batch, embed_dim).

    Args:
      images: of `image_size` by `image_size`.
      train: normalises by the batch and updates the collection "batch_stats".
      examples: changes nothing: nothing is random.
      locked_norms: batch norms, by their paths in the model, that compute as
        in use even then.
      axes: of the mesh, that split the batch where each device runs a part.

    Raises:
      UserError: sizes do not fit.
    """
    del examples
    self._check(images.shape)
    mode = {"train": train, "locked_norms": locked_norms, "axes": axes}
    policy = layers.lookup("remat policy", self.remat, layers.REMAT_POLICIES)

    def run(block, x):
      if self.remat == "none":
        return block(x, **mode)
      again = nn.remat(lambda block, x: block(x, **mode), policy=policy)
      return again(block, x)

    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = images.astype(self.dtype)
    stem = ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    for i, (features, stride) in enumerate(stem, start=1):
      layer = ConvNorm(features, 3, stride, name=f"stem_{i}", **dtypes)
      x = nn.relu(run(layer, x))
    x = average_pool(x, 2)  # (batch, h / 4, w / 4, width)
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        block = Bottleneck(
          self.width * 2**i,
          stride=2 if i > 0 and j == 0 else 1,
          name=f"stage_{i + 1}_block_{j + 1}",
          **dtypes,
        )
        x = run(block, x)
    return AttentionPool(
      heads=x.shape[-1] // HEAD_DIM,
      out_dim=self.embed_dim,
      name="attention_pool",
      **dtypes,
    )(x)

  def _check(self, shape):
    size, stride = self.image_size, 2 ** (1 + len(self.depths))
    if size % stride:
      raise errors.UserError(
        f"image_size={size} must divide by {stride}, the stride of "
        f"{len(self.depths)} stages; try {max(1, size // stride) * stride}."
      )
    if shape[1:] != (size, size, 3):
      raise errors.UserError(
        f"Images must be (batch, {size}, {size}, 3); got {shape}."
      )
    features = self.width * EXPANSION * 2 ** (len(self.depths) - 1)
    if features % HEAD_DIM:
      raise errors.UserError(
        f"width={self.width} leads to {features} features, which must divide "
        f"by the attention pool's head size, {HEAD_DIM}."
      )
