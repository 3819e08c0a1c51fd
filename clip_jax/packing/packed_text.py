"""Several captions in one row of tokens: text without padding.

In a causal tower that is read at the end of the text, captions that share a
row cannot see each other once attention stays within them and each counts its
positions from zero. The features are then those of one caption a row, and
there is next to no padding to compute.
"""

import flax.struct
import jax
import jax.numpy as jnp

from clip_jax import errors


@flax.struct.dataclass
class PackedText:
  """Captions that share rows.

  Where a batch is split into groups (devices, micro-batches), every group has
  rows of its own and as many of them; the arrays hold group after group, so
  that splitting them by their first axis splits the groups.

  Attributes:
    tokens: int32 (rows, length).
    segments: int32 (rows, length), which caption of its row a token belongs
      to: 1, 2 and so on; 0 is padding.
    positions: int32 (rows, length), counted from 0 in every caption.
    ends: int32 (captions,), where each caption is read: the index into its
      group's (rows * length) tokens.
  """

  tokens: jax.Array
  segments: jax.Array
  positions: jax.Array
  ends: jax.Array


def visible(segments: jax.Array) -> jax.Array:
  """Returns which tokens see which: those of their caption, themselves too.

  Padding sees padding, so that no row of the softmax is empty. What comes
  later is for the causal mask to hide.

  Args:
    segments: (rows, length).

  Returns:
    bools (rows, queries, length).
  """
  return segments[:, :, None] == segments[:, None, :]


def read(x: jax.Array, ends: jax.Array) -> jax.Array:
  """Returns the features (captions, width) of x (rows, length, width)."""
  return jnp.take(x.reshape(-1, x.shape[-1]), ends, axis=0)


def check(packed: PackedText) -> None:
  """Raises UserError unless the arrays belong together."""
  tokens, ends = packed.tokens.shape, packed.ends.shape
  others = (packed.segments.shape, packed.positions.shape)
  if len(tokens) != 2 or others != (tokens, tokens) or len(ends) != 1:
    raise errors.UserError(
      "Packed text needs tokens, segments and positions (rows, length) and "
      f"ends (captions,); got {tokens}, {others[0]}, {others[1]} and {ends}."
    )


def refusal() -> errors.UserError:
  """Returns the error of a tower that cannot read packed text."""
  return errors.UserError(
    "This text tower got packed text, which only towers that are causal and "
    "read at the end of text can read; give it tokens (batch, length) "
    "(data.text_layout=auto does)."
  )
