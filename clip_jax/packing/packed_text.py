"""Packed text: several captions in one row of tokens, with little padding.

In a causal tower that is read at the end of each text, captions in a row do
not influence each other if attention is masked to each caption and positions
are counted from zero in each. The features are then the same as with one
caption in each row, and hardly any padding is computed.
"""

import flax.struct
import jax
import jax.numpy as jnp

from clip_jax import errors


@flax.struct.dataclass
class PackedText:
  """Captions that share rows.

  If a batch is split into groups (devices, micro-batches), every group has its
  own rows, the same number in each; the arrays hold group after group, so that
  splitting their first axis evenly splits the groups.

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
  """Returns the attention mask that keeps each caption to itself.

  Padding sees padding, so that no row of the softmax is empty. Later tokens of
  a caption are not masked here; the causal mask does that.

  Args:
    segments: (rows, length).

  Returns:
    bool (rows, queries, length), True where a query sees a token.
  """
  return segments[:, :, None] == segments[:, None, :]


def read(x: jax.Array, ends: jax.Array) -> jax.Array:
  """Returns the features (captions, width) of x (rows, length, width)."""
  return jnp.take(x.reshape(-1, x.shape[-1]), ends, axis=0)


def check(packed: PackedText) -> None:
  """Raises UserError if the arrays' shapes do not match."""
  tokens, ends = packed.tokens.shape, packed.ends.shape
  others = (packed.segments.shape, packed.positions.shape)
  if len(tokens) != 2 or others != (tokens, tokens) or len(ends) != 1:
    raise errors.UserError(
      "Packed text needs tokens, segments and positions (rows, length) and "
      f"ends (captions,); got {tokens}, {others[0]}, {others[1]} and {ends}."
    )


def refusal() -> errors.UserError:
  """Returns the error for a tower that cannot read packed text."""
  return errors.UserError(
    "This text tower got packed text, which only towers that are causal and "
    "read at the end of text can read; give it tokens (batch, length) "
    "(data.text_layout=auto does)."
  )
