"""The `clip-jax` command, and `python -m clip_jax`."""

import signal

from clip_jax import interrupts
from clip_jax.data import parent

# Before the imports, which take some time. A worker process, which imports this
# module where the installed command is its program, ignores Ctrl-C instead.
parent.begin_if_worker()
interrupts.end_at_once()

from clip_jax import cli, collector  # noqa: E402


def main() -> None:
  """Runs the command of this process's arguments, and ends with its code."""
  collector.pause()
  try:
    cli.main()
  except SystemExit as end:
    interrupts.end_if_interrupted(end.code)
    raise
  finally:
    # What follows only ends the process: no Ctrl-C needs a traceback there.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
  main()
