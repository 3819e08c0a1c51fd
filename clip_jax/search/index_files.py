"""Names, checks and number formats of the files of an index."""

import hashlib
import io
import os
import pathlib
import re
import stat
from typing import Any

import numpy as np

from clip_jax import buckets, errors, json_text

FORMAT = "clip_jax index"
VERSION = 2
META = "meta.json"

# The files with the data; each name has a digest of the content.
PARTS = {
  "embeddings": re.compile(r"embeddings-[0-9a-f]{16}\.npy"),
  "records": re.compile(r"records-[0-9a-f]{16}\.parquet"),
}
_OF_VERSION_1 = re.compile(r"records-[0-9a-f]{16}\.jsonl")
_AGAIN = "Make the index again with `clip-jax embed`."
_PARTIAL = re.compile(r"\.partial-.*")
MOST_META_BYTES = 1 << 20

# The fields that meta.json must have, and their types.
_META_FIELDS = {
  "version": int,
  "count": int,
  "embed_dim": int,
  "dtype": str,
  "files": dict,
  "model": str,
  "fingerprint": str,
}


def is_own(name: str) -> bool:
  """Whether `name` is one of an index's files, finished or not."""
  patterns = (*PARTS.values(), _OF_VERSION_1, _PARTIAL)
  return name == META or any(pattern.fullmatch(name) for pattern in patterns)


def open_file(directory: pathlib.Path, name: str) -> io.BufferedReader:
  """Opens a regular file of an index; follows no link.

  Raises:
    FileNotFoundError: it is not there.
    UserError: it is a link, which could lead anywhere, or not a regular file.
  """
  path = directory / name
  try:
    # O_NONBLOCK, because opening a pipe would wait.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
  except OSError as error:
    if not path.is_symlink():
      raise
    raise errors.UserError(
      f"{path} is a link, but an index must contain its files themselves. Copy "
      "the index with its files, or make it again with `clip-jax embed`."
    ) from error
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise errors.UserError(
      f"{path} is not a regular file, so this is no index of clip_jax."
    )
  return os.fdopen(descriptor, "rb")


def read_meta(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the checked content of `meta.json`.

  Raises:
    UserError: it is missing, or not what a `Builder` writes.
  """
  try:
    with open_file(directory, META) as file:
      meta = json_text.parse(
        file.read(MOST_META_BYTES), what=str(directory / META)
      )
  except FileNotFoundError:
    raise no_index(directory) from None
  except NotADirectoryError:
    raise errors.UserError(
      f"{directory} is a file, so it is no index; give the directory of one."
    ) from None
  return check_meta(meta, directory)


def no_index(directory: str | os.PathLike) -> errors.UserError:
  """Returns the error for a place without an index."""
  is_there = buckets.is_address(directory) or os.path.exists(directory)
  what = f"is no index: it has no {META}" if is_there else "does not exist"
  near = "" if is_there else errors.beside(directory)
  return errors.UserError(
    f"{directory} {what}.{near} `clip-jax embed MODEL --data DATA --out DIR` "
    "makes an index."
  )


def check_meta(
  meta: dict[str, Any], directory: str | os.PathLike
) -> dict[str, Any]:
  """Returns `meta` if it is what a `Builder` writes.

  Args:
    meta: the content of `meta.json`.
    directory: where it is from, for messages: a directory or an address.

  Raises:
    UserError: it is not what a `Builder` writes.
  """
  where = f"{directory}/{META}"
  if meta.get("format") != FORMAT:
    raise errors.UserError(f"{where} is no index of clip_jax.")
  if meta.get("version") != VERSION:
    raise errors.UserError(
      f"{directory} has format version {meta.get('version')}, this program "
      f"reads {VERSION}. {_AGAIN}"
    )
  for field, kind in _META_FIELDS.items():
    if not isinstance(meta.get(field), kind):
      raise errors.UserError(
        f"{where} is damaged: {field} must be a {kind.__name__}, "
        f"got {meta.get(field)!r}. {_AGAIN}"
      )
  for part, pattern in PARTS.items():
    entry = meta["files"].get(part)
    # The pattern also keeps paths out that lead elsewhere.
    if not (
      isinstance(entry, dict)
      and isinstance(entry.get("name"), str)
      and pattern.fullmatch(entry["name"])
      and isinstance(entry.get("bytes"), int)
      and entry["bytes"] > 0
      and isinstance(entry.get("sha256"), str)
    ):
      raise errors.UserError(
        f"{where} is damaged: files.{part} is {entry!r}. {_AGAIN}"
      )
  return meta


def stored(embeds: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns unit embeddings (n, embed) as an index of this type stores them.

  For int8 each row is scaled so that its largest magnitude becomes 127. The
  scale is not stored: `floats` restores it, because rows have unit length.
  """
  if dtype == np.int8:
    embeds = embeds.astype(np.float32)
    largest = np.abs(embeds).max(axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    embeds = np.rint(127 * (embeds / np.maximum(largest, tiny)))
  return np.ascontiguousarray(embeds, dtype)


def floats(embeds: np.ndarray) -> np.ndarray:
  """Returns stored embeddings (n, embed) in float32; int8 as unit vectors."""
  rows = np.asarray(embeds, np.float32)
  if embeds.dtype != np.int8:
    return rows
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.maximum(length, 1)  # Of zeros alone the length is 0.


def sha256(file: io.BufferedIOBase) -> str:
  """Returns the checksum of an open file in hexadecimal."""
  file.seek(0)
  return hashlib.file_digest(file, "sha256").hexdigest()
