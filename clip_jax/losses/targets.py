"""Which pairs (image, text) are positives, negatives or neither.

A web-scale batch holds the same image or the same caption more than once.
Taken as negatives, these copies push apart what belongs together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from clip_jax import names
from clip_jax.packing import packed_text

# "ignore": a copy counts as a negative. "mask": it is left out. "positive": it
# counts as a positive; the own text and all copies share the target.
DUPLICATES = names.DUPLICATES


class Relations(NamedTuple):
  """The kinds of the logits in a tile.

  Attributes:
    excluded: bool (rows, columns), True for logits that are not in the sums
      over others: own pairs, masked copies, and padding; None if there cannot
      be any.
    copies: bool (rows, columns), True for other positives; None if there cannot
      be any.
  """

  excluded: jax.Array | None
  copies: jax.Array | None


def relations(
  rows: dict[str, jax.Array],
  columns: dict[str, jax.Array],
  *,
  duplicates: str,
  padded: bool,
) -> Relations:
  """Returns the kinds of a tile's logits.

  Args:
    rows: "index" int32 (rows,), the position in the global batch, -1 for
      padding; "image_ids" and "text_ids" int32 (rows,), if they are known.
    columns: the same for the columns; without "index" there is no padding and
      no own pair among them.
    duplicates: a name in `DUPLICATES`.
    padded: whether there can be padding.
  """

  def equal(name):
    return rows[name][:, None] == columns[name]

  excluded = None
  if "index" in columns:
    excluded = equal("index")
    if padded:
      excluded |= (rows["index"] < 0)[:, None] | (columns["index"] < 0)
  names = [name for name in ("image_ids", "text_ids") if name in rows]
  if duplicates == "ignore" or not names:
    return Relations(excluded, None)
  same = equal(names[0])
  for name in names[1:]:
    same |= equal(name)
  if duplicates == "mask":
    return Relations(same if excluded is None else same | excluded, None)
  return Relations(excluded, same if excluded is None else same & ~excluded)


def without(relations: Relations, x: jax.Array, fill: float = 0) -> jax.Array:
  """Returns `x` (rows, columns) with excluded logits replaced by `fill`."""
  if relations.excluded is None:
    return x
  return jnp.where(relations.excluded, fill, x)


def text_ids(tokens: jax.Array | packed_text.PackedText) -> jax.Array:
  """Returns a number for each text, equal for equal texts.

  It is the sum of a hash of each (token, position), modulo 2**32. Two different
  texts have the same number with a probability of about 2**-32: with 32,768
  different texts one batch in eight has such a pair (32768**2 / 2**33 = 1/8),
  and a million texts have about 128 of them, of 5e11 pairs. Each costs two
  negatives, or makes two false positives.

  Args:
    tokens: int (texts, length), all padded in the same way; or packed captions
      of one group (a device's micro-batch).

  Returns:
    int32 (texts,).
  """
  if isinstance(tokens, packed_text.PackedText):
    parts = _mix_pairs(tokens.tokens, tokens.positions).reshape(-1)
    # Differences of sums are exact although the sums wrap around.
    sums = jnp.cumsum(parts, dtype=jnp.uint32)
    first = tokens.ends - tokens.positions.reshape(-1)[tokens.ends]
    sums = sums[tokens.ends] - sums[first] + parts[first]
  else:
    parts = _mix_pairs(tokens, jnp.arange(tokens.shape[1]))
    sums = parts.sum(axis=1, dtype=jnp.uint32)
  return jax.lax.bitcast_convert_type(_mix(sums), jnp.int32)


def _mix_pairs(tokens: jax.Array, positions: jax.Array) -> jax.Array:
  """Returns a pseudo-random number for each (token, position)."""
  # 2**32 divided by the golden ratio: an odd number without a pattern.
  tokens = _mix(tokens.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
  return _mix(tokens ^ (positions.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)))


def _mix(x: jax.Array) -> jax.Array:
  """Finalizer of MurmurHash3 (Appleby, public domain), on uint32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
