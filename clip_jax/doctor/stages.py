"""Times each stage of loading by itself, on one core."""

import time
from typing import Any

import jax
import numpy as np

from clip_jax import preprocess as preprocess_lib
from clip_jax.data import elements, order
from clip_jax.data import record as record_lib
from clip_jax.train import run as run_lib

LOADING: tuple[str, ...] = ("read", "decode", "resize", "tokens")
_EXAMPLES = 128
_PATIENCE_SECONDS = 5.0
_PLACED = 5  # Times that a batch is brought to the devices.


def of_loading(run: run_lib.Run) -> dict[str, float]:
  """Returns the seconds that an example takes in each stage of `LOADING`.

  The examples are those at the end of the first epoch, which the timing of the
  loader has not brought into memory. Bad records are left out.

  Args:
    run: whose data, tokenizer and preprocessing are timed.
  """
  slots = order.of(run.source, run.program.config.seed)
  last = len(run.source) - 1
  spent = dict.fromkeys(LOADING, 0.0)
  began, made = time.perf_counter(), 0
  for g in range(last, max(last - _EXAMPLES, -1), -1):
    try:
      passed = _of_example(run, slots.slot(g), g)
    except (record_lib.BadRecord, preprocess_lib.ImageError):
      continue
    made += 1
    for name, seconds in passed.items():
      spent[name] += seconds
    if time.perf_counter() - began > _PATIENCE_SECONDS:
      break
  return {name: seconds / max(made, 1) for name, seconds in spent.items()}


def _of_example(run: run_lib.Run, slot: int, g: int) -> dict[str, float]:
  config = run.program.config
  rng = order.generator(config.seed, g)
  clock = [time.perf_counter()]
  record = run.source[slot]
  clock.append(time.perf_counter())
  image = preprocess_lib.decode(record.image, limits=run.preprocess.limits)
  clock.append(time.perf_counter())
  preprocess_lib.train_image(
    image,
    run.preprocess,
    rng=rng,
    resize_ratio=config.data.resize_ratio,
    augment=config.augment,
  )
  clock.append(time.perf_counter())
  text = elements.choose_text(record, rng=rng, caption=config.data.caption)
  run.tokenizer([text])
  clock.append(time.perf_counter())
  return dict(zip(LOADING, np.diff(clock).tolist(), strict=True))


def of_transfer(run: run_lib.Run, batch: dict[str, Any]) -> float:
  """Returns the least seconds in which a batch reached the devices."""
  times = []
  for _ in range(_PLACED):
    start = time.perf_counter()
    jax.block_until_ready(run.place(batch))
    times.append(time.perf_counter() - start)
  return min(times)
