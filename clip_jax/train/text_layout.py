"""The layout of a run's captions in memory: packed, in short rows, or padded.

If the padding after the end of a text changes nothing, it need not be computed.
Shapes are static: a batch is padded to the smallest of a few sizes, the
buckets, that holds it. It is the same bucket on every process, and each bucket
is compiled once. The bucket depends only on the batch, so a resumed run uses
the same ones.
"""

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import errors, sharding
from clip_jax.data import order, pipeline, sources
from clip_jax.models import padding
from clip_jax.packing import packed_text, placement

_LOGGER = logging.getLogger(__name__)

# The number of captions that are sampled of a source. With the variance of CC3M
# this gives their mean length to 2 %, for which the buckets leave room.
SAMPLED_CAPTIONS = 512


class TextLayout(Protocol):
  """Arranges the tokens of a batch."""

  @property
  def buckets(self) -> tuple[int, ...]:
    """The possible sizes, in ascending order; the last always suffices."""
    ...

  def arrange(self, tokens: np.ndarray) -> "Arranged":
    """Begins with this process's rows of a batch (captions, context)."""
    ...

  def describe(self, bucket: int) -> str:
    """Returns a bucket in words."""
    ...


@dataclasses.dataclass(frozen=True)
class Arranged:
  """A batch's tokens before their padded size is chosen.

  Attributes:
    need: the smallest size that holds the tokens.
    make: a function from a bucket to the tokens as the model takes them.
  """

  need: int
  make: Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Rows:
  """One caption per row, cut to one of a few lengths.

  Attributes:
    tower: the text tower.
    buckets: lengths, in tokens.
  """

  tower: nn.Module
  buckets: tuple[int, ...]

  def arrange(self, tokens: np.ndarray) -> Arranged:
    """Begins with this process's rows of a batch (captions, context)."""
    need = padding.needed_length(self.tower, tokens)
    return Arranged(need, lambda bucket: tokens[:, :bucket])

  def describe(self, bucket: int) -> str:
    """Returns a bucket in words."""
    return f"a row of {bucket} tokens for each caption"


@dataclasses.dataclass(frozen=True)
class Packed:
  """Several captions per row; captions of the same group share rows.

  Attributes:
    tower: the text tower.
    captions: the number of captions in a group, which is what a device
      processes at a time.
    length: the length of a row, in tokens.
    buckets: the possible numbers of rows of a group.
  """

  tower: nn.Module
  captions: int
  length: int
  buckets: tuple[int, ...]

  def arrange(self, tokens: np.ndarray) -> Arranged:
    """Begins with this process's rows of a batch (captions, context)."""
    placed = placement.place(
      padding.needed_lengths(self.tower, tokens),
      groups=len(tokens) // self.captions,
      length=self.length,
    )
    arrays_of: Any = packed_text.PackedText  # Of numpy's, still on the host.
    return Arranged(
      placed.rows, lambda bucket: arrays_of(**placed.pack(tokens, rows=bucket))
    )

  def describe(self, bucket: int) -> str:
    """Returns a bucket in words."""
    return f"{bucket} rows of {self.length} tokens for {self.captions} captions"


def make_layout(
  name: str,
  *,
  tower: nn.Module,
  captions: int,
  groups: int,
  sample: Callable[[], np.ndarray],
  packs: bool = True,
) -> TextLayout:
  """Returns the layout that `config.data.text_layout` names.

  "auto" packs captions if that is exact and takes fewer tokens; else it uses
  short rows if they are exact, and rows of the full length otherwise.

  Args:
    name: "auto", "packed", "buckets" or "full".
    tower: the text tower.
    captions: the number of captions that a device processes at a time.
    groups: the number of such groups in the global batch.
    sample: returns the lengths of some captions; called only for packing.
    packs: whether every module that reads captions can read packed ones.

  Raises:
    UserError: the layout would change the tower's output.
  """
  context = tower.context_length
  packs = packs and padding.can_be_packed(tower)
  if name in ("auto", "packed") and packs:
    length, lengths = placement.row_length(context), sample()
    buckets = placement.row_buckets(
      lengths, captions=captions, groups=groups, length=length
    )
    alone = context  # The row of a caption that shares none.
    if padding.can_be_cut(tower):
      alone = next(x for x in padding.buckets(context) if x >= max(lengths))
    if name == "packed" or buckets[0] * length < captions * alone:
      return Packed(tower, captions, length, buckets)
  if name in ("auto", "buckets") and padding.can_be_cut(tower):
    return Rows(tower, padding.buckets(context))
  if name in ("auto", "full"):
    return Rows(tower, (context,))
  exact = "buckets" if padding.can_be_cut(tower) else "full"
  raise errors.UserError(
    f"data.text_layout={name!r} is not exact for this model: its text tower "
    f"{_why_not(tower)}. Take {exact!r}, or 'auto', which takes an exact one."
  )


def _why_not(tower: nn.Module) -> str:
  """Returns why a tower cannot read packed or shorter rows."""
  if getattr(tower, "sees_padding", False):
    return (
      f"(causal={tower.causal}, pooling={tower.pooling!r}) sees what follows "
      "the end of a text"
    )
  if padding.can_be_packed(tower):
    return "is not alone: captions are predicted too, each in a row of its own"
  return f"({type(tower).__name__}) takes every caption in a row of its own"


def sample_lengths(
  source: sources.Source,
  *,
  tower: nn.Module,
  tokenizer: Callable[[list[str]], np.ndarray],
  **options: Any,
) -> np.ndarray:
  """Returns the number of tokens that a run's first captions need, (captions,).

  They are the captions of the run's first examples, even if it is resumed.

  Args:
    source: the source of the pairs.
    tower: the text tower.
    tokenizer: a function of a list of captions.
    **options: keyword arguments of `order.first_captions`.
  """
  found = order.first_captions(source, number=SAMPLED_CAPTIONS, **options)
  if not found:  # Whoever reads the batches says what is wrong.
    return np.full(1, tower.context_length)
  return padding.needed_lengths(tower, tokenizer(found))


@functools.cache
def _maximum(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))


def largest(need: int, mesh: jax.sharding.Mesh) -> int | jax.Array:
  """Returns the largest `need` of all processes; each process must call this.

  With several processes it is computed on the devices, after the programs that
  they were given before, and the host does not wait for it here.
  """
  if jax.process_count() == 1:
    return need
  needs = jax.make_array_from_callback(
    (mesh.size,),
    sharding.batch_sharding(mesh),
    lambda _: np.full(1, need, np.int32),
  )
  return _maximum(mesh)(needs)


class Batches(Iterator[dict]):
  """Batches with arranged tokens; a context manager, as the batches within.

  With several processes each batch is loaded one step early, so that the
  processes agree on its bucket while the devices compute. Take batches and run
  updates from one thread, because both use collectives.
  """

  def __init__(
    self,
    batches: pipeline.Batches,
    layout: TextLayout,
    mesh: jax.sharding.Mesh,
  ):
    self._batches = batches
    self._layout = layout
    self._mesh = mesh
    self._ahead = int(jax.process_count() > 1)
    self._ready: collections.deque[tuple] = collections.deque()
    self._used: set[int] = set()

  def __next__(self) -> dict:
    while len(self._ready) <= self._ahead:
      batch = next(self._batches)
      arranged = self._layout.arrange(batch["tokens"])
      need = arranged.need
      if len(self._layout.buckets) > 1:
        need = largest(need, self._mesh)
      self._ready.append((batch, arranged, need))
    batch, arranged, need = self._ready.popleft()
    bucket = next(
      bucket for bucket in self._layout.buckets if bucket >= int(need)
    )
    self._note(bucket)
    return {**batch, "tokens": arranged.make(bucket)}

  def _note(self, bucket: int) -> None:
    """Logs why the step is compiled again."""
    if self._used and bucket not in self._used and jax.process_index() == 0:
      _LOGGER.info(
        "Longer captions, in %s: the step is compiled again, once for these.",
        self._layout.describe(bucket),
      )
    self._used.add(bucket)

  def close(self) -> None:
    """Stops loading ahead; the iterator cannot be used afterwards."""
    self._batches.close()

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
