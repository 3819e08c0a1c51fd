"""The workdir of a run in a bucket: worked on in a copy on the disk.

Another thread copies what has changed into the bucket. A checkpoint counts when
the list of files has it, which is written after all of its objects, and these
after the metrics and the ledger, which a resumed run cuts at its step: killed
at any moment, a run goes on from the bucket as it would from the disk.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from clip_jax import buckets, errors
from clip_jax.buckets import attempts, writing
from clip_jax.mirrors import (
  fetching,
  good_checkpoints,
  run_files,
  translation,
  uploads,
)
from clip_jax.mirrors import manifest as manifest_lib

_LOGGER = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # Between two looks for a new checkpoint.
_METRICS_SECONDS = 30.0  # Between two copies of files that grow.
_CONFIG = "config.json"  # By which a folder is known as a workdir.


class Workdir:
  """The workdir of a run on a disk, which all of its processes see.

  Attributes:
    path: of the folder.
    is_shared: whether all processes work in the same folder.
  """

  is_shared = True

  def __init__(self, path: str | os.PathLike):
    """Names it; it need not exist."""
    self.path = pathlib.Path(path)

  def claim(self) -> None:
    """Begins to write there; the run will train."""

  def check(self) -> None:
    """Raises UserError if the run cannot go on in it; never waits."""

  def address_of(self, path: str | os.PathLike | None) -> str | None:
    """Returns the path or address at which users find the file at `path`.

    None stays None.
    """
    return None if path is None else str(path)


class _InBucket(Workdir):
  """The workdir of a run in a bucket, and the process's own copy of it."""

  def __init__(
    self,
    address: str,
    *,
    process: int,
    processes: int,
    everywhere: Callable[[bool], bool],
  ):
    super().__init__(fetching.local_path(address, use=f"run{process}"))
    self.is_shared = processes == 1
    self._address, self._process = address, process
    self._everywhere = everywhere
    self._writer = (
      f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    )
    self._manifest = manifest_lib.Manifest(
      manifest_lib.WORKDIR, {}, writer=self._writer
    )
    self._found: manifest_lib.Manifest | None = None
    self._good: dict[str, str] = {}  # Of its files, those of good checkpoints.
    self._stamps: dict[str, tuple[int, int]] = {}
    self._stop = threading.Event()
    self._lost: errors.UserError | None = None
    self._failure: BaseException | None = None
    self._thread = threading.Thread(target=self._follow, daemon=True)
    self._last = threading.Thread(target=self._copy_the_rest, daemon=True)

  def begin(self) -> None:
    """Makes the copy what the bucket holds."""
    translation.note(self._address, self.path)
    self._found = self._remote()
    self._good = {} if self._found is None else self._found.files
    if self.is_shared and self._goes_on(self._found):
      return
    # Stopped from here on, the copy is not whole: the next run begins anew.
    self._note().unlink(missing_ok=True)
    if self._found is not None or buckets.entries(self._address):
      use = f"run{self._process}"
      good_checkpoints.read_good(
        self._address, run_files.worth, lambda path: path, use=use
      )
      if self._found is not None:  # What is damaged is not there any more.
        steps = set(run_files.steps_in(self.path))
        files = self._found.files
        self._good = {x: files[x] for x in files if run_files.step(x) in steps}
    else:
      shutil.rmtree(self.path, ignore_errors=True)

  def claim(self) -> None:
    """Makes the bucket's folder that of this run, and begins to copy."""
    if self._process == 0:
      if self._remote() != self._found:
        raise errors.UserError(
          f"{self._address} has changed since it was looked at: another run "
          "goes on there. Wait until it ends, stop it, or take a new workdir."
        )
      if self._found is None:  # Somebody may have copied a run there.
        files = run_files.digests(self.path, run_files.steps_in(self.path))
      else:
        files = self._good
      self._write(dataclasses.replace(self._manifest, files=files))
      self._note().write_text(self._writer)
      self._remove_unlisted()
    self._thread.start()

  def check(self) -> None:
    """Raises UserError if another run has taken the bucket's folder."""
    if self._lost is not None:
      raise self._lost

  def address_of(self, path: str | os.PathLike | None) -> str | None:
    """Returns the address in the bucket of what lies at `path`."""
    if path is None:
      return None
    return f"{self._address}/{pathlib.Path(path).relative_to(self.path)}"

  def _remote(self) -> manifest_lib.Manifest | None:
    remote = manifest_lib.read(self._address)
    if remote is not None and remote.kind == manifest_lib.WORKDIR:
      return remote
    try:
      names = [entry.name for entry in buckets.entries(self._address)]
    except FileNotFoundError:
      raise errors.UserError(
        f"There is no bucket for {self._address}; make it, or name another."
      ) from None
    strange = [x for x in names if not x.startswith(".")]
    if strange and (remote is not None or _CONFIG not in names):
      raise errors.UserError(
        f"{self._address} is no workdir: it holds {', '.join(strange[:3])}. "
        "Name a new or an empty folder."
      )
    return None

  def _goes_on(self, remote: manifest_lib.Manifest | None) -> bool:
    """Whether the copy is what became of the bucket's content here."""
    try:
      writer = self._note().read_text()
    except (OSError, ValueError):
      return False
    if remote is None or writer != remote.writer:
      return False
    there = max(run_files.steps_of(remote.files), default=-1)
    return (
      self.path.is_dir()
      and max(run_files.steps_in(self.path), default=-1) >= there
    )

  def _note(self) -> pathlib.Path:
    """Returns the file that names the run whose folder the copy is."""
    return self.path.parent.with_suffix(".written")

  def _follow(self) -> None:
    """Copies what changes, until told to stop."""
    copied = time.monotonic()
    while not self._stop.wait(_LOOK_SECONDS):
      listed = run_files.steps_of(self._manifest.files)
      has_new = (
        self._process == 0 and set(run_files.steps_in(self.path)) - listed
      )
      if not has_new and time.monotonic() - copied < _METRICS_SECONDS:
        continue
      try:
        self.copy()
      except errors.UnreachableError as error:
        if not self._stop.is_set():  # Else `end` tells of it.
          _LOGGER.warning("%s It is tried again.", error)
      except errors.UserError as error:
        self._lost = error
        return
      except Exception as error:  # Whatever it is, the next time may be better.
        _LOGGER.warning(
          "%s is not copied into %s (%s); it is tried again.",
          *(self.path, self._address, errors.first_line(error)),
        )
      copied = time.monotonic()

  def copy(self) -> None:
    """Copies all that has changed into the bucket."""
    if self._process:
      self._copy_changed(
        [
          x
          for x in run_files.changing(self.path)
          if run_files.is_of(x, self._process)
        ]
      )
      return
    # Before the metrics, which are then at least as far as these.
    steps = set(run_files.steps_in(self.path))
    self._check_owner()
    self._copy_changed(run_files.changing(self.path))
    listed = run_files.steps_of(self._manifest.files)
    for step in sorted(steps - listed, reverse=True):
      self._commit(step)
    steps = set(run_files.steps_in(self.path))
    if listed <= steps or not steps & run_files.steps_of(self._manifest.files):
      return  # Nothing to remove, or nothing newer there yet.
    kept = {
      x: y
      for x, y in self._manifest.files.items()
      if run_files.step(x) in steps
    }
    self._check_owner()
    self._write(dataclasses.replace(self._manifest, files=kept))
    self._remove_unlisted()

  def _copy_changed(self, names: Sequence[str]) -> None:
    for name in names:
      # A file may be removed at any time.
      with contextlib.suppress(FileNotFoundError):
        found = (self.path / name).stat()
        stamp = found.st_size, found.st_mtime_ns
        if self._stamps.get(name) != stamp:
          writing.put_file(f"{self._address}/{name}", self.path / name)
          self._stamps[name] = stamp

  def _commit(self, step: int) -> None:
    """Copies a checkpoint, and lists its files."""
    try:
      digests = run_files.digests(self.path, [step])
      uploads.put_files(self.path, self._address, digests)
      # It may be removed meanwhile, being one too many.
      is_whole = digests and sorted(digests) == run_files.files_of(
        self.path, step
      )
    except FileNotFoundError:
      is_whole = False
    if is_whole:
      self._check_owner()
      files = self._manifest.files | digests
      self._write(dataclasses.replace(self._manifest, files=files))
    else:
      _LOGGER.warning(
        "The checkpoint of step %d was removed before all of it was in %s. "
        "Where that goes on, raise checkpoint.keep, or save less often.",
        *(step, self._address),
      )

  def _check_owner(self) -> None:
    """Raises UserError where the bucket's folder is not this run's any more."""
    found = manifest_lib.read(self._address)
    if found is None or found.writer != self._writer:
      said = (
        f"The list of files in {self._address} was removed"
        if found is None
        else f"Another run has taken {self._address} ({found.writer})"
      )
      raise translation.OnDiskError(
        f"{said}; this one ends, and nothing of it is copied there anymore. "
        f"What it has saved lies in {self.path}, until this machine trains "
        f"there again."
      )

  def _write(self, manifest: manifest_lib.Manifest) -> None:
    """Writes the list of files."""
    manifest_lib.write(self._address, manifest)
    self._manifest = manifest

  def _remove_unlisted(self) -> None:
    """Removes checkpoints of the bucket that its list does not have."""
    folder = f"{self._address}/{manifest_lib.CHECKPOINTS}"
    listed = run_files.steps_of(self._manifest.files)
    for entry in buckets.entries(folder):
      is_step = entry.is_folder and entry.name.isdecimal()
      if is_step and int(entry.name) not in listed:
        writing.remove_folder(f"{folder}/{entry.name}")

  def end(self, kind: type[BaseException] | None) -> None:
    """Copies what is left, and removes the copy on the disk after all is done.

    Raises:
      UserError: not all could be copied.
    """
    if self._thread.ident is None:
      return  # The run has not begun.
    self._stop.set()
    if kind is KeyboardInterrupt:
      self._give_up()
      return
    try:
      self._finish(kind)
    except KeyboardInterrupt:
      self._give_up()
      raise

  def _give_up(self) -> None:
    with attempts.given_up():
      self._thread.join()
      if self._last.ident is not None:
        self._last.join()
    _LOGGER.warning("%s", self._what_is_there())

  def _copy_the_rest(self) -> None:
    self._thread.join()
    try:
      if self._lost is None:
        self.copy()
    except BaseException as error:
      self._failure = error

  def _finish(self, kind: type[BaseException] | None) -> None:
    self._last.start()
    if kind is None or kind is SystemExit:  # All processes end so.
      # Whoever is done waits here: JAX waits only for minutes at its end.
      while not self._everywhere(not self._last.is_alive()):
        if self._last.is_alive():
          self._last.join(_LOOK_SECONDS)
        else:
          time.sleep(_LOOK_SECONDS)
    self._last.join()
    if self._lost is not None:
      if kind is None:
        raise self._lost
      return
    try:
      if self._failure is not None:
        raise self._failure
    except (errors.UserError, OSError) as error:
      said = f"{error} {self._what_is_there()}"
      if kind is None or kind is SystemExit:
        raise translation.OnDiskError(said) from error
      _LOGGER.warning("%s", said)
    else:
      if kind is None:
        self._note().unlink(missing_ok=True)  # Before the copy is not whole.
        shutil.rmtree(self.path, ignore_errors=True)

  def _what_is_there(self) -> str:
    if self._process:
      return f"What is newer of process {self._process} lies in {self.path}."
    steps = run_files.steps_of(self._manifest.files)
    holds = f"step {max(steps)}" if steps else "no checkpoint"
    if self.is_shared:
      way_on = "from where the same command goes on here"
    else:
      way_on = "until the same command goes on with what the bucket holds"
    return (
      f"{self._address} holds {holds}; what is newer lies in {self.path}, "
      f"{way_on}."
    )


@contextlib.contextmanager
def opened(
  workdir: str | os.PathLike,
  *,
  process: int,
  processes: int,
  everywhere: Callable[[bool], bool] = bool,
) -> Iterator[Workdir]:
  """Yields the workdir at a path, or at an address in a bucket.

  Args:
    workdir: of a run; it need not exist.
    process: the number of this process of the run.
    processes: how many there are.
    everywhere: whether something is true of all of them; each calls it.

  Raises:
    UserError: the bucket's folder is another's, or cannot be read or written.
  """
  if not buckets.is_address(workdir):
    yield Workdir(workdir)
    return
  found = _InBucket(
    fetching.checked(workdir),
    process=process,
    processes=processes,
    everywhere=everywhere,
  )
  with fetching.held(found.path, f"Another training is under way in {workdir}"):
    found.begin()
    try:
      yield found
    except BaseException as error:
      found.end(type(error))
      raise
    found.end(None)
