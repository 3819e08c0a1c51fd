"""The verb `embed`, on one host or on several."""

import argparse
import collections
import contextlib
import functools
import json
import math
import shlex
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from clip_jax import (
  host_memory,
  hosts,
  inference,
  loading,
  shared_batches,
  terminal,
)
from clip_jax import search as search_lib
from clip_jax.cli import verb
from clip_jax.cli.commands import joining
from clip_jax.data import account, pipeline, sources
from clip_jax.data import record as record_lib
from clip_jax.evals import reading
from clip_jax.search import host_batches


def embed(arguments: argparse.Namespace) -> verb.Answer:
  """Makes an index of the images of some data."""
  host_memory.keep_freed()
  with joining.joined_processes(arguments):
    # Paths are in the index, so that all hosts have to call the data alike.
    joining.check_same_command(arguments, also=("data",))
    if jax.process_index() == 0:
      search_lib.check_replaceable(arguments.out)
    clip = loading.load(arguments.model, devices=_own_devices())
    clip = clip.with_max_pixels(arguments.max_pixels)
    clip.needed_preprocess()
    clip.check_embeds()
    hosts.check_same({"model": clip.fingerprint})
    source = sources.open_source(arguments.data, with_texts=False)
    shared_batches.check_same(source)
    if jax.process_index():
      _help(arguments, clip, source)
      said = {}
    else:
      said = _write(arguments, clip, source)
    # The others wait here until the first one has written all.
    said = json.loads(hosts.exchanged(json.dumps(said))[0])
  left_out = _left_out(said["bad_records"], arguments.data)
  return verb.Answer(
    said,
    f"Embedded {terminal.counted(said['count'], 'image')} into {said['out']}"
    f"{left_out}.",
  )


def _left_out(bad: dict[str, int], data: str) -> str:
  """Returns how many records of which kind are not in the index."""
  if not bad:
    return ""
  count = sum(bad.values())
  return (
    f", {count} bad record{'s' * (count != 1)} left out "
    f"({terminal.counts(bad)}); `clip-jax data inspect {shlex.quote(data)}` "
    "names them"
  )


def _own_devices() -> list[Any] | None:
  """Returns this host's devices, where others have some, too."""
  # Not all devices together: batches would be cut by the number of hosts.
  return jax.local_devices() if jax.process_count() > 1 else None


def _write(
  arguments: argparse.Namespace,
  clip: inference.Clip,
  source: record_lib.Source,
) -> dict[str, Any]:
  """Writes the index, with the others' help if there are any."""
  warnings = account.tell(source, arguments.data)
  search_lib.tell_replaced(
    arguments.out, fingerprint=clip.fingerprint, data=arguments.data
  )
  bad = collections.Counter()
  size, total = arguments.batch_size, len(source)
  alone = jax.process_count() == 1
  with terminal.Progress("embed") as progress:

    def batches(start: int) -> Generator[dict[str, Any]]:
      read = _read if alone else _read_together
      with contextlib.closing(read(arguments, clip, source, start)) as found:
        yield from reading.watch(
          found,
          bad,
          total=total,
          done=min(start * size, total),
          progress=progress,
        )

    meta = search_lib.build(
      arguments.out,
      batches=batches,
      # What was read together is embedded.
      embed_images=clip.embed_images if alone else np.asarray,
      model=clip.path,
      fingerprint=clip.fingerprint,
      dtype=arguments.dtype,
      goes_on_as=f"{clip.fingerprint} {source.fingerprint} {size} "
      f"{arguments.max_pixels}",
      counts=bad,
      facts={"step": clip.step, "data": arguments.data, "bad_records": bad},
    )
  return {"out": arguments.out, **meta, "warnings": warnings}


def _help(
  arguments: argparse.Namespace,
  clip: inference.Clip,
  source: record_lib.Source,
) -> None:
  """Embeds this process's batches for the first one."""
  for _ in _read_together(arguments, clip, source):
    raise AssertionError


def _read(
  arguments: argparse.Namespace,
  clip: inference.Clip,
  source: record_lib.Source,
  start: int = 0,
  step: int = 1,
) -> Generator[dict[str, Any]]:
  """Yields every `step`-th batch of the data from `start` on."""
  with pipeline.eval_batches(
    source,
    batch_size=arguments.batch_size,
    preprocess=clip.needed_preprocess(),
    threads=arguments.threads,
    start=start,
    step=step,
  ) as read:
    yield from read


def _read_together(
  arguments: argparse.Namespace,
  clip: inference.Clip,
  source: record_lib.Source,
  start: int = 0,
) -> Generator[dict[str, Any]]:
  """Yields, on process 0, all batches from its `start` on, embedded."""
  return host_batches.embedded(
    functools.partial(_read, arguments, clip, source),
    clip.embed_images,
    start=start,
    count=math.ceil(len(source) / arguments.batch_size),
  )
