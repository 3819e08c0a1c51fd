"""The dense losses in extended precision, and one way to run ours."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from clip_jax import losses, sharding

PAIRS, EMBED = 24, 7  # 24 divides by 1, 2, 4 and 8 devices.
# What a device holds is no multiple of these: 24, 12, 6 or 3 pairs.
TILE = losses.Tile(rows=5, columns=7)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_pairs(closeness, *, seed=0, dtype=np.float64):
  """Unit rows; `closeness` 0 is unrelated pairs, 1 is identical ones."""
  rng = np.random.default_rng(seed)
  images, noise = rng.normal(size=(2, PAIRS, EMBED))
  texts = unit(closeness * images + (1 - closeness) * noise)
  return unit(images).astype(dtype), texts.astype(dtype)


def make_ids(seed=0):
  """Ids with equal ones at few places, some of them in both."""
  rng = np.random.default_rng(seed)
  return tuple(rng.integers(0, 30, size=(2, PAIRS), dtype=np.int32))


def copies(ids):
  """The pairs (i, j), i != j, with an equal id."""
  same = np.zeros((PAIRS, PAIRS), bool)
  for x in ids:
    if x is not None:
      same |= x[:, None] == x[None]
  return same & ~np.eye(PAIRS, dtype=bool)


def targets(duplicates, ids):
  """Returns (positives, counted), bool (images, texts)."""
  own, same = np.eye(PAIRS, dtype=bool), copies(ids)
  if duplicates == "mask":
    return own, ~same
  if duplicates == "positive":
    return own | same, np.full_like(own, True)
  return own, np.full_like(own, True)


def dense_softmax(images, texts, scale, bias, positives, counted):
  """The loss and its gradients with all logits, in extended precision.

  Differences to the own logit come first: near convergence even extended
  precision would leave few digits of log-sum-exp less logit.
  """
  del bias
  cosines = images @ texts.T
  loss, weights, temperature = np.longdouble(0), 0, 0
  for axis in (1, 0):
    own = np.expand_dims(np.diag(cosines), axis)
    above = scale * (cosines - own)
    others = np.where(counted & ~np.eye(PAIRS, dtype=bool), np.exp(above), 0)
    excess = np.log1p(others.sum(axis))
    share = positives / positives.sum(axis, keepdims=True)
    loss += (excess - (share * above).sum(axis)).mean() / 2
    part = others / np.exp(np.expand_dims(excess, axis)) - share
    # Each line of `part` sums to 0 with this diagonal.
    np.fill_diagonal(part, 0)
    np.fill_diagonal(part, -part.sum(axis))
    weights = weights + part / (2 * PAIRS)
    temperature += (part * (cosines - own)).sum() / (2 * PAIRS)
  gradients = scale * weights @ texts, scale * weights.T @ images, temperature
  return loss, (*gradients, np.longdouble(0))


def dense_sigmoid(images, texts, scale, bias, positives, counted):
  """Equation 1 of Zhai et al. 2023 and its gradients, all pairs at once."""
  cosines = images @ texts.T
  sign = np.where(positives, 1, -1)
  margin = sign * (scale * cosines + bias)
  loss = np.where(counted, np.log1p(np.exp(-margin)), 0).sum() / PAIRS
  weights = np.where(counted, -sign / (1 + np.exp(margin)), 0) / PAIRS
  return loss, (
    scale * weights @ texts,
    scale * weights.T @ images,
    (weights * cosines).sum(),
    weights.sum(),
  )


DENSE = {"softmax": dense_softmax, "sigmoid": dense_sigmoid}


def dense(kind, arrays, *, duplicates="ignore", ids=(None, None)):
  """Returns (loss, gradients of images, texts, scale and bias)."""
  wide = [np.asarray(x, np.longdouble) for x in arrays]
  return DENSE[kind](*wide, *targets(duplicates, ids))


@functools.cache
def compiled(kind, method, mesh_shape, duplicates, known, tile=TILE):
  """Returns a function of (arrays, ids), where ids `known` says are given."""
  axes = sharding.BATCH_AXES

  def run(arrays, ids):
    images, texts, scale, bias = arrays
    return losses.local_loss(kind)(
      images,
      texts,
      scale,
      bias,
      image_ids=ids[0],
      text_ids=ids[1],
      axes=axes if mesh_shape else (),
      method=method,
      duplicates=duplicates,
      tile=tile,
    )

  if mesh_shape:
    data, fsdp = mesh_shape
    mesh = sharding.make_mesh(
      data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp]
    )
    arrays = P(axes), P(axes), P(), P()
    specs = arrays, tuple(P(axes) if here else None for here in known)
    run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P())
  return jax.jit(jax.value_and_grad(run))


def evaluate(
  kind,
  method,
  mesh_shape,
  arrays,
  *,
  duplicates="ignore",
  ids=(None, None),
  **options,
):
  """Returns (loss, gradients) of whole arrays on a mesh, or on one device."""
  known = tuple(x is not None for x in ids)
  run = compiled(kind, method, mesh_shape, duplicates, known, **options)
  return run(tuple(map(jnp.asarray, arrays)), ids)


def relative(got, want):
  """The largest difference against the largest number."""
  want = np.asarray(want, np.longdouble)
  difference = np.abs(np.asarray(got).astype(np.longdouble) - want).max()
  return float(difference / np.abs(want).max()) if difference else 0.0


class Toolbox:
  """Hands the functions of this file to the tests beside it."""

  dense = staticmethod(dense)
  evaluate = staticmethod(evaluate)
  make_ids = staticmethod(make_ids)
  make_pairs = staticmethod(make_pairs)
  relative = staticmethod(relative)
  pairs, embed = PAIRS, EMBED


@pytest.fixture(scope="session")
def tools():
  return Toolbox


@pytest.fixture(scope="module")
def tpu_compiler():
  """Skips without libtpu, which compiles for TPUs and needs none."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu, which compiles for TPUs, is not installed.")
  # Programs for devices that are not here cannot be read back from a cache.
  folder = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", folder)
  compilation_cache.reset_cache()
