"""Overfits a config on one batch.

A model that cannot fit a few pairs will not fit millions. `diagnosis` reads the
result.
"""

import dataclasses
import logging
import math
import time
from typing import Any

import jax
import numpy as np

from clip_jax import config as config_lib
from clip_jax import errors, sharding, terminal
from clip_jax.doctor import stages
from clip_jax.doctor.least_loss import least_loss
from clip_jax.models import padding
from clip_jax.train import origins as origins_lib
from clip_jax.train import run as run_lib
from clip_jax.train import text_layout

_LOGGER = logging.getLogger(__name__)

_PAIRS_PER_DEVICE = 16
_ENDLESS_STEPS = 10**6  # The learning rate stays at its peak.

# A loader is timed for so long, unless one so slow has been timed enough.
_TIMED_SECONDS = 2.0
_PATIENCE_SECONDS = 20.0
_PREFETCH = 4  # Parts of batches that `pipeline.train_batches` makes ahead.


@dataclasses.dataclass(frozen=True)
class Setup:
  """A config made small.

  Attributes:
    run: of the small config.
    state: that it begins with.
    mesh_refusal: why the config's mesh was replaced; None if it was not.
    workers: loader processes of the whole config; the small one has none.
  """

  run: run_lib.Run
  state: Any
  mesh_refusal: str | None
  workers: int


@dataclasses.dataclass(frozen=True)
class Trial:
  """The measurements of learning one batch by heart.

  Attributes:
    losses: one for each update, in nats.
    floor: the least loss that equal images and equal captions allow.
    chance: the least loss of a model that gives all pairs the same embedding.
    accuracy: share of images and texts that find their own, at the end.
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
    loader_seconds: of one batch of the same size, made by one process.
    part_seconds: of one example in each stage of `stages.LOADING`.
    transfer_seconds: in which a batch reaches the devices.
    workers: loader processes that a whole run would have.
    threads: of each of them.
  """

  losses: list[float]
  floor: float
  chance: float
  accuracy: float
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
  part_seconds: dict[str, float]
  transfer_seconds: float
  workers: int
  threads: int


def prepare(config: config_lib.Config) -> Setup:
  """Returns the run of a small config, and its initial state.

  A config for devices that are elsewhere is tried on those that are here.

  Raises:
    UserError: as training would.
  """
  refusal = mesh_refusal(config.mesh)
  if refusal is not None:
    config = dataclasses.replace(config, mesh=config_lib.Mesh(data=-1, fsdp=1))
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  if refusal is None:
    sharding.check_batch_size(
      config.batch_size, mesh, micro_batches=config.micro_batches
    )
  elif config.batch_size < mesh.size:  # Of another mesh, it need only suffice.
    sharding.check_batch_size(config.batch_size, mesh)
  # One small batch, at the full learning rate.
  each = min(config.batch_size // mesh.size, _PAIRS_PER_DEVICE)
  small = dataclasses.replace(
    config,
    batch_size=each * mesh.size,
    micro_batches=1,
    steps=_ENDLESS_STEPS,
    epochs=None,
    # The weights in use are those that learn.
    optim=dataclasses.replace(
      config.optim,
      warmup_steps=0,
      schedule="constant",
      cooldown_steps=0,
      ema_decay=0.0,
    ),
    # Workers take longer to start than to be timed.
    data=dataclasses.replace(config.data, text_layout="full", workers=0),
    evals={},
    report="",
  )
  origins = origins_lib.open_sources(small.init, model=small.model)
  small = origins_lib.settle(small, None, origins)
  files = {}
  for origin in (origins.get("text"), origins.get("model")):
    files = origin.files if origin is not None else files
  run = run_lib.make_run(small, tokenizer_files=files or None)
  tower = run.program.model.text
  if padding.can_be_cut(tower):  # The step is timed without the padding.
    rows = text_layout.Rows(tower, padding.buckets(tower.context_length))
    run = dataclasses.replace(run, layout=rows)
  state = origins_lib.load(
    run.program.init_state(),
    origins,
    init=small.init,
    max_logit_scale=run.program.spec["max_logit_scale"],
    frozen=small.optim.frozen,
  )
  return Setup(run, state, refusal, config.data.workers)


def mesh_refusal(mesh: config_lib.Mesh) -> str | None:
  """Returns why training here would refuse `config.mesh`, or None."""
  if mesh.data == mesh.fsdp == -1:
    return None  # Fits nowhere: an error like any other.
  try:
    sharding.make_mesh(data=mesh.data, fsdp=mesh.fsdp)
  except errors.UserError as error:
    return str(error)
  return None


def overfit(setup: Setup, *, steps: int) -> Trial:
  """Trains on one batch `steps` times, and times loader and updates.

  Args:
    setup: the run to try; its state is donated, and cannot be used again.
    steps: updates.
  """
  run, state = setup.run, setup.state
  config = run.program.config
  with run.batches(0) as batches:
    batch = next(batches)
    _LOGGER.info("Timing the loader ...")
    loader_seconds = _batch_seconds(batches, threads=config.data.threads)
  part_seconds = stages.of_loading(run)
  before = jax.tree.map(np.asarray, state.params)
  state, history = _train(run, state, batch, steps=steps)
  # Of several terms the one that the bounds are of.
  losses = [
    float(measured.terms.get("contrastive_loss", measured.loss))
    for measured, _ in history
  ]
  seconds = [passed for _, passed in history]
  images = run.encoder.embed_images(state.variables, batch["image"])
  texts = run.encoder.embed_tokens(state.variables, batch["tokens"])
  image_kinds, text_kinds = _kinds(batch["image"]), _kinds(batch["tokens"])
  return Trial(
    losses=losses,
    **_bounds(batch, image_kinds, text_kinds, config.loss),
    accuracy=_accuracy(images @ texts.T, image_kinds, text_kinds),
    pairs=len(images),
    skipped=int(state.skipped),
    moved=_change(before, state.params),
    logit_scale=float(history[-1][0].logit_scale),
    max_logit_scale=run.program.model.max_logit_scale,
    image_cosine=_cosine(images),
    text_cosine=_cosine(texts),
    distinct_images=len(np.unique(image_kinds)),
    distinct_captions=len(np.unique(text_kinds)),
    step_seconds=min(seconds[1:] or seconds),
    compile_seconds=seconds[0],
    loader_seconds=loader_seconds,
    part_seconds=part_seconds,
    transfer_seconds=stages.of_transfer(run, batch),
    workers=setup.workers,
    threads=config.data.threads,
  )


def losses_on_one_batch(setup: Setup, *, steps: int) -> list[float]:
  """Returns the losses of as many updates on one batch.

  For a model that predicts captions, which has no embeddings to look at.

  Args:
    setup: as in `overfit`.
    steps: updates.
  """
  with setup.run.batches(0) as batches:
    batch = next(batches)
  _, history = _train(setup.run, setup.state, batch, steps=steps)
  return [float(measured.loss) for measured, _ in history]


def _train(run, state, batch, *, steps: int):
  """Returns the state after `steps`, and (measured, seconds) of each."""
  step, placed = run.program.make_step(), run.place(batch)
  history = []

  def update(state):
    start = time.perf_counter()
    state, measured = step(state, placed)
    measured = jax.device_get(measured)
    history.append((measured, time.perf_counter() - start))
    return state

  _LOGGER.info("Compiling the update: a large model takes minutes ...")
  state = update(state)
  with terminal.Progress("overfit", unit="updates") as progress:
    for done in range(1, steps):
      state = update(state)
      progress(done, steps - 1)
  return state, history


def _batch_seconds(batches: Any, *, threads: int) -> float:
  """Returns the seconds that a batch takes, once none is left made ahead.

  Threads finish theirs at about the same time: what they made while the first
  was waited for comes at once, and says nothing of the next. As many batches
  are timed at least, so that a burst brings its wait along.
  """
  ahead = _PREFETCH + threads
  _take(batches, count=ahead, seconds=0.0)
  start = time.perf_counter()
  taken = _take(batches, count=ahead, seconds=_TIMED_SECONDS)
  return (time.perf_counter() - start) / taken


def _take(batches: Any, *, count: int, seconds: float) -> int:
  """Takes at least so many batches, for at least so long; returns how many."""
  start, taken, passed = time.perf_counter(), 0, 0.0
  while (taken < count or passed < seconds) and passed < _PATIENCE_SECONDS:
    next(batches)
    taken += 1
    passed = time.perf_counter() - start
  return taken


def _kinds(rows: np.ndarray) -> np.ndarray:
  """Returns a number for each row, equal for equal rows."""
  flat = rows.reshape(len(rows), -1)
  return np.unique(flat, axis=0, return_inverse=True)[1].ravel()


def _bounds(batch, images, texts, loss) -> dict[str, float]:
  """Returns `floor` and `chance` of a trial."""
  ids = {"image_ids": batch.get("image_ids"), "text_ids": texts}
  settings = {"duplicates": loss.duplicates, **ids}
  one = np.zeros_like(images)
  return {
    "floor": least_loss(loss.kind, images=images, texts=texts, **settings),
    "chance": least_loss(loss.kind, images=one, texts=one, **settings),
  }


def _accuracy(
  cosines: np.ndarray, images: np.ndarray, texts: np.ndarray
) -> float:
  """Returns the share of pairs whose nearest is their own, or a copy of it."""
  right = (images[:, None] == images) | (texts[:, None] == texts)
  own = np.arange(len(images))
  by_image = right[own, cosines.argmax(axis=1)]
  by_text = right[cosines.argmax(axis=0), own]
  return float(np.mean([by_image, by_text]))


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
