"""Files that are kept in the user's cache folder, whole or not at all.

A file begins with the SHA-256 of what it holds. What is kept costs nothing but
time where it is lost, so nothing here needs a user's care.
"""

import contextlib
import hashlib
import mmap
import os
import pathlib
import tempfile

DIGEST_BYTES = hashlib.sha256().digest_size


def folder(name: str) -> pathlib.Path:
  """Returns a folder of ours: in XDG_CACHE_HOME, or in ~/.cache."""
  cache = os.environ.get("XDG_CACHE_HOME", "")
  # The specification says that a relative path is to be ignored.
  base = pathlib.Path(cache) if os.path.isabs(cache) else _home() / ".cache"
  return base / "clip_jax" / name


def _home() -> pathlib.Path:
  return pathlib.Path(os.path.expanduser("~"))


def read(path: pathlib.Path) -> bytes | None:
  """Returns the content of `path`; None where others can write there.

  Raises:
    OSError: it is not there, or cannot be read.
    ValueError: it is not what was written.
  """
  content = map_file(path)
  return None if content is None else content.tobytes()


def map_file(path: pathlib.Path) -> memoryview | None:
  """Returns the same as `read`, mapped into memory."""
  if not _is_private(path.parent):
    return None
  with path.open("rb") as file:  # An empty one is a ValueError.
    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
  if hashlib.sha256(content).digest() != digest:
    raise ValueError("it is damaged")
  return content


def note_use(path: pathlib.Path) -> None:
  """Notes that a file was used: those unused for longest go first."""
  os.utime(path)


def write(
  path: pathlib.Path, *content: bytes | memoryview, most_bytes: int
) -> None:
  """Keeps `content`, whole or not at all, and makes room for it.

  Args:
    path: in a folder that holds such files only; it is made where missing.
    *content: one piece after the other; nothing is written where it is larger
      than `most_bytes`.
    most_bytes: of all files of the folder.

  Raises:
    OSError: it cannot be written; then nothing is left of it.
  """
  path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
  if not _is_private(path.parent) or sum(map(len, content)) > most_bytes:
    return
  digest = hashlib.sha256()
  for piece in content:
    digest.update(piece)
  handle, partial = tempfile.mkstemp(dir=path.parent)
  try:
    with open(handle, "wb") as file:
      file.write(digest.digest())
      file.writelines(content)
    os.replace(partial, path)
  except BaseException:  # Ctrl-C, too.
    with contextlib.suppress(OSError):
      os.unlink(partial)
    raise
  _make_room(path.parent, most_bytes)


def _is_private(directory: pathlib.Path) -> bool:
  """Whether nobody else can write there: programs are run as code."""
  if not hasattr(os, "getuid"):  # Windows.
    return True
  status = directory.stat()
  return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _make_room(directory: pathlib.Path, most_bytes: int) -> None:
  entries = [(file.stat(), file) for file in directory.iterdir()]
  entries.sort(key=lambda entry: -entry[0].st_mtime)
  total = 0
  for status, file in entries:
    total += status.st_size
    if total > most_bytes:
      file.unlink(missing_ok=True)
