"""Checks that a checkpoint is read as it was saved: digests and shapes."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clip_jax import errors, sharding

_WORDS_AT_ONCE = 2**22  # On the host: 16 MB, several times.
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@jax.jit
def _digest_tree(tree: Any) -> Any:
  """Returns two checksums, uint32 (2,), of each array in `tree`.

  They are the sum of all 32-bit words and their sum with odd weights by
  position, modulo 2**32. Integer sums are exact in any order, so the checksums
  do not depend on how an array is split over devices.
  """

  def digest(x):
    kind = _WORDS[x.dtype.itemsize]
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.uint8)
    words = lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    position = lax.iota(jnp.uint32, max(words.size, 1))[: words.size]
    weights = position.reshape(words.shape) * jnp.uint32(2654435761) | 1
    plain = words.sum(dtype=jnp.uint32)
    return jnp.stack([plain, (words * weights).sum(dtype=jnp.uint32)])

  return jax.tree.map(digest, tree)


def _digest_on_host(x: np.ndarray) -> np.ndarray:
  """Returns the checksums of one array as `_digest_tree`, without compiling."""
  x = np.ascontiguousarray(x)
  kind = np.dtype(f"<u{min(x.dtype.itemsize, 4)}")
  words = x.reshape(-1).view(kind)
  plain, weighted = np.uint32(0), np.uint32(0)
  with np.errstate(over="ignore"):
    for start in range(0, len(words), _WORDS_AT_ONCE):
      part = words[start : start + _WORDS_AT_ONCE].astype(np.uint32, copy=False)
      position = np.arange(start, start + len(part), dtype=np.uint32)
      weights = position * np.uint32(2654435761) | np.uint32(1)
      plain += part.sum(dtype=np.uint32)
      weighted += (part * weights).sum(dtype=np.uint32)
  return np.array([plain, weighted], np.uint32)


def _is_on_host(x: Any) -> bool:
  if not isinstance(x, jax.Array):
    return True
  on_cpu = all(device.platform == "cpu" for device in x.devices())
  return on_cpu and x.is_fully_addressable and x.is_fully_replicated


def digests(tree: Any) -> dict[str, list[int]]:
  """Returns {path: two checksums} of the arrays in `tree`."""
  if all(map(_is_on_host, jax.tree.leaves(tree))):
    checksums = jax.tree.map(lambda x: _digest_on_host(np.asarray(x)), tree)
  else:
    checksums = _digest_tree(tree)
  leaves = jax.tree_util.tree_leaves_with_path(checksums)
  return {
    sharding.path_name(path): np.asarray(leaf).tolist() for path, leaf in leaves
  }


def fingerprint(tree: Any) -> str:
  """Returns a digest of all arrays in `tree` and of their paths."""
  text = json.dumps(digests(tree), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_digests(tree: Any, saved: dict[str, list[int]]) -> None:
  """Raises ValueError if arrays differ from the saved ones, and names one."""
  got = digests(tree)
  damaged = sorted(path for path in got if got[path] != saved.get(path))
  if damaged:
    raise ValueError(f"{len(damaged)} damaged arrays, first {damaged[0]}")


def shapes(tree: Any) -> dict[str, str]:
  """Returns {path: type and shape, as "float32(3, 5)"} of the arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    sharding.path_name(path): f"{leaf.dtype}{tuple(leaf.shape)}"
    for path, leaf in leaves
  }


def abstract(shapes: dict[str, str]) -> dict[str, Any]:
  """Returns the inverse of `shapes`: a tree of shapes, nested by names."""
  tree: dict[str, Any] = {}
  for path, text in shapes.items():
    *outer, name = path.split("/")
    node = tree
    for key in outer:
      node = node.setdefault(key, {})
    dtype, _, sides = text.rstrip(",)").partition("(")
    shape = [int(side) for side in sides.split(",") if side.strip()]
    node[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  return tree


def check_shapes(
  tree: Any, saved: dict[str, str], *, step: int, has_model: bool
) -> None:
  """Raises UserError if checkpoint `step` has other shapes than `tree`.

  Args:
    tree: arrays or shapes.
    saved: the result of `shapes` for the saved arrays.
    step: the checkpoint's step.
    has_model: whether `tree` is the item `variables`; False for `progress`.
  """
  wanted = shapes(tree)
  if wanted == saved:
    return
  missing = sorted(wanted.keys() - saved.keys())[:3]
  unexpected = sorted(saved.keys() - wanted.keys())[:3]
  other = [
    f"{path} {saved[path]} instead of {wanted[path]}"
    for path in sorted(wanted.keys() & saved.keys())
    if wanted[path] != saved[path]
  ][:3]
  what, then = "another model", "Use a new workdir for another model."
  if not has_model:
    what = "the state of another optimizer"
    then = "Take optim.name and optim.ema_decay as they were"
    if not all(x.startswith("opt_state") for x in missing + unexpected + other):
      what = "a run with other averages"
    then += ", or begin a new workdir with --config.init.model=OLD_WORKDIR."
  raise errors.UserError(
    f"Checkpoint {step} holds {what}: missing {missing}, unexpected "
    f"{unexpected}, of another shape {other}. {then}"
  )
