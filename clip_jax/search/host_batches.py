"""The batches of an index that several hosts embed together.

Each host reads, decodes and embeds whole batches, on its own devices: of n
hosts, host i has every n-th batch from the i-th of those that are left. So each
batch is computed as a single host would compute it, to the last bit. What comes
of it goes to process 0, which alone writes the index, in the order of the data:
its files, and what it keeps where it is stopped, know nothing of hosts. All
wait for each other at each batch, while each reads some batches ahead.

An error in reading is exchanged, too: all processes raise it together.
"""

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from clip_jax import errors, hosts
from clip_jax.data.ledger import Problem

_FACTS = ("key", "texts", "path", "problems")


def embedded(
  open_own: Callable[[int, int], Generator[dict[str, Any]]],
  embed_images: Callable[[np.ndarray], np.ndarray],
  *,
  start: int,
  count: int,
) -> Generator[dict[str, Any]]:
  """Embeds batches with the other processes; all of them must call this.

  On process 0 it yields all of them in order, with their embeddings as `image`;
  on the others it yields nothing, and ends when all is embedded.

  Args:
    open_own: called with two numbers: of the first of this process's batches,
      and how much larger that of each next one is.
    embed_images: uint8 (n, size, size, 3) to unit (n, embed), on devices of
      this process.
    start: the number of the first batch; that of process 0 counts.
    count: the number of all batches.

  Raises:
    UserError: a process cannot read its data; on all the same.
  """
  start = int(hosts.exchanged(str(start))[0])
  processes = jax.process_count()
  first = start + jax.process_index()
  with contextlib.closing(open_own(first, processes)) as own:
    for _ in range(start, count, processes):
      head, facts, embeds = _embed_next(own, embed_images)
      texts = hosts.exchanged(f"{json.dumps(head)}\n{json.dumps(facts)}")
      parts = [text.split("\n") for text in texts]
      heads = [json.loads(part[0]) for part in parts]
      hosts.raise_problems([head["problem"] for head in heads])
      shapes = [head["shape"] for head in heads]
      arrays = _exchanged_embeds(embeds, shapes)
      if jax.process_index():  # Only the first one writes.
        continue
      for head, part, rows in zip(heads, parts, arrays, strict=True):
        if head["more"]:
          yield _batch(json.loads(part[1]), rows)


def _embed_next(
  own: Iterator[dict[str, Any]],
  embed_images: Callable[[np.ndarray], np.ndarray],
) -> tuple[dict[str, Any], list, np.ndarray]:
  """Returns the message about this process's next batch, and its embeddings.

  The message is a head, which all processes read, and facts for the first one.
  """
  head = {"problem": "", "more": False, "shape": [0, 0]}
  nothing = np.zeros((0, 0), np.float32)
  try:
    batch = next(own, None)
  except errors.UserError as error:
    return {**head, "problem": str(error)}, [], nothing
  if batch is None:
    return head, [], nothing
  embeds = np.asarray(embed_images(batch["image"]), np.float32)
  head |= {"more": True, "shape": embeds.shape}
  return head, [batch[name] for name in _FACTS], embeds


def _exchanged_embeds(
  embeds: np.ndarray, shapes: list[list[int]]
) -> list[np.ndarray]:
  """Returns the embeddings (n, embed) of each process, of these shapes."""
  rows, embed_dim = np.max(shapes, axis=0)
  if not rows:
    return [np.zeros(shape, np.float32) for shape in shapes]
  # Few different sizes, because each one compiles a program.
  size = 1 << int(rows - 1).bit_length()
  padded = np.zeros((size, embed_dim), np.float32)
  padded[: len(embeds), : embeds.shape[1]] = embeds
  return [
    whole[:rows]
    for whole, (rows, _) in zip(hosts.gathered(padded), shapes, strict=True)
  ]


def _batch(facts: list, embeds: np.ndarray) -> dict[str, Any]:
  batch = dict(zip(_FACTS, facts, strict=True))
  batch["texts"] = [tuple(texts) for texts in batch["texts"]]
  batch["problems"] = [Problem(*problem) for problem in batch["problems"]]
  return {**batch, "image": embeds}
