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


class Changed(Exception):
  """What was to be copied was replaced or removed meanwhile.

  Attributes:
    address: of the object.
  """

  def __init__(self, address: str, said: str):
    super().__init__(f"{address} {said}")
    self.address = address


class DamagedError(errors.UserError):
  """An object that stays other than it is known to be.

  Attributes:
    address: of it.
  """

  def __init__(self, said: str, address: str):
    super().__init__(said)
    self.address = address


class Wanted(NamedTuple):
  """What the copy of an object is known by: its digest, or size and time."""

  address: str
  stamp: str
  is_digest: bool


def checked(address: str | os.PathLike) -> str:
  """Returns the address of what may have a copy, without slashes at its end.

  Raises:
    UserError: it names no bucket, or its copy would lie beside its place.
  """
  text = str(address)
  if set(clients.place(text).split("/")) & {".", ".."}:
    raise errors.UserError(
      f"{text!r} has a part '.' or '..', which leads nowhere in a bucket; give "
      "the address without it."
    )
  return text.rstrip("/")


def local_path(address: str, *, use: str = "read") -> pathlib.Path:
  """Returns where the copy of a file or folder lies, or will lie.

  Args:
    address: in a bucket.
    use: what the copy is for, each of which has its own.

  Raises:
    UserError: as `checked`.
  """
  address = checked(address)
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  name = address.rpartition("/")[2]
  return kept_files.folder(translation.FOLDER) / f"{digest}-{use}" / name


def names(address: str) -> list[str]:
  """Returns the names of all files of a folder: as listed, or all objects.

  Raises:
    UserError: it cannot be read, or is not complete.
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
    address: of it.
    choose: returns those of a folder's files that are copied.
    files: SHA-256 of each file of a folder that is copied, by name, where they
      are known; None takes what its list says, or else what is there.
    use: as in `local_path`.

  Raises:
    DamagedError: an object is not what the list says.
    UserError: there is nothing, it is not complete, or it cannot be read.
  """
  address = checked(address)
  path = local_path(address, use=use)
  with locked(path):
    translation.note(address, path)
    room.use(path)
    return settled(
      lambda: _fetch(address, path, choose, files),
      "Where a command that writes there was stopped, give that again; "
      "otherwise make it anew",
    )


def settled(act: Callable[[], _Result], todo: str) -> _Result:
  """Returns what `act` does, begun again where objects change meanwhile.

  Args:
    act: raises `Changed` where one does.
    todo: what a user can do where they go on to.

  Raises:
    DamagedError: they do.
  """
  for attempt in range(1, _ATTEMPTS + 1):
    try:
      return act()
    except Changed as error:
      if attempt == _ATTEMPTS:
        raise DamagedError(f"{error}. {todo}.", error.address) from None
      time.sleep(_WAIT_SECONDS)
  raise AssertionError


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from changing the copy at `path`.

  Raises:
    OnDiskError: it cannot be written there.
  """
  root = path.parent.parent
  with contextlib.ExitStack() as stack:
    stack.enter_context(translation.writing(path))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = stack.enter_context(path.parent.with_suffix(".lock").open("a"))
    # Some home folders lie where nothing can be locked.
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    # Who had the lock may have removed it, to make room.
    path.parent.mkdir(mode=0o700, exist_ok=True)
    yield


@contextlib.contextmanager
def held(path: pathlib.Path, said: str) -> Iterator[None]:
  """Keeps the copy at `path` for this process, until the end.

  Args:
    path: of the copy.
    said: what another process does that has it.

  Raises:
    UserError: another one has it, or it cannot be written there.
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
    with _told(address):
      status = buckets.status(address)
    wanted = {"": Wanted(address, stamps.of(status), False)}
    for left in path.parent.glob(".*.partial"):  # By a process that was killed.
      left.unlink()
  else:
    found = _files(address) if files is None else _digests(address, files)
    wanted = {name: found[name] for name in choose(sorted(found))}
    for name in wanted:
      manifest_lib.check_name(name)
  if path.is_dir() != ("" not in wanted):
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
  """Removes what is not wanted of a copy, and folders that hold nothing."""
  for folder, _, files in os.walk(path, topdown=False):
    for name in files:
      each = pathlib.Path(folder, name)
      if each.relative_to(path).as_posix() not in wanted:
        each.unlink()
    with contextlib.suppress(OSError):
      os.rmdir(folder)


def _files(address: str) -> dict[str, Wanted]:
  """Returns all files of a folder."""
  listed = manifest_lib.read(address)
  if listed is not None and listed.kind != manifest_lib.WORKDIR:
    if not listed.complete:
      raise errors.UserError(
        f"{address} is not complete: a command is writing it, or was stopped. "
        "Wait for its end, or give it again."
      )
    return _digests(address, listed.files)
  objects = buckets.objects(address)
  if not objects:
    raise errors.UserError(f"There is nothing at {address}; check the name.")
  objects.pop(manifest_lib.NAME, None)
  found = {}
  for name, status in objects.items():
    found[name] = Wanted(f"{address}/{name}", stamps.of(status), False)
  if listed is None:
    return found
  # Of a run that may be under way.
  rest = {x: found[x] for x in found if not manifest_lib.is_listed(x)}
  return rest | _digests(address, listed.files)


def _digests(address: str, files: dict[str, str]) -> dict[str, Wanted]:
  return {
    name: Wanted(f"{address}/{name}", digest, True)
    for name, digest in files.items()
  }


def _is_good(path: pathlib.Path, kept: Any, wanted: Wanted) -> bool:
  """Whether a copy is that of the object, byte by byte."""
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
  """Copies objects, and returns what their copies are known by."""
  files = opened(address, path, missing)
  return {
    name: [missing[name].stamp, digest]
    for name, digest in copy(path, files, missing).items()
  }


def opened(
  address: str, path: pathlib.Path, missing: dict[str, Wanted]
) -> dict[str, buckets.File]:
  """Returns the objects to copy from a folder, by name.

  Raises:
    Changed: one is not there.
    UserError: there is no room for them at `path`.
  """
  files = dict(
    zip(missing, places.of_each(_opened, missing.values()), strict=True)
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
  """Copies objects to `path`; returns the digest of each.

  Raises:
    Changed: one is not what is wanted.
  """
  done = places.of_each(
    lambda name: _copy(files[name], path / name, wanted[name]),
    files,
    threads=_THREADS,
  )
  return dict(zip(files, done, strict=True))


def _opened(wanted: Wanted) -> buckets.File:
  try:
    return buckets.File(wanted.address)
  except FileNotFoundError:
    raise Changed(wanted.address, "is missing") from None


def _copy(file: buckets.File, path: pathlib.Path, wanted: Wanted) -> str:
  """Copies an object; returns its digest."""
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
      raise Changed(wanted.address, "is not what was written there")
    if not wanted.is_digest and _opened(wanted).status() != file.status():
      raise Changed(wanted.address, "has changed while it was read")
    os.replace(partial, path)
  except buckets.ReplacedError:
    raise Changed(wanted.address, "was replaced or removed") from None
  finally:
    partial.unlink(missing_ok=True)
  return digest.hexdigest()


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
  try:
    yield
  except FileNotFoundError:
    raise errors.UserError(
      f"There is nothing at {address}; check the name."
    ) from None


def local_names(path: pathlib.Path) -> set[str]:
  """Returns the names of all files of a folder, as those of its objects."""
  # Unlike `rglob`, it is not stopped by a folder that is removed meanwhile.
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
