"""Traces of a few updates, for xprof and TensorBoard."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax

from clip_jax import errors

_LOGGER = logging.getLogger(__name__)

STEPS = 3  # In one trace: enough to see what repeats.
TRACES = "plugins/profile"  # In the workdir, as both programs look for it.
_NAME = "train"


def check(step: int | None, *, total_steps: int) -> None:
  """Raises UserError if a run ends before the update that is to be traced."""
  if step is not None and step > total_steps:
    raise errors.UserError(
      f"--profile {step} is after the end of the run, which has "
      f"{total_steps} steps; give a smaller number."
    )


class Profile:
  """Traces the updates from one on, or none.

  Attributes:
    path: where the trace is; None until it is written.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int | None,
    *,
    first_step: int,
    total_steps: int,
    wait: Callable[[], None],
  ):
    """Chooses the updates that are traced.

    Args:
      workdir: gets the trace, below `TRACES`.
      step: the first one that is traced; None for no trace.
      first_step: updates that were done before.
      total_steps: updates of the whole run.
      wait: called before the trace ends; returns once no update is under way.
    """
    if step is not None and step <= first_step:
      # No error: a run that was killed is started again by the same command.
      _LOGGER.warning(
        "Step %d was done before this start: there is no trace of it.", step
      )
      step = None
    self.path: pathlib.Path | None = None
    self._workdir = workdir
    self._steps = range(0)
    if step is not None:
      self._steps = range(step, min(step + STEPS, total_steps + 1))
    self._wait = wait
    self._active = False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *error: object) -> None:
    if self._active:  # The run ends in the middle of the trace.
      self._stop()

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Names what runs inside as update `step`, if it is one of the traced."""
    if step not in self._steps:
      yield
      return
    if not self._active:
      options = jax.profiler.ProfileOptions()
      # Each call of Python would slow the host down, and fill the trace.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._workdir, profiler_options=options)
      self._active = True
    with jax.profiler.StepTraceAnnotation(_NAME, step_num=step):
      yield
    if step == self._steps[-1]:
      self._wait()
      self._stop()

  def _stop(self) -> None:
    self._active = False
    jax.profiler.stop_trace()
    self.path = self._workdir / TRACES
    _LOGGER.info(
      "Trace of step %d and those after it: %s (open it by `xprof --logdir "
      "%s`, or in TensorBoard with its profile plugin)",
      self._steps[0],
      self.path,
      self._workdir,
    )
