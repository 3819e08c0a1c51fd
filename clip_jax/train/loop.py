"""The training loop: `train` is the function to read first."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import optax
from jax.experimental import multihost_utils

from clip_jax import config as config_lib
from clip_jax import errors, inference, sharding
from clip_jax import preprocess as preprocess_lib
from clip_jax import report as report_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import ledger as ledger_lib
from clip_jax.data import pipeline, sources
from clip_jax.evals import tasks
from clip_jax.models import clip, flops, variants
from clip_jax.train import (
  checkpoint,
  journal,
  metrics,
  optim,
  preemption,
)
from clip_jax.train import step as step_lib

# A resumed run may differ in these; anything else would change its result.
MAY_CHANGE = (
  "checkpoint.",
  "data.max_bad_fraction",
  "data.threads",
  "data.workers",
  "eval_every_steps",
  "evals.",
  "log_every_steps",
  "mesh.",
  "report",
)

# A backward pass costs two forward passes.
_TRAIN_OVER_FORWARD_FLOPS = 3


@dataclasses.dataclass(frozen=True)
class Run:
  """What a config stands for, built once."""

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  source: sources.Source
  spec: dict[str, Any]
  model: clip.CLIP
  tx: optax.GradientTransformation
  total_steps: int
  preprocess: preprocess_lib.Preprocess
  tokenizer: tokenizer_lib.Tokenizer
  encoder: inference.Encoder


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  *,
  allow_changes: bool = False,
) -> dict[str, Any]:
  """Runs `config`, resuming from the newest good checkpoint in `workdir`.

  Args:
    config: checked by `config.check`.
    workdir: gets config.json, checkpoints/, metrics.jsonl, TensorBoard events,
      ledger.jsonl and report.png.
    allow_changes: resume although fields differ that change the result.

  Returns:
    {"steps", "seconds", "skipped", "bad_records", "evals", "report"}.

  Raises:
    UserError: the config does not fit the data, the devices or the workdir.
    SystemExit: 143, once the run was told to stop and has saved.
  """
  started = time.perf_counter()
  if "://" in str(workdir):
    raise errors.UserError(
      f"The workdir {str(workdir)!r} is remote; mount the bucket (gcsfuse, "
      "mountpoint-s3) and give the path where it is mounted."
    )
  workdir = pathlib.Path(workdir).absolute()
  run = make_run(config)
  _announce(run)  # Also the first to look into the model.
  _claim(workdir, config, allow_changes=allow_changes)
  _keep_compilations(workdir)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
    )
    stop = stack.enter_context(preemption.Preemption(checkpoints))
    state, counters = _restore_or_init(run, checkpoints)
    if not allow_changes:
      _check_data(run, counters)
    first_step = int(state.step)
    notes = stack.enter_context(
      _open_journal(run, workdir, first_step, counters)
    )
    batches = stack.enter_context(_train_batches(run, first_step))
    train_step = step_lib.make_train_step(config, run.model, run.tx, run.mesh)
    evaluated: dict[str, Any] = {}
    if notes.counters.pop("evaluation_due", False):
      evaluated = evaluate(run, state)
      notes.write_evaluations(first_step, evaluated)
    # `step` counts finished updates: state, data position and log lines agree.
    for step in range(first_step + 1, run.total_steps + 1):
      batch = notes.next_batch(batches)
      state, measured = train_step(state, _place(run, batch))
      notes.note(step, batch, measured)
      checkpoints.check()
      last = step == run.total_steps
      stopping = stop.requested(step)
      if last or _due(step, config.eval_every_steps):
        notes.flush()
        if stopping:  # Half a minute may be all that is left.
          notes.counters["evaluation_due"] = True
        else:
          evaluated = evaluate(run, state)
          notes.write_evaluations(step, evaluated)
      # After the evaluations, so that a resumed run never skips one.
      if last or stopping or _due(step, config.checkpoint.every_steps):
        notes.flush()
        checkpoints.save(
          state, step=step, config=config, counters=notes.counters
        )
      if stopping:
        checkpoints.wait()
        logging.warning("Told to stop: saved step %d.", step)
        raise SystemExit(preemption.EXIT_CODE)
    checkpoints.wait()
    if not evaluated:  # Resumed at the end.
      evaluated = evaluate(run, state)
    return {
      "steps": run.total_steps,
      "seconds": time.perf_counter() - started,
      "skipped": int(state.skipped),
      "bad_records": notes.counters["bad_records"],
      "evals": evaluated,
      "report": _write_report(run, state, evaluated, workdir),
    }


def _due(step: int, every_steps: int) -> bool:
  return bool(every_steps) and step % every_steps == 0


def make_run(config: ml_collections.ConfigDict) -> Run:
  """Returns what `config` stands for; opens the data, starts the devices.

  Raises:
    UserError: something in the config does not exist or does not fit.
  """
  mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
  sharding.check_batch_size(config.batch_size, mesh)
  spec = variants.spec(config.model, config.model_overrides.to_dict())
  model = step_lib.make_model(config)
  source = sources.open_source(config.data.train)
  _check_evaluations(config)
  total_steps = config.steps or math.ceil(
    config.epochs * len(source) / config.batch_size
  )
  return Run(
    config=config,
    mesh=mesh,
    source=source,
    spec=spec,
    model=model,
    tx=optim.make_optimizer(
      config, total_steps=total_steps, image_kind=spec["image"]["kind"]
    ),
    total_steps=total_steps,
    preprocess=preprocess_lib.Preprocess.from_spec(spec),
    tokenizer=tokenizer_lib.make_tokenizer(
      **spec["tokenizer"], context_length=spec["text"]["context_length"]
    ),
    encoder=inference.Encoder(model, mesh=mesh),
  )


def _check_evaluations(config: ml_collections.ConfigDict) -> None:
  """Raises at the start what would else stop the run at an evaluation."""
  for name in config.evals:
    try:
      tasks.check(**config_lib.evaluation(config, name))
    except errors.UserError as error:
      raise errors.UserError(f"evals.{name}: {error}") from None
  if config.report:
    try:
      sources.open_source(config.report)
    except errors.UserError as error:
      raise errors.UserError(f"report: {error}") from None


def _announce(run: Run) -> None:
  """Says what is about to run, before the first compilation's silence."""
  devices = run.mesh.devices.flatten()
  logging.info(
    "%s: %s parameters, %d records, %d steps of %d pairs on %d x %s",
    run.config.model,
    f"{variants.parameter_count(run.model):,}",
    len(run.source),
    run.total_steps,
    run.config.batch_size,
    len(devices),
    devices[0].device_kind,
  )


def _claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  *,
  allow_changes: bool,
) -> None:
  """Makes `workdir` this run's, or refuses one that belongs to another run."""
  path = workdir / checkpoint.CONFIG
  if workdir.exists() and not workdir.is_dir():
    raise errors.UserError(
      f"The workdir {workdir} is a file; name a directory."
    )
  if path.exists() and not allow_changes:
    changed = {
      field: values
      for field, values in config_lib.differences(
        checkpoint.load_config(workdir), config
      ).items()
      if not field.startswith(MAY_CHANGE)
    }
    if changed:
      lines = ", ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in changed.items())
      raise errors.UserError(
        f"{workdir} holds a run of another config ({lines}). Take a new "
        "workdir, or pass --allow-changes to go on with the new values."
      )
  elif not path.exists() and (workdir / checkpoint.DIRECTORY).exists():
    raise errors.UserError(
      f"{workdir} holds checkpoints but no {checkpoint.CONFIG}; take a new "
      "workdir."
    )
  # Nobody writes before everybody has looked, nobody goes on before it stands.
  _wait_for_all("looked")
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(config_lib.to_json(config))
    partial.replace(path)
  _wait_for_all("claimed")


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def _check_data(run: Run, counters: dict[str, Any]) -> None:
  """Raises UserError where the data are not those that the run began with."""
  before = counters.get("data", run.source.fingerprint)
  if before != run.source.fingerprint:
    raise errors.UserError(
      f"{run.config.data.train} has changed since this run began (files came, "
      "went or changed size). Take a new workdir, or pass --allow-changes to "
      "go on with the data as they are."
    )


def _keep_compilations(workdir: pathlib.Path) -> None:
  """Lets a resumed run load its programs, where no other cache is set."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def _restore_or_init(
  run: Run, checkpoints: checkpoint.Checkpoints
) -> tuple[step_lib.TrainState, dict[str, Any]]:
  abstract = step_lib.abstract_state(run.model, run.tx, run.mesh)
  restored = checkpoints.restore_latest(abstract)
  if restored is None:
    seed = run.config.seed
    return step_lib.init_state(run.model, run.tx, run.mesh, seed=seed), {}
  state, meta = restored
  logging.info("Resumed at step %d.", meta["step"])
  return state, meta["counters"]


def _train_batches(run: Run, start_step: int) -> pipeline.Batches:
  """Returns the batches from `start_step` on: rows that this process needs."""
  config = run.config
  rows = pipeline.local_rows(
    sharding.batch_sharding(run.mesh), config.batch_size
  )
  return pipeline.train_batches(
    run.source,
    seed=config.seed,
    batch_size=config.batch_size,
    rows=rows,
    start_step=start_step,
    preprocess=run.preprocess,
    tokenizer=run.tokenizer,
    workers=config.data.workers,
    threads=config.data.threads,
    resize_ratio=config.data.resize_ratio,
    caption=config.data.caption,
  )


def _place(run: Run, batch: dict[str, Any]) -> dict[str, jax.Array]:
  """Returns what the devices need of a batch, split over them."""
  needed = {name: batch[name] for name in ("image", "tokens", "bad")}
  return pipeline.place(needed, sharding.batch_sharding(run.mesh))


def _open_journal(
  run: Run, workdir: pathlib.Path, first_step: int, counters: dict[str, Any]
) -> journal.Journal:
  config = run.config
  if jax.process_index() == 0:
    journal.truncate_abandoned(workdir, first_step)
  forward = flops.image_flops(run.model) + flops.text_flops(run.model)
  return journal.Journal(
    workdir,
    first_step=first_step,
    counters={**counters, "data": run.source.fingerprint},
    ledger=ledger_lib.Ledger(
      journal.ledger_path(workdir),
      records=len(run.source),
      max_bad_fraction=config.data.max_bad_fraction,
    ),
    throughput=metrics.Throughput(
      flops_per_pair=_TRAIN_OVER_FORWARD_FLOPS * forward,
      devices=jax.device_count(),
    ),
    schedule=optim.make_schedule(config, run.total_steps),
    batch_size=config.batch_size,
    total_steps=run.total_steps,
    log_every_steps=config.log_every_steps,
  )


def evaluate(run: Run, state: step_lib.TrainState) -> dict[str, Any]:
  """Returns {name: measures} of `config.evals` for the model as it is now."""
  ready = as_clip(run, state)
  results = {}
  for name in run.config.evals:
    entry = config_lib.evaluation(run.config, name)
    results[name] = tasks.evaluate(
      entry["task"],
      entry["data"],
      embed_images=ready.embed_images,
      embed_texts=ready.encode_text,
      preprocess=run.preprocess,
      labels=entry["labels"],
      templates=entry["templates"],
      threads=run.config.data.threads,
    )
  return results


def as_clip(run: Run, state: step_lib.TrainState) -> inference.Clip:
  """Returns the model in training as the object that users have."""
  return inference.Clip(
    module=run.model,
    variables=state.variables,
    tokenizer=run.tokenizer,
    preprocess=run.preprocess,
    encoder=run.encoder,
    step=int(state.step),
  )


def _write_report(
  run: Run,
  state: step_lib.TrainState,
  evaluated: dict[str, Any],
  workdir: pathlib.Path,
) -> str | None:
  """Writes report.png of `config.report`; returns its path, if any."""
  if not run.config.report:
    return None
  ready = as_clip(run, state)
  rows = report_lib.find_rows(
    sources.open_source(run.config.report),
    embed_images=ready.embed_images,
    embed_texts=ready.encode_text,
    preprocess=run.preprocess,
    logit_scale=ready.logit_scale,
  )
  figures = [
    (name, f"{100 * result['top1']:.1f} %")
    for name, result in evaluated.items()
    if "top1" in result
  ]
  path = workdir / "report.png"
  if jax.process_index() == 0:
    title = f"{run.config.model} on {run.config.report}"
    report_lib.save(
      report_lib.make_report(rows, title=title, figures=figures), path
    )
  return str(path)
