"""Copies objects of buckets into the user's cache folder."""

import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from clip_jax import buckets, errors, kept_files, places, terminal
from clip_jax.buckets import clients
from clip_jax.mirrors import manifest as manifest_lib
from clip_jax.mirrors import room, stamps, translation

_LOGGER = logging.getLogger(__name__)

_PIECE_BYTES = 2**24
_THREADS = 8
_ATTEMPTS, _WAIT_SECONDS = 5, 0.5  # While another process replaces files.

_Result = TypeVar("_Result")
Choose = Callable[[Sequence[str]], Sequence[str]]


class ChangedError(Exception):
  """An object that is being copied was replaced or removed meanwhile.

  Attributes:
    address: of the object.
  """

  def __init__(self, address: str, what: str):
    super().__init__(f"{address} {what}")
    self.address = address


class InconsistentError(errors.UserError):
  """An object that still differs from its description after several attempts.

  Attributes:
    address: of the object.
  """

  def __init__(self, message: str, address: str):
    super().__init__(message)
    self.address = address


class Wanted(NamedTuple):
  """An object to be copied, and how its copy is recognised.

  Attributes:
    address: of the object.
    stamp: its SHA-256, or else its size and when it was written.
    is_digest: whether `stamp` is the SHA-256.
  """

  address: str
  stamp: str
  is_digest: bool


def checked(address: str | os.PathLike) -> str:
  """Returns `address` without slashes at its end, if it may have a copy.

  Raises:
    UserError: it names no bucket, or has a part "." or "..".
  """
  text = str(address)
  if set(clients.place(text).split("/")) & {".", ".."}:
    raise errors.UserError(
      f"{text!r} has a part '.' or '..', which means nothing in a bucket; give "
      "the address without it."
    )
  return text.rstrip("/")


def local_path(address: str, *, use: str = "read") -> pathlib.Path:
  """Returns where the copy of a file or folder lies, or will lie.

  Args:
    address: in a bucket.
    use: what the copy is for; each use has its own copy.

  Raises:
    UserError: as `checked`.
  """
  address = checked(address)
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  name = address.rpartition("/")[2]
  return kept_files.folder(translation.FOLDER) / f"{digest}-{use}" / name


def names(address: str) -> list[str]:
  """Returns the sorted names of a folder's files: those of its list, if any.

  Raises:
    UserError: the folder cannot be read, or is not complete.
  """
  return sorted(_files(checked(address)))


def fetched(
  address: str,
  choose: Choose = lambda names: names,
  *,
  files: dict[str, str] | None = None,
  use: str = "read",
) -> pathlib.Path:
  """Returns the path of a copy of a file or of a folder.

  Args:
    address: of the file or folder.
    choose: takes the names of a folder's files and returns those to copy.
    files: the SHA-256 of each file in a folder by name, where they are known;
      None takes those of the folder's list, or else every object there.
    use: as in `local_path`.

  Raises:
    InconsistentError: an object is not the one of the folder's list.
    UserError: there is nothing, it is not complete, or it cannot be read.
  """
  address = checked(address)
  path = local_path(address, use=use)
  with locked(path):
    translation.note(address, path)
    room.use(path)
    return repeat_if_changed(
      lambda: _fetch(address, path, choose, files),
      "If a command was stopped while it wrote there, run it again; otherwise "
      "write it anew",
    )


def repeat_if_changed(act: Callable[[], _Result], advice: str) -> _Result:
  """Returns the result of `act`, which is repeated if objects change meanwhile.

  Args:
    act: raises `ChangedError` where an object changes.
    advice: what a user can do if they change every time.

  Raises:
    InconsistentError: objects change every time.
  """
  for _ in range(_ATTEMPTS - 1):
    with contextlib.suppress(ChangedError):
      return act()
    time.sleep(_WAIT_SECONDS)
  try:
    return act()
  except ChangedError as error:
    raise InconsistentError(f"{error}. {advice}.", error.address) from None


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from changing the copy at `path`; waits for them.

  Raises:
    OnDiskError: the lock cannot be written.
  """
  root = path.parent.parent
  with contextlib.ExitStack() as stack:
    stack.enter_context(translation.writing(path))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = stack.enter_context(path.parent.with_suffix(".lock").open("a"))
    # Some file systems cannot lock.
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    # The process that had the lock may have removed the folder, to make room.
    path.parent.mkdir(mode=0o700, exist_ok=True)
    yield


@contextlib.contextmanager
def held(path: pathlib.Path, said: str) -> Iterator[None]:
  """Keeps the copy at `path` for this process alone; does not wait.

  Args:
    path: of the copy.
    said: what another process does that has the copy; begins the error.

  Raises:
    UserError: another process has it, or the lock cannot be written.
  """
  with contextlib.ExitStack() as stack:
    with translation.writing(path):
      path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      file = stack.enter_context(path.parent.with_suffix(".held").open("a"))
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f"{said} on this machine. Wait until it ends, stop it, or name "
        "another folder."
      ) from None
    except OSError as error:
      _LOGGER.warning("%s cannot be locked: %s", path, error.strerror)
    yield


def _fetch(address, path, choose, files) -> pathlib.Path:
  if files is None and buckets.kind(address) == "file":
    try:
      status = buckets.status(address)
    except FileNotFoundError:
      raise _nothing_at(address) from None
    wanted = {"": Wanted(address, stamps.of(status), False)}
    for left in path.parent.glob(".*.partial"):  # By a process that was killed.
      left.unlink()
  else:
    found = _files(address) if files is None else _digests(address, files)
    wanted = {name: found[name] for name in choose(sorted(found))}
    for name in wanted:
      manifest_lib.check_name(name)
  is_folder = "" not in wanted
  if path.is_dir() != is_folder:
    _remove(path)
  kept = stamps.read(path)
  missing = {
    name: each
    for name, each in wanted.items()
    if not _is_good(path / name, kept.get(name), each)
  }
  if missing:
    kept |= _copy_all(address, path, missing)
    stamps.write(path, {x: kept[x] for x in wanted if x in kept})
  if path.is_dir():
    _remove_others(path, wanted)
  return path


def _remove_others(path: pathlib.Path, wanted: Container[str]) -> None:
  """Removes files that are not wanted from a copy, and empty folders."""
  for folder, _, files in os.walk(path, topdown=False):
    for name in files:
      each = pathlib.Path(folder, name)
      if each.relative_to(path).as_posix() not in wanted:
        each.unlink()
    with contextlib.suppress(OSError):
      os.rmdir(folder)


def _files(address: str) -> dict[str, Wanted]:
  """Returns all files of a folder by name."""
  listed = manifest_lib.read(address)
  if listed is not None and listed.kind != manifest_lib.WORKDIR:
    if not listed.complete:
      raise errors.UserError(
        f"{address} is not complete: a command is writing it, or was stopped. "
        "Wait for its end, or run it again."
      )
    return _digests(address, listed.files)
  objects = buckets.objects(address)
  if not objects:
    raise _nothing_at(address)
  objects.pop(manifest_lib.NAME, None)
  found = {}
  for name, status in objects.items():
    found[name] = Wanted(f"{address}/{name}", stamps.of(status), False)
  if listed is None:
    return found
  # A workdir, whose run may be under way: its list has the checkpoints only.
  rest = {x: found[x] for x in found if not manifest_lib.is_listed(x)}
  return rest | _digests(address, listed.files)


def _digests(address: str, files: dict[str, str]) -> dict[str, Wanted]:
  return {
    name: Wanted(f"{address}/{name}", digest, True)
    for name, digest in files.items()
  }


def _is_good(path: pathlib.Path, kept: Any, wanted: Wanted) -> bool:
  """Whether a copy has every byte of the object.

  Args:
    path: of the copy.
    kept: the object's stamp and the SHA-256 of the copy when it was made.
    wanted: the object.
  """
  try:
    if wanted.is_digest:
      return manifest_lib.digest(path) == wanted.stamp
    known, digest = kept
    return known == wanted.stamp and manifest_lib.digest(path) == digest
  except (OSError, TypeError, ValueError):
    return False


def _copy_all(
  address: str, path: pathlib.Path, missing: dict[str, Wanted]
) -> dict[str, list[str]]:
  """Copies objects; returns the stamp and the SHA-256 of each."""
  files = open_objects(address, path, missing)
  return {
    name: [missing[name].stamp, digest]
    for name, digest in copy(path, files, missing).items()
  }


def open_objects(
  address: str, path: pathlib.Path, missing: dict[str, Wanted]
) -> dict[str, buckets.File]:
  """Returns the objects to copy from a folder, by name.

  Raises:
    ChangedError: one is not there.
    UserError: there is no room for them at `path`.
  """
  files = dict(
    zip(missing, places.of_each(_open, missing.values()), strict=True)
  )
  total = sum(file.status().size for file in files.values())
  if total:
    room.make(path, total)
  if total > (free := shutil.disk_usage(path.parent).free):
    raise translation.OnDiskError(
      f"{address} takes {terminal.size(total)}, and {path.parent} has room for "
      f"{terminal.size(free)}. Free some space, or set XDG_CACHE_HOME to a "
      "folder on another disk."
    )
  if files:
    _LOGGER.info(
      "Copying %s (%s) from its bucket.", address, terminal.size(total)
    )
  return files


def copy(
  path: pathlib.Path,
  files: dict[str, buckets.File],
  wanted: dict[str, Wanted],
) -> dict[str, str]:
  """Copies objects to `path`; returns the SHA-256 of each by name.

  Raises:
    ChangedError: one is not what is wanted.
  """
  done = places.of_each(
    lambda name: _copy(files[name], path / name, wanted[name]),
    files,
    threads=_THREADS,
  )
  return dict(zip(files, done, strict=True))


def _open(wanted: Wanted) -> buckets.File:
  try:
    return buckets.File(wanted.address)
  except FileNotFoundError:
    raise ChangedError(wanted.address, "is missing") from None


def _copy(file: buckets.File, path: pathlib.Path, wanted: Wanted) -> str:
  """Copies an object; returns its SHA-256."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{secrets.token_hex(8)}.partial")
  size, digest = file.status().size, hashlib.sha256()
  try:
    with partial.open("xb") as copy:
      for offset in range(0, size, _PIECE_BYTES):
        piece = file.read(offset=offset, size=_PIECE_BYTES)
        digest.update(piece)
        copy.write(piece)
    if wanted.is_digest and digest.hexdigest() != wanted.stamp:
      raise ChangedError(wanted.address, "is not what was written there")
    if not wanted.is_digest and _open(wanted).status() != file.status():
      raise ChangedError(wanted.address, "has changed while it was read")
    os.replace(partial, path)
  except buckets.ReplacedError:
    raise ChangedError(wanted.address, "was replaced or removed") from None
  finally:
    partial.unlink(missing_ok=True)
  return digest.hexdigest()


def _nothing_at(address: str) -> errors.UserError:
  return errors.UserError(f"There is nothing at {address}; check the name.")


def local_names(path: pathlib.Path) -> set[str]:
  """Returns the paths of all files below a folder, relative to it, with "/"."""
  # Unlike `rglob`, this does not fail if a folder is removed meanwhile.
  return {
    pathlib.Path(folder, name).relative_to(path).as_posix()
    for folder, _, names in os.walk(path)
    for name in names
  }


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
