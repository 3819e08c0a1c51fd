"""Runs a sequence of blocks, with rematerialisation or as a loop."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models import encoder, layers

# Where there are many blocks with large inputs, "nested" keeps only the inputs
# of groups of blocks, at the cost of a third forward pass.
NESTED = "nested"
REMAT_POLICIES = {
  **encoder.REMAT_POLICIES,
  NESTED: jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Chain:
  """Runs blocks and keeps for the backward pass what `remat` says.

  Attributes:
    remat: a name in `REMAT_POLICIES`.
    mode: keyword arguments of every block.
  """

  remat: str
  mode: dict[str, Any]

  @property
  def policy(self) -> Callable[..., bool]:
    """The policy of `jax.checkpoint` that decides which values are kept."""
    return layers.lookup("remat policy", self.remat, REMAT_POLICIES)

  def run(self, blocks: Sequence[nn.Module], x: jax.Array) -> jax.Array:
    """Runs `blocks` one after the other."""
    policy = self.policy
    size = self._group_size(len(blocks))
    for start in range(0, len(blocks), size):
      part = blocks[start : start + size]
      x = self._group(policy, len(part))(*part, x=x)
    return x

  def _group_size(self, count):
    if self.remat != NESTED:
      return count

    def kept(size):
      # The inputs of all groups, and of the blocks of one group. The former
      # also stay while the backward pass is in later stages, so of two equal
      # sums the one with fewer groups is better.
      groups = -(-count // size)
      return groups + size, groups

    return min(range(1, count + 1), key=kept)

  def _group(self, policy, size):
    def block(block, x):
      return block(x, **self.mode)

    if self.remat != "none":
      block = nn.remat(block, policy=policy)

    def group(*blocks, x):
      for one in blocks:
        x = block(one, x)
      return x

    if self.remat != NESTED or size == 1:
      return group
    return nn.remat(group, policy=policy)

  def loop(
    self,
    block: nn.Module,
    variables: Sequence[Any],
    x: jax.Array,
    *,
    gather: Callable[[Any], Any] | None = None,
  ) -> tuple[jax.Array, list[Any]]:
    """Runs a block with each of `variables`, one after the other, in a loop.

    Args:
      block: a module that is bound to no parent.
      variables: the variables of each block, of equal shapes; at least one.
      x: the input of the first block; every block returns an array of this
        shape.
      gather: gathers a block's variables from this device's parts.

    Returns:
      The output of the last block, and the new batch statistics of each block.
    """

    def turn(x, variables):
      if gather is not None:
        variables = gather(variables)
      x, updated = block.apply(
        variables, x, **self.mode, mutable=["batch_stats"]
      )
      return x, updated["batch_stats"]

    if self.remat != "none":
      # In a loop XLA cannot merge the recomputation with the first pass.
      turn = jax.checkpoint(turn, policy=self.policy, prevent_cse=False)

    def stacked(*leaves):
      # Kernels that are not split are copied in the compute type.
      kind = leaves[0].dtype
      if gather is None and leaves[0].ndim > 1:
        kind = block.dtype
      return jnp.stack([leaf.astype(kind) for leaf in leaves])

    def group(x, stack):
      return jax.lax.scan(turn, x, stack)

    count = len(variables)
    size = self._group_size(count)
    grouped = count - count % size
    stack = jax.tree.map(stacked, *variables)
    if self.remat != NESTED:
      x, stats = group(x, stack)
      return x, _unstack(stats, count)
    group = jax.checkpoint(group, policy=self.policy)
    x, stats = jax.lax.scan(
      group,
      x,
      jax.tree.map(
        lambda leaf: leaf[:grouped].reshape(-1, size, *leaf.shape[1:]), stack
      ),
    )
    stats = jax.tree.map(
      lambda leaf: leaf.reshape(grouped, *leaf.shape[2:]), stats
    )
    done = _unstack(stats, grouped)
    if grouped < count:
      x, stats = group(x, jax.tree.map(lambda leaf: leaf[grouped:], stack))
      done += _unstack(stats, count - grouped)
    return x, done


def _unstack(stack: Any, count: int) -> list[Any]:
  leaves, tree = jax.tree.flatten(stack)
  return [tree.unflatten([leaf[i] for leaf in leaves]) for i in range(count)]
