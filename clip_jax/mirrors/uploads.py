"""Writes models and indexes into buckets: on the disk, then whole objects."""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

from clip_jax import buckets, errors, kept_files, places
from clip_jax.buckets import writing
from clip_jax.mirrors import fetching, translation
from clip_jax.mirrors import manifest as manifest_lib

_MODEL = "model"
_THREADS = 8


@contextlib.contextmanager
def new(address: str, *, overwrite: bool) -> Iterator[pathlib.Path]:
  """Yields a path on the disk, whose file or folder goes into the bucket.

  A folder is not read before all of it is there, by its list of files.

  Args:
    address: of a model to write.
    overwrite: whether to replace the folder of one.

  Raises:
    UserError: something else is there, or it cannot be written.
  """
  address = fetching.checked(address)
  _check_free(address, overwrite)
  root = kept_files.folder(translation.FOLDER)
  with translation.writing(root):
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    room = pathlib.Path(tempfile.mkdtemp(dir=root))
  try:
    path = room / address.rpartition("/")[2]
    yield path
    if path.is_dir():
      _put_model(path, address)
    else:
      writing.put_file(address, path)
  finally:
    shutil.rmtree(room, ignore_errors=True)


def _check_free(address: str, overwrite: bool) -> None:
  kind = buckets.kind(address)
  if kind is None:
    return
  listed = manifest_lib.read(address) if kind == "folder" else None
  if listed is None or listed.kind != _MODEL:
    raise errors.UserError(
      f"{address} exists and is no folder that `clip-jax convert` wrote; give "
      "another destination, or remove it yourself."
    )
  if listed.complete and not overwrite:
    raise errors.UserError(
      f"{address} exists; give another destination, or --overwrite to replace "
      "it."
    )


def _put_model(path: pathlib.Path, address: str) -> None:
  names = fetching.local_names(path)
  digests = {name: manifest_lib.digest(path / name) for name in sorted(names)}
  old = manifest_lib.read(address)
  both = ({} if old is None else old.files) | digests
  manifest = manifest_lib.Manifest(_MODEL, both, complete=False)
  manifest_lib.write(address, manifest)
  put_files(path, address, digests)
  manifest = dataclasses.replace(manifest, files=digests, complete=True)
  manifest_lib.write(address, manifest)
  for name in both.keys() - digests.keys():
    writing.remove(f"{address}/{name}")


def put_files(path: pathlib.Path, address: str, names: Iterable[str]) -> None:
  """Writes files of a folder as objects, in no order."""
  places.of_each(
    lambda name: writing.put_file(f"{address}/{name}", path / name),
    names,
    threads=_THREADS,
  )


def replace_files(
  path: pathlib.Path,
  address: str,
  *,
  last: str,
  is_own: Callable[[str], bool],
) -> None:
  """Writes a folder's files as objects, and removes those before them.

  Where several machines write, the one that ends last has all of its files
  there.

  Args:
    path: of the folder.
    address: where they go.
    last: the file that says which others count.
    is_own: whether a name may be that of an object to remove.
  """
  names = fetching.local_names(path)
  missing = names
  while missing:
    put_files(path, address, missing - {last})
    put_files(path, address, missing & {last})
    # Whoever writes the last file after this one also removes.
    if not _holds(f"{address}/{last}", (path / last).read_bytes()):
      return
    there = buckets.objects(address).keys()
    for name in there - names:
      if is_own(name):
        writing.remove(f"{address}/{name}")
    # Another machine may have removed what was not named yet.
    missing = names - there


def _holds(address: str, content: bytes) -> bool:
  try:
    return buckets.read_current(address, limit=len(content)) == content
  except FileNotFoundError:
    return False
