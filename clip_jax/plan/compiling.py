"""Calls the compiler, and reads its errors and its text."""

import pathlib
import re

import jax

# The compiler's message if a program is too large for the chip.
_TOO_LARGE = re.compile(
  r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)"
)
# The dumped file with the final program and the compiler's estimates.
_FINAL = "*.after_codegen.txt"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLargeError(Exception):
  """A program does not fit into a chip's memory.

  Attributes:
    message: the first line of the compiler's message.
    needed_bytes: bytes needed on one chip; None if the message has no figures.
    available_bytes: bytes available on one chip; None likewise.
  """

  def __init__(self, message: str):
    super().__init__(message)
    self.message = message
    found = _TOO_LARGE.search(message)
    sizes = found and [
      int(float(number) * _UNITS[unit])
      for number, unit in (found.group(1, 2), found.group(3, 4))
    ]
    self.needed_bytes, self.available_bytes = sizes or (None, None)


def compile_program(
  lowered: jax.stages.Lowered, *, dump: str | None = None
) -> jax.stages.Compiled:
  """Returns the compiled program.

  Args:
    lowered: the program.
    dump: a directory for files that `read_text` reads; None for none.

  Raises:
    TooLargeError: it needs more memory than a chip has.
  """
  options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True} if dump else {}
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    lines = [line for line in str(error).splitlines() if "emory" in line]
    raise TooLargeError((lines or [str(error)])[0]) from None


def read_text(compiled: jax.stages.Compiled, dump: str | None) -> str | None:
  """Returns the text of a compiled program; None if there is none.

  The text that the compiler dumped is preferred. JAX makes a text from the
  compiler's binary form, which it may not understand if libtpu is of another
  version.

  Args:
    compiled: the program.
    dump: the directory that it was compiled with.
  """
  found = list(pathlib.Path(dump).glob(_FINAL)) if dump else []
  if largest := max(found, key=lambda path: path.stat().st_size, default=None):
    return largest.read_text(errors="replace")
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError:
    return None
