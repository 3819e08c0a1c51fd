"""The file that a tokenizer is read from, inside of a model's directory."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping

from clip_jax import errors, regular_files

# The largest in use, of 256,000 tokens, has 34 MB.
_MAX_BYTES = 256 * 2**20
_PUT = "put the tokenizer's file there, as it was published with the model"


@dataclasses.dataclass(frozen=True)
class File:
  """A file by its name and contents; equal where these are.

  Attributes:
    name: inside of the directory.
    sha256: of the contents (hex).
    path: where they are read again, so that a pickle is small; "" if nowhere.
    data: the contents, if there is no path.
  """

  name: str
  sha256: str
  path: str = dataclasses.field(default="", compare=False)
  data: bytes = dataclasses.field(default=b"", compare=False, repr=False)

  def read(self) -> bytes:
    """Returns the contents.

    Raises:
      UserError: the file is gone, or is not what it was.
    """
    data = _read(pathlib.Path(self.path)) if self.path else self.data
    if hashlib.sha256(data).hexdigest() != self.sha256:
      raise errors.UserError(
        f"{self.path} has changed since the tokenizer was loaded; load it "
        "again."
      )
    return data


def find(
  name: str,
  *,
  directory: str | os.PathLike | None = None,
  contents: Mapping[str, bytes] | None = None,
) -> File | None:
  """Returns the file of that name, None if it is in neither place.

  Args:
    name: of a file directly inside of the directory.
    directory: a model's.
    contents: files by name; they go before the directory's.

  Raises:
    UserError: the name leads elsewhere, or the file cannot be read.
  """
  check_name(name)
  if contents and name in contents:
    data = bytes(contents[name])
    return File(name, hashlib.sha256(data).hexdigest(), data=data)
  if directory is None:
    return None
  path = pathlib.Path(directory).absolute() / name
  if not path.exists():
    return None
  sha256 = hashlib.sha256(_read(path)).hexdigest()
  return File(name, sha256, path=str(path))


def check_name(name: str) -> None:
  """Raises UserError unless `name` is one of a file in the same directory."""
  if not isinstance(name, str) or not regular_files.is_plain_name(name):
    raise errors.UserError(
      f"The tokenizer's file {name!r} must be the plain name of a file in the "
      "model's directory."
    )


def _read(path: pathlib.Path) -> bytes:
  try:
    data = regular_files.read_regular(path, limit=_MAX_BYTES)
  except (IsADirectoryError, regular_files.NotRegularError):
    raise errors.UserError(f"{path} is not a file; {_PUT}.") from None
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read: {error.strerror}; {_PUT}."
    ) from None
  if len(data) > _MAX_BYTES:
    raise errors.UserError(
      f"{path} has more than the {_MAX_BYTES:,} bytes that are allowed; {_PUT}."
    )
  return data
