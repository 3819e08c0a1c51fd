"""Reads a file of weights in any container, under the model's own names."""

import pathlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from clip_jax import errors
from clip_jax.convert import portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import (
  datafile,
  msgpack_file,
  nested,
  npz,
  safetensors_file,
  torch_zip,
  wrappers,
  zip_directory,
)

_Reader = Callable[[pathlib.Path, nested.Select], datafile.Contents]


def _flat(read: Callable[..., Any], *args: Any, join: str = ".") -> _Reader:
  """Returns a reader of a container with flat names, without nested dicts."""
  return lambda path, select: datafile.Contents(
    select(read(path, *args).tensors, join)
  )


_INDEX = ".index.json"
# By the end of a file's name; longer ends come before shorter ones.
_READERS: dict[str, _Reader] = {
  f".safetensors{_INDEX}": _flat(safetensors_file.read_sharded),
  f".bin{_INDEX}": _flat(safetensors_file.read_sharded, torch_zip.read),
  ".safetensors": _flat(safetensors_file.read),
  ".npz": _flat(npz.read, join="/"),
  ".msgpack": msgpack_file.read,
  **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), torch_zip.read),
}
SUFFIXES = tuple(suffix for suffix in _READERS if _INDEX not in suffix)


def is_one(path: pathlib.Path) -> bool:
  """Whether `path` has the name of a file of weights."""
  return path.is_file() and path.suffix in SUFFIXES


def is_known(path: pathlib.Path) -> bool:
  """Whether a file is one of weights: by its name, or else by its content."""
  if is_one(path):
    return True
  try:
    _by_content(path)
  except errors.UserError:
    return False
  return True


def first(directory: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
  """Returns the first of some files that exists; None if none does."""
  paths = (directory / name for name in names)
  return next((path for path in paths if path.is_file()), None)


def require(directory: pathlib.Path, names: Collection[str]) -> pathlib.Path:
  """Returns the first of some files that exists.

  Raises:
    UserError: the directory has none of them.
  """
  path = first(directory, names)
  if path is None:
    found = report_lib.shown(sorted(x.name for x in directory.iterdir()))
    raise errors.UserError(
      f"{directory} has a config.json but no weights: none of "
      f"{', '.join(names)} (found: {found}). Put them there."
    )
  return path


def read(
  path: pathlib.Path, options: portable.Options, report: report_lib.Report
) -> datafile.Contents:
  """Reads the headers of a file; wrappers and prefixes are removed.

  Args:
    path: a file, or the index of several.
    options: `weights` chooses one of several models.
    report: gets what was stripped and what was left out.

  Raises:
    UserError: it is damaged, or holds adapters.
    AmbiguousError: it holds several models, and no option chooses one.
  """
  suffix = next((x for x in _READERS if path.name.endswith(x)), None)
  if suffix is None:
    suffix = _by_content(path)

  def select(tree, separator) -> dict[str, Any]:
    unwrapped = wrappers.unwrap(
      tree,
      name=str(path),
      separator=separator,
      weights=options.weights,
    )
    report.stripped += unwrapped.stripped
    report.left_out += unwrapped.left_out
    return unwrapped.leaves

  # A reader of flat names selects when it is done, outside of its own check.
  with datafile.checked(path, "a file of weights"):
    return _READERS[suffix](path, select)


def _by_content(path: pathlib.Path) -> str:
  """Returns the suffix that fits the content of a file with another name.

  Raises:
    UserError: it is in no container that is supported.
  """
  file = datafile.DataFile(path)
  head = file.read(0, min(file.size, 9))
  if head.startswith(zip_directory.MAGIC):
    with datafile.checked(path, "a zip archive"):
      names = zip_directory.read(file)
    return ".npz" if all(x.endswith(".npy") for x in names) else ".pt"
  if head[8:] == b"{":
    return ".safetensors"
  raise errors.UserError(
    f"{path} is not a file of weights, neither by its content nor by its name, "
    f"which should end in {', '.join(SUFFIXES)}."
  )
