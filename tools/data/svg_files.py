"""SVG files of a directory or of Debian's package of drawings."""

import contextlib
import io
import lzma
import os
import pathlib
import subprocess
import tarfile
import zlib
from collections.abc import Iterator

import drawings

from clip_jax import errors, regular_files, terminal

PACKAGE = "openclipart-svg"
_PAGE = "https://packages.debian.org/stable/openclipart-svg"


def from_directory(root: pathlib.Path) -> Iterator[tuple[str, bytes | None]]:
  """Yields the paths and the bytes of SVG files, in order; None for links."""
  for folder, folders, files in os.walk(root):
    folders.sort()
    for name in sorted(files):
      path = pathlib.Path(folder, name)
      if path.suffix.lower() != ".svg":
        continue
      own = path.relative_to(root).as_posix()
      if path.is_symlink():
        yield own, None
        continue
      with contextlib.suppress(regular_files.NotRegularError):
        yield own, regular_files.read_regular(path, limit=drawings.MAX_BYTES)


def from_package(path: pathlib.Path) -> Iterator[tuple[str, bytes | None]]:
  """Yields the paths and the bytes of a Debian package's SVG files.

  Raises:
    UserError: it is damaged, or no such package.
  """
  with regular_files.open_regular(path) as file:
    data = _data_of(file, path)
    try:
      with tarfile.open(fileobj=data, mode="r|*") as tar:
        for member in tar:
          name = pathlib.PurePosixPath(member.name)
          if name.suffix.lower() != ".svg":
            continue
          own = name.as_posix().removeprefix("usr/share/openclipart/svg/")
          if not member.isfile():
            yield own, None
          else:
            # One byte too many tells that a file is too large.
            content = tar.extractfile(member)
            yield own, content.read(drawings.MAX_BYTES + 1)
    except (
      tarfile.TarError,
      lzma.LZMAError,
      zlib.error,
      EOFError,
      OSError,
    ) as e:
      raise errors.UserError(
        f"The package {str(path)!r} is damaged ({e}); fetch it again."
      ) from None


class _Part(io.RawIOBase):
  """The next `size` bytes of a file."""

  def __init__(self, file, size):
    self._file, self._left = file, size

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = self._file.read(min(len(buffer), self._left))
    buffer[: len(data)] = data
    self._left -= len(data)
    return len(data)


def _data_of(file, path) -> io.BufferedReader:
  """Returns the packed files of a Debian package: an archive of `ar`."""
  wrong = errors.UserError(
    f"{str(path)!r} is neither a directory nor a Debian package; take "
    f"{PACKAGE}_*.deb from `apt-get download {PACKAGE}` or from {_PAGE}."
  )
  if file.read(8) != b"!<arch>\n":
    raise wrong
  while len(header := file.read(60)) == 60 and header[58:] == b"`\n":
    name = header[:16].rstrip(b" /").decode("ascii", "replace")
    digits = header[48:58].strip()
    if not digits.isdigit():
      break
    if name == "data.tar.zst":
      raise errors.UserError(
        f"The package {str(path)!r} is packed by zstd, which is not read here; "
        f"unpack it (`dpkg-deb -x {path} DIR`) and give DIR."
      )
    if name.startswith("data.tar"):
      return io.BufferedReader(_Part(file, int(digits)))
    file.seek(int(digits) + int(digits) % 2, os.SEEK_CUR)
  raise wrong


def download(folder: pathlib.Path) -> pathlib.Path:
  """Fetches Debian's package into `folder` and returns its path.

  Raises:
    UserError: there is no apt-get, or it failed.
  """
  command = ["apt-get", "download", PACKAGE]
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
  except OSError as error:
    said, done = [str(error)], None
  found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
  if done is None or done.returncode or not found:
    why = f" ({terminal.printable(said[-1], limit=200)})" if said else ""
    raise errors.UserError(
      f"`{' '.join(command)}` did not fetch the package{why}. Run `apt-get "
      f"update` first, or fetch it from {_PAGE} and give it as SOURCE."
    )
  return found[0]
