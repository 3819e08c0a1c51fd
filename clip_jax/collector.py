"""Python's garbage collector, which a command pauses while it starts.

The modules of a verb make some million objects that stay until the end. The
collector would look through them many times while they are imported, and once
more as the process ends: a fifth of a short command's time.
"""

import gc

_paused = False


def pause() -> None:
  """Pauses the collector until `resume`; for the process of a command only."""
  global _paused
  if gc.isenabled():
    gc.disable()
    _paused = True


def resume() -> None:
  """Ends `pause`, if there was one: what exists by now is never looked at."""
  global _paused
  if _paused:
    gc.freeze()
    gc.enable()
    _paused = False
