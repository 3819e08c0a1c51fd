"""Whether a config can learn one batch by heart, and why it does not.

A model that cannot fit a few pairs will not fit millions. A loss that stays at
log(pairs), the loss of a model that takes every text for as likely, has a short
list of causes; each is looked for and the one found is named.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from clip_jax.doctor.finding import OK, PROBLEM, WARNING, Finding
from clip_jax.train import initial
from clip_jax.train import run as run_lib

DEFAULT_STEPS = 60
_PAIRS_PER_DEVICE = 16
_ENDLESS_STEPS = 10**6  # The learning rate stays at its peak.
_TIMED_BATCHES = 3

# Of what separates the first loss from its floor, the part that must be gone.
_LEARNED = 0.5
# Weights that moved by less, over their size, did not move.
_STILL = 1e-6
# Cosine between different inputs above which all look the same to a tower.
_COLLAPSED = 0.99


@dataclasses.dataclass(frozen=True)
class Trial:
  """What happened while one batch was learned by heart.

  Attributes:
    losses: one for each update, in nats.
    floor: the least loss that equal images and equal captions allow.
    pairs: in the batch.
    skipped: updates that were not finite.
    moved: change of the trained weights over their size.
    logit_scale: at the end.
    max_logit_scale: its bound; None without one.
    image_cosine: mean between embeddings of different images, at the end.
    text_cosine: the same of texts.
    distinct_images: in the batch.
    distinct_captions: in the batch.
    step_seconds: the fastest update.
    compile_seconds: of the first update.
    loader_seconds: of one batch of the same size, once the loader runs.
    workers_note: how the loader was set.
  """

  losses: list[float]
  floor: float
  pairs: int
  skipped: int
  moved: float
  logit_scale: float
  max_logit_scale: float | None
  image_cosine: float
  text_cosine: float
  distinct_images: int
  distinct_captions: int
  step_seconds: float
  compile_seconds: float
  loader_seconds: float
  workers_note: str


def small_config(
  config: ml_collections.ConfigDict, devices: int
) -> ml_collections.ConfigDict:
  """Returns `config` for one small batch at the full learning rate."""
  small = config.copy_and_resolve_references()
  small.batch_size = min(config.batch_size, _PAIRS_PER_DEVICE * devices)
  small.batch_size -= small.batch_size % devices
  small.micro_batches = 1
  small.steps, small.epochs = _ENDLESS_STEPS, None
  small.optim.warmup_steps = 0
  small.data.text_layout = "full"
  small.evals = ml_collections.ConfigDict()
  small.report = ""
  return small


def make_run(config: ml_collections.ConfigDict) -> tuple[run_lib.Run, Any]:
  """Returns the run of a small config, and its initial state."""
  small = small_config(config, jax.device_count())
  origins = initial.open_sources(small)
  if origins:
    small = initial.settle(small, None, origins)
  files = {}
  for origin in (origins.get("text"), origins.get("model")):
    files = origin.files if origin is not None else files
  run = run_lib.make_run(small, tokenizer_files=files or None)
  return run, initial.load(run.init_state(), origins, small)


def overfit(run: run_lib.Run, state: Any, *, steps: int) -> Trial:
  """Trains on one batch `steps` times, and times loader and updates."""
  with run.batches(0) as batches:
    batch = next(batches)
    start = time.perf_counter()
    for _ in range(_TIMED_BATCHES):
      next(batches)
    loader_seconds = (time.perf_counter() - start) / _TIMED_BATCHES
  step = run.make_step()
  before = jax.tree.map(np.asarray, state.params)
  placed = run.place(batch)
  losses, seconds = [], []
  for _ in range(steps):
    start = time.perf_counter()
    state, measured = step(state, placed)
    losses.append(float(measured.loss))
    seconds.append(time.perf_counter() - start)
  data = run.config.data
  return Trial(
    losses=losses,
    floor=_floor(batch),
    pairs=len(batch["image"]),
    skipped=int(state.skipped),
    moved=_change(before, state.params),
    logit_scale=float(measured.logit_scale),
    max_logit_scale=run.model.max_logit_scale,
    image_cosine=_cosine(
      run.encoder.embed_images(state.variables, batch["image"])
    ),
    text_cosine=_cosine(
      run.encoder.embed_tokens(state.variables, batch["tokens"])
    ),
    distinct_images=len(np.unique(_rows(batch["image"]), axis=0)),
    distinct_captions=len(np.unique(batch["tokens"], axis=0)),
    step_seconds=min(seconds[1:] or seconds),
    compile_seconds=seconds[0],
    loader_seconds=loader_seconds,
    workers_note=f"data.workers={data.workers}, data.threads={data.threads}",
  )


def _rows(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1)


def _floor(batch: dict[str, np.ndarray]) -> float:
  """Returns the least softmax loss where rows of a batch are the same.

  Among m equal captions, no model knows better than one in m.
  """
  logs = []
  for rows in (_rows(batch["image"]), batch["tokens"]):
    _, inverse, counts = np.unique(
      rows, axis=0, return_inverse=True, return_counts=True
    )
    logs.append(np.log(counts[inverse.ravel()]).mean())
  return float(np.mean(logs))


def _change(before: Any, after: Any) -> float:
  pairs = list(
    zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  )
  moved = sum(float(np.square(np.asarray(b) - a).sum()) for a, b in pairs)
  size = sum(float(np.square(a).sum()) for a, _ in pairs)
  return math.sqrt(moved / max(size, 1e-30))


def _cosine(embeds: np.ndarray) -> float:
  """Returns the mean cosine between different rows."""
  n = len(embeds)
  total = float(np.square(embeds.sum(axis=0)).sum())
  return (total - n) / max(n * (n - 1), 1)


def diagnose(trial: Trial, *, kind: str) -> Finding:
  """Says whether the batch was learned, and if not, what holds it.

  Args:
    trial: what happened.
    kind: of the loss.
  """
  first, last = trial.losses[0], trial.losses[-1]
  chance = math.log(trial.pairs)
  facts = {
    name: value
    for name, value in dataclasses.asdict(trial).items()
    if name != "losses"
  }
  facts |= {"first_loss": first, "last_loss": last, "log_pairs": chance}
  floor = trial.floor if kind == "softmax" else 0.0
  # A pretrained model may begin near the floor.
  goal = floor + (1 - _LEARNED) * max(first - floor, 0.0)
  near_floor = kind == "softmax" and last < floor + 0.1 * chance
  if not trial.skipped and (last <= goal or near_floor):
    return Finding(
      "overfit one batch",
      OK,
      f"{trial.pairs} pairs learned by heart: loss {first:.3f} to {last:.3f} "
      f"in {len(trial.losses)} updates.",
      facts,
    )
  why = next((cause for holds, cause in _causes(trial) if holds), None)
  stuck = kind == "softmax" and abs(last - chance) < 0.05 * chance
  where = f", that is log({trial.pairs})" if stuck else ""
  message = (
    f"After {len(trial.losses)} updates on the same {trial.pairs} pairs the "
    f"loss is {last:.3f}{where} (at first {first:.3f}). "
  )
  return Finding(
    "overfit one batch",
    PROBLEM if why or stuck else WARNING,
    message
    + (
      why
      or "No known cause was found; try ten times the optim.peak_lr and a "
      "tenth of it, and more --steps."
    ),
    facts,
  )


def _causes(trial: Trial) -> list[tuple[bool, str]]:
  """Returns the known causes in the order in which they hide each other."""
  bound = trial.max_logit_scale
  return [
    (
      trial.skipped > 0,
      f"{trial.skipped} updates were not finite and changed nothing: lower "
      "optim.peak_lr, or take precision=float32.",
    ),
    (
      trial.distinct_images == 1 and trial.pairs > 1,
      "All images of the batch are the same: look at the data's image column.",
    ),
    (
      trial.distinct_captions == 1 and trial.pairs > 1,
      "All captions of the batch are the same tokens: look at the data's "
      "caption column, and at the tokenizer.",
    ),
    (
      trial.moved < _STILL,
      f"The weights moved by {trial.moved:.1g} of their size: raise "
      "optim.peak_lr, and see that optim.frozen does not freeze what should "
      "learn.",
    ),
    (
      min(trial.image_cosine, trial.text_cosine) > _COLLAPSED,
      "Both towers give the same embedding for everything: the learning rate "
      "is too high; lower optim.peak_lr and warm up longer.",
    ),
    (
      trial.image_cosine > _COLLAPSED,
      "All images have the same embedding: lower optim.peak_lr; see that the "
      "images differ after preprocessing.",
    ),
    (
      trial.text_cosine > _COLLAPSED,
      "All captions have the same embedding: lower optim.peak_lr; see that "
      "captions differ and fit the context.",
    ),
    (
      bound is not None and trial.logit_scale >= 0.999 * bound,
      f"The logit scale is at its bound of {bound:g}: lower optim.peak_lr.",
    ),
  ]


def balance(trial: Trial) -> Finding:
  """Says whether the loader keeps up with the devices."""
  loader = trial.pairs / trial.loader_seconds
  step = trial.pairs / trial.step_seconds
  facts = {
    "loader_images_per_second": loader,
    "step_images_per_second": step,
    "pairs": trial.pairs,
  }
  words = f"The loader gives {loader:.0f} images/s, the step takes {step:.0f}"
  if loader < step:
    return Finding(
      "loader against step",
      WARNING,
      f"{words} ({trial.workers_note}): training will wait for data. Raise "
      "data.workers, store smaller images (`clip-jax data prepare`), or check "
      "the disk.",
      facts,
    )
  return Finding("loader against step", OK, f"{words}.", facts)
