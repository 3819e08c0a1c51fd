"""The reference losses in float64, and one way to run ours."""

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


def copies(ids, pairs):
  """The pairs (i, j), i != j, with an equal id."""
  same = np.zeros((pairs, pairs), bool)
  for x in ids:
    if x is not None:
      same |= x[:, None] == x[None]
  return same & ~np.eye(pairs, dtype=bool)


@functools.partial(jax.jit, static_argnums=0)
def _reference(kind, arrays, others, copies):
  def loss(images, texts, scale, bias):
    bias = (bias,) if kind in losses.BIASED_KINDS else ()
    function = getattr(losses.reference, kind)
    return function(images, texts, scale, *bias, others=others, copies=copies)

  return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays)


def dense(kind, arrays, *, duplicates="ignore", ids=(None, None)):
  """Returns the reference's (loss, gradients of images, texts, scale, bias).

  In float64, whatever the arrays' type.
  """
  same = copies(ids, len(arrays[0]))
  others = ~np.eye(len(same), dtype=bool)
  if duplicates == "mask":
    others &= ~same
  if duplicates != "positive":
    same[:] = False
  with jax.enable_x64(True):
    wide = tuple(np.asarray(x, np.float64) for x in arrays)
    loss, gradients = _reference(kind, wide, others, same)
    return np.asarray(loss), tuple(map(np.asarray, gradients))


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
  want = np.asarray(want, np.float64)
  difference = np.abs(np.asarray(got).astype(np.float64) - want).max()
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
