"""The list of a folder's files that is written after all of them."""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

from clip_jax import buckets, errors, json_text, regular_files
from clip_jax.buckets import writing

NAME = "clip_jax.files.json"
WORKDIR = "workdir"
# The folder of a workdir whose files are there only where they are listed; the
# others are always the newest.
CHECKPOINTS = "checkpoints"
_OF_A_STEP = re.compile(rf"{CHECKPOINTS}/([0-9]+)/.")
_MOST_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a folder in a bucket holds.

  Attributes:
    kind: of the folder, "model" or `WORKDIR`.
    files: SHA-256 in hexadecimal of each file, by its name in the folder.
    writer: what the process that wrote it is told from others by.
    complete: whether all of the files are there.
  """

  kind: str
  files: dict[str, str]
  writer: str = ""
  complete: bool = True

  def to_json(self) -> bytes:
    """Returns it as it is stored."""
    return json.dumps(dataclasses.asdict(self), indent=1).encode()


def read(address: str) -> Manifest | None:
  """Returns the list of a folder; None where it has none.

  Raises:
    UserError: it is not what `write` writes, or cannot be read.
  """
  place = f"{address}/{NAME}"
  try:
    data = buckets.read_current(place, limit=_MOST_BYTES)
  except FileNotFoundError:
    return None
  found = json_text.parse(data, what=place)
  try:
    return _checked(found)
  except (AttributeError, KeyError, TypeError, ValueError):
    raise errors.DamagedError(
      f"{place} is damaged. Restore it, or remove it to read the folder as it "
      "is, where no command has written there since."
    ) from None


def _checked(found: dict[str, Any]) -> Manifest:
  files = found["files"]
  for name, digest in files.items():
    check_name(name)
    if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size:
      raise ValueError(digest)
    if found["kind"] == WORKDIR and not _OF_A_STEP.match(name):
      raise ValueError(name)
  return Manifest(
    kind=str(found["kind"]),
    files=dict(files),
    writer=str(found["writer"]),
    complete=found["complete"] is True,
  )


def write(address: str, manifest: Manifest) -> None:
  """Writes the list of a folder, or replaces it."""
  writing.put(f"{address}/{NAME}", manifest.to_json())


def is_listed(name: str) -> bool:
  """Whether a file of a workdir is there only where its list has it."""
  return name.startswith(f"{CHECKPOINTS}/")


def step(name: str) -> int | None:
  """Returns the step of the checkpoint that a file of a workdir is of."""
  match = _OF_A_STEP.match(name)
  return int(match[1]) if match else None


def is_path(name: str) -> bool:
  """Whether an object's name can be the path of a file in any folder."""
  return all(map(regular_files.is_plain_name, name.split("/")))


def check_name(name: str) -> None:
  """Raises UserError for an object that has no place in a local folder."""
  if not is_path(name):
    raise errors.UserError(
      f"An object is named {name!r:.200}, which cannot be the path of a file; "
      "rename or remove it."
    )


def digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
