"""The SHA-256 of an exported file, in a file beside it.

FAISS and usearch trust what they read: of a damaged file they may find the
wrong rows, or end the process. So the digest is compared before they get it.
`sha256sum --check` reads the file too.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from clip_jax import errors, whole_files
from clip_jax.search import index_files

SUFFIX = ".sha256"
_MOST_BYTES = 4096
_LINE = re.compile(rb"([0-9a-f]{64}) [ *][^\n]*\n?")


def beside(path: pathlib.Path) -> pathlib.Path:
  """Returns where the digest of a file is."""
  return path.with_name(path.name + SUFFIX)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a new file, as `whole_files.replacing`, and writes its digest.

  A reader never sees a file beside the digest of another one; for a moment
  there is none.
  """
  with whole_files.replacing(path) as file:
    yield file
    with open(file.name, "rb") as made:
      digest = index_files.sha256(made)
    beside(path).unlink(missing_ok=True)
  line = f"{digest}  {path.name}\n"
  whole_files.write(beside(path), line.encode(errors="surrogateescape"))


def check(path: pathlib.Path, digest: pathlib.Path | None = None) -> None:
  """Compares a file with its digest, if there is one.

  Args:
    path: of the file.
    digest: of the file with the digest; None for the one beside it.

  Raises:
    UserError: the file is not the one that the digest was written of.
  """
  digest = digest or beside(path)
  try:
    with digest.open("rb") as file:
      line = _LINE.fullmatch(file.read(_MOST_BYTES))
  except FileNotFoundError:
    return
  with path.open("rb") as file:
    found = index_files.sha256(file)
  if line is None or found != line[1].decode():
    raise errors.UserError(
      f"{path} is not what {digest.name} says: it is damaged, or was replaced "
      f"by another program since. Remove {digest.name} if you replaced it; "
      "else make the file again by `clip-jax search INDEX --export FILE`."
    )
