"""Which files of a workdir are copied, and which checkpoint each is of."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from clip_jax.mirrors import fetching
from clip_jax.mirrors import manifest as manifest_lib

# Of this machine, or of no use: compiled programs, damaged checkpoints.
_STAY = ("compiled", "quarantine")


def worth(names: Sequence[str]) -> Sequence[str]:
  """Returns the files that belong into a copy."""
  return [x for x in names if manifest_lib.is_listed(x) or is_copied(x)]


def is_copied(name: str) -> bool:
  """Whether a file of a workdir, of no checkpoint, belongs into the bucket."""
  parts = name.split("/")
  return not (
    manifest_lib.is_listed(name)
    or parts[0] in _STAY
    or parts[-1].endswith(".partial")
    or any(part.startswith(".") for part in parts)
    or not manifest_lib.is_path(name)
  )


def is_of(name: str, process: int) -> bool:
  """Whether a file is one that a process beside the first writes."""
  return name == f"ledger-{process}.jsonl" or name.startswith("plugins/")


def step(name: str) -> int:
  """Returns the step of a listed file."""
  return int(name.split("/")[1])


def steps_of(files: Mapping[str, str]) -> set[int]:
  """Returns the steps of listed files."""
  return {step(name) for name in files}


def steps_in(path: pathlib.Path) -> list[int]:
  """Returns the steps of a workdir's checkpoints; all are complete."""
  try:
    names = os.listdir(path / manifest_lib.CHECKPOINTS)
  except FileNotFoundError:
    return []
  return [int(name) for name in names if name.isdecimal()]


def files_of(path: pathlib.Path, step: int) -> list[str]:
  """Returns the files of a workdir's checkpoint, in order."""
  folder = f"{manifest_lib.CHECKPOINTS}/{step}"
  names = fetching.local_names(path / folder)
  return sorted(f"{folder}/{name}" for name in names)


def digests(path: pathlib.Path, steps: Sequence[int]) -> dict[str, str]:
  """Returns the SHA-256 of each file of these checkpoints of a workdir."""
  names = [name for step in steps for name in files_of(path, step)]
  return {name: manifest_lib.digest(path / name) for name in names}


def changing(path: pathlib.Path) -> list[str]:
  """Returns the files of a workdir that may change and are copied, in order."""
  return sorted(filter(is_copied, fetching.local_names(path)))
