"""Indexes in buckets: copied to be read, and written by whole objects."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from clip_jax import buckets, errors, json_text, mirrors
from clip_jax.search import holding, index_files

_ATTEMPTS = 3  # A build may just have replaced the index.


def fetched(address: str) -> pathlib.Path:
  """Returns the path of a copy of the index at an address in a bucket.

  Raises:
    UserError: it is no index, or cannot be read.
  """
  address = mirrors.checked(address)
  for attempt in range(1, _ATTEMPTS + 1):
    data = _meta(address)
    found = json_text.parse(data, what=f"{address}/{index_files.META}")
    meta = index_files.check_meta(found, address)
    files = {x["name"]: x["sha256"] for x in meta["files"].values()}
    files[index_files.META] = hashlib.sha256(data).hexdigest()
    try:
      return mirrors.fetched(address, files=files)
    except errors.UserError:
      if attempt == _ATTEMPTS or _meta(address) == data:
        raise
  raise AssertionError


def _meta(address: str) -> bytes:
  place = f"{address}/{index_files.META}"
  try:
    return buckets.read_current(place, limit=index_files.MOST_META_BYTES)
  except FileNotFoundError:
    raise index_files.no_index(address) from None


@contextlib.contextmanager
def written(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the directory to build an index in, which then goes to its bucket.

  What a stopped build has done stays on this machine, where it goes on.

  Args:
    directory: of the index, or its address.

  Raises:
    UserError: something else is there, or it cannot be written.
  """
  if not buckets.is_address(directory):
    yield pathlib.Path(directory)
    return
  address = mirrors.checked(directory)
  holding.check_replaceable(address)
  path = mirrors.local_path(address, use="write")
  with mirrors.held(path, f"Another `clip-jax embed` is writing {address}"):
    yield path
    try:
      mirrors.replace_files(
        path, address, last=index_files.META, is_own=index_files.is_own
      )
    except errors.UnreachableError as error:
      raise errors.UserError(
        f"{error} The whole index is in {path}: its files may be copied from "
        f"there by hand, {index_files.META} last, instead of making it anew."
      ) from error
    shutil.rmtree(path, ignore_errors=True)
