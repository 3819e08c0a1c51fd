"""What the files of an index are, and how to tell that they are whole."""

import hashlib
import pathlib
import re
from typing import Any

from clip_jax import errors, json_text

FORMAT = "clip_jax index"
VERSION = 1
META = "meta.json"
DTYPES = ("float32", "float16")

# Every file of an index, finished or not.
OWN_FILE = re.compile(
  r"meta\.json|(embeddings-[0-9a-f]{16}\.npy|records-[0-9a-f]{16}\.jsonl)"
  r"|\.partial-.*"
)


# What must be in meta.json, and its type.
_META_FIELDS = {
  "version": int,
  "count": int,
  "embed_dim": int,
  "dtype": str,
  "files": dict,
  "model": str,
  "fingerprint": str,
}


def read_meta(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the checked content of `meta.json`.

  Raises:
    UserError: it is missing, or not what a `Builder` writes.
  """
  try:
    meta = json_text.read(directory / META)
  except FileNotFoundError:
    raise errors.UserError(
      f"{directory} is no index: it has no {META}. `clip-jax embed MODEL "
      "--data DATA --out DIR` makes one."
    ) from None
  except NotADirectoryError:
    raise errors.UserError(f"{directory} is a file, no index.") from None
  if meta.get("format") != FORMAT:
    raise errors.UserError(f"{directory / META} is no index of clip_jax.")
  if meta.get("version") != VERSION:
    raise errors.UserError(
      f"{directory} has format version {meta.get('version')}, this program "
      f"reads {VERSION}; make the index again with `clip-jax embed`."
    )
  for field, kind in _META_FIELDS.items():
    if not isinstance(meta.get(field), kind):
      raise errors.UserError(
        f"{directory / META} is damaged: {field} must be a {kind.__name__}, "
        f"got {meta.get(field)!r}."
      )
  for part in ("embeddings", "records"):
    entry = meta["files"].get(part)
    # A plain name of our own pattern: never a path out of the directory.
    if (
      not isinstance(entry, dict)
      or not isinstance(name := entry.get("name"), str)
      or not OWN_FILE.fullmatch(name)
      or type(entry.get("bytes")) is not int
      or not isinstance(entry.get("sha256"), str)
    ):
      raise errors.UserError(
        f"{directory / META} is damaged: files.{part} is {entry!r}."
      )
  return meta


def sha256(path: pathlib.Path) -> str:
  """Returns the checksum of a file in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
