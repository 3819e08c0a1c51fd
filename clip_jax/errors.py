"""Errors that a user can cause, and how their messages are made."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """Something a user can mend: says what, what was got and what to do.

  The command line prints the message without a traceback and exits with 1.

  Attributes:
    payload: what `--json` prints beside the message; None for nothing.
  """

  payload: Any = None


class AmbiguousError(UserError):
  """Input with several meanings; the message names the flag that settles it.

  The command line exits with 2.
  """


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
  """Returns the error for a `name` that is none of the `known` ones."""
  names = sorted(map(str, known))
  close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return UserError(
    f"Unknown {what} {name!r:.200}.{hint} Known: {', '.join(names)}."
  )


def of_device(error: RuntimeError) -> str | None:
  """Returns what to do about an error of JAX's devices; None for others."""
  first = str(error).partition("\n")[0]
  if "Unable to initialize backend" in str(error):
    return (
      f"{first}. Install the extra for this hardware, pip install "
      "'clip_jax[tpu]' or 'clip_jax[cuda]', or set JAX_PLATFORMS=cpu."
    )
  if "RESOURCE_EXHAUSTED" in str(error):
    return (
      f"The device is out of memory ({first}). Take a smaller batch, or more "
      "devices."
    )
  return None
