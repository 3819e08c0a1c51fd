"""The training loop: `train` is the function to read first."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from clip_jax import config as config_lib
from clip_jax import errors, hosts, mirrors
from clip_jax.checkpoints import integrity, saving
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import account
from clip_jax.train import (
  claim,
  evaluation,
  journal,
  preemption,
  profiling,
  tracking,
)
from clip_jax.train import origins as origins_lib
from clip_jax.train import run as run_lib

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
  """The result of a call of `train`.

  Attributes:
    steps: the number of updates of the whole run.
    steps_now: the number of updates of this call.
    skipped: the number of updates that changed nothing, because a number in
      them was not finite.
    bad_records: how often a damaged record was read and replaced; a record
      counts once in each pass over the data.
    different_bad_records: the number of distinct damaged records in this
      process's ledger, at most 200.
    before: measures of the model with which the run began, by evaluation.
    lost_records: the number of records lost in damaged files, as far as known.
    seconds: the duration of the call.
    evals: measures at the end, by evaluation.
    report: the path of the picture; None if there is none.
    profile: the path of the traces; None if this call made none.
  """

  steps: int
  steps_now: int
  skipped: int
  bad_records: int
  different_bad_records: int
  before: dict[str, Any]
  lost_records: int
  seconds: float
  evals: dict[str, Any]
  report: str | None
  profile: str | None


@mirrors.in_errors()
def train(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  *,
  allow_changes: bool = False,
  profile_step: int | None = None,
) -> Summary:
  """Runs `config`, resuming from the newest good checkpoint in `workdir`.

  Args:
    config: the result of `config.load`, or what `config.check` accepts.
    workdir: the directory of the run's config, checkpoints, metrics, ledger and
      report.png, also in a bucket.
    allow_changes: whether to resume even if fields that change the result
      differ.
    profile_step: the first update to trace; None for no trace.

  Raises:
    UserError: the config does not fit the data, the devices or the workdir.
    SystemExit: 143, when the run was told to stop and has saved its state.
  """
  started = time.perf_counter()
  tracking.check(config.tracker)
  config = config_lib.check(config)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    place = enter(
      mirrors.opened(
        workdir_lib.find(workdir),
        process=jax.process_index(),
        processes=jax.process_count(),
        everywhere=hosts.everywhere,
      )
    )
    workdir = place.path
    init, stored, origins = origins_lib.begin(
      config.init, workdir, model=config.model
    )
    config = origins_lib.settle(config, stored, origins)
    config = dataclasses.replace(config, init=init)
    claim.check_config(workdir, config, allow_changes=allow_changes)
    tokenizer = origins_lib.tokenizer_files(workdir, origins)
    run = run_lib.make_run(config, tokenizer_files=tokenizer)
    total_steps = run.total_steps
    profiling.check(profile_step, total_steps=total_steps)
    run.announce()  # Before the data: this raises if the model is impossible.
    run.check_data()
    # Nothing is written to the workdir before all of the run was checked.
    _claim(run, place, enter, tokenizer, allow_changes=allow_changes)
    checkpoints = enter(
      saving.Checkpoints(
        workdir, keep=config.checkpoint.keep, is_shared=place.is_shared
      )
    )
    stop = enter(preemption.Preemption())
    state, counters = _restore_or_init(run, checkpoints, origins, allow_changes)
    first_step = int(state.step)
    run = run.going_on(counters.get(journal.POSITION), first_step)
    notes = enter(
      journal.Journal(run, workdir, first_step=first_step, counters=counters)
    )
    profile = enter(
      profiling.Profile(
        workdir,
        profile_step,
        first_step=first_step,
        total_steps=total_steps,
        wait=notes.flush,
      )
    )
    batches = enter(run.batches(first_step))
    train_step = run.program.make_step()
    evaluator = evaluation.Evaluator(run, stop)
    evaluated = None
    if notes.evaluation_due:
      evaluated = evaluator.measure(state)
      notes.write_evaluations(first_step, evaluated)
      _leave_if_told(stop, checkpoints)
    if first_step < total_steps and jax.process_index() == 0:
      _LOGGER.info("Compiling the first step ...")
    # `step` counts finished updates, in the state, the data and the log alike.
    for step in range(first_step + 1, total_steps + 1):
      with profile.step(step):
        batch = notes.next_batch(batches)
        state, measured = train_step(state, run.place(batch))
        notes.note(step, batch, measured)
      checkpoints.check()
      place.check()
      last = step == total_steps
      stop.poll()
      if last or _due(step, config.eval_every_steps):
        notes.flush()
        evaluated = evaluator.measure(state)
        notes.write_evaluations(step, evaluated)
      # After the evaluations, so that a resumed run never skips one.
      if last or stop.told or _due(step, config.checkpoint.every_steps):
        notes.flush()
        checkpoints.save(
          state, step=step, config=config, counters=notes.counters
        )
      _leave_if_told(stop, checkpoints)
    checkpoints.wait()
    if evaluated is None:  # The run was resumed after its last step.
      evaluated = evaluator.measure(state) or {}
    before = notes.counters.get(journal.BEFORE, {})
    report = evaluator.write_report(
      state, evaluated, workdir / workdir_lib.REPORT, before=before
    )
    _leave_if_told(stop, checkpoints)
    return Summary(
      steps=total_steps,
      steps_now=total_steps - first_step,
      skipped=int(state.skipped),
      bad_records=notes.counters["bad_records"],
      different_bad_records=notes.different_bad_records,
      before=before,
      lost_records=account.of(run.source).lost_records,
      seconds=time.perf_counter() - started,
      evals=evaluated,
      report=place.address_of(report),
      profile=place.address_of(profile.path),
    )


def _claim(
  run: run_lib.Run,
  place: mirrors.Workdir,
  enter: Callable[[contextlib.AbstractContextManager], Any],
  tokenizer: dict[str, bytes],
  *,
  allow_changes: bool,
) -> None:
  """Takes a workdir for a run, and keeps there what it needs to go on."""
  workdir = place.path
  enter(claim.hold(workdir))
  claim.claim(
    workdir,
    run.program.config,
    total_steps=run.total_steps,
    allow_changes=allow_changes,
  )
  place.claim()
  enter(claim.explain_interrupt(workdir))
  enter(claim.keep_compilations(workdir))
  workdir_lib.keep_tokenizer(workdir, tokenizer)


def _due(step: int, every_steps: int) -> bool:
  return bool(every_steps) and step % every_steps == 0


def _leave_if_told(
  stop: preemption.Preemption, checkpoints: saving.Checkpoints
) -> None:
  """Ends the run if it was told to stop; the state must have been saved."""
  if not stop.told:
    return
  checkpoints.wait()
  step = checkpoints.latest_step()
  _LOGGER.warning("Told to stop. %s", claim.what_is_saved(step))
  raise SystemExit(preemption.EXIT_CODE)


def _check_data(run: run_lib.Run, counters: dict[str, Any]) -> None:
  """Raises UserError if the data are not those with which the run began."""
  before = counters.get("data", run.source.fingerprint)
  if before != run.source.fingerprint:
    raise errors.UserError(
      f"{run.program.config.data.train} does not hold what this run began with "
      "(files were added or removed, their sizes changed, or it is another "
      "place of that name). Give the data of before, take a new workdir, or "
      "pass --allow-changes to go on with the data as they are."
    )


def _restore_or_init(
  run: run_lib.Run,
  checkpoints: saving.Checkpoints,
  origins: origins_lib.Origins,
  allow_changes: bool,
) -> tuple[state_lib.TrainState, dict[str, Any]]:
  config = run.program.config
  restored = checkpoints.restore_latest(run.program.abstract_state())
  if restored is None:
    state = origins_lib.load(
      run.program.init_state(),
      origins,
      init=config.init,
      max_logit_scale=run.program.spec["max_logit_scale"],
      frozen=config.optim.frozen,
    )
    return state, _counters_at_the_start(state, origins)
  state, meta = restored
  if not allow_changes:
    _check_data(run, meta["counters"])
  if meta["step"] < run.total_steps:
    _LOGGER.info("Resumed at step %d.", meta["step"])
  else:
    _LOGGER.info("Already trained: all %d steps are done.", meta["step"])
  return state, meta["counters"]


def _counters_at_the_start(
  state: state_lib.TrainState, origins: origins_lib.Origins
) -> dict[str, Any]:
  """Returns the counters of a new run.

  A model with which the run begins is evaluated before the first step.
  """
  if "model" not in origins:
    return {}
  return {
    journal.EVALUATION_DUE: True,
    workdir_lib.ORIGIN: integrity.fingerprint(state.variables),
  }
