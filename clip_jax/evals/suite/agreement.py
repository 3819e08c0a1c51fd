"""What the processes of a suite agree on before they measure a set together.

Each opens the data of its own host. A set that one of them lacks, or has
otherwise, is told as wrong by all of them: none waits for another.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

from clip_jax import errors, hosts
from clip_jax.evals.suite import result_files


class Prepared(Protocol):
  """A data set that a process has opened."""

  @property
  def key(self) -> str:
    """The digest of all that its measures depend on."""
    ...

  @property
  def in_words(self) -> str:
    """The DATA address of its test images, and their number."""
    ...


Some = TypeVar("Some", bound=Prepared)


def prepare(open_set: Callable[[], Some | None]) -> Some | None:
  """Returns the set that all processes have opened; None where it is missing.

  Args:
    open_set: opens a set on this process; it may raise UserError.

  Raises:
    UserError: the set is wrong, on all processes or on one; or the processes
      have not the same.
  """
  opened, key, problem, seen = None, "", "", "nothing"
  try:
    if (opened := open_set()) is not None:
      key, seen = opened.key, opened.in_words
  except errors.UserError as error:
    problem = seen = str(error)
  said = hosts.exchanged(json.dumps([key, problem, seen]))
  found = [json.loads(text) for text in said]
  for process, other in enumerate(found):
    if other[:2] != found[0][:2]:
      raise errors.UserError(
        f"Not all processes find the same data. Process 0: {found[0][2]}; "
        f"process {process}: {other[2]}. Copy the same files to all hosts."
      )
  if problem:
    raise errors.UserError(problem)
  return opened


def read_kept(
  out: pathlib.Path, name: str, *, key: str, files_hash: Callable[[], str]
) -> dict[str, Any] | None:
  """Returns, on every process, the finished result that process 0 has.

  Args:
    out: the directory of the results, which other hosts need not see.
    name: of the set.
    key: of a result that counts.
    files_hash: returns that of the set's files on this host; other hosts may
      have copied theirs at other times.
  """

  def read():
    return result_files.read(out, name, key=key, files_hash=files_hash())

  return on_first(read)


def on_first(read: Callable[[], Any]) -> Any:
  """Returns, on every process, what process 0 has read; JSON can hold it.

  Raises:
    UserError: process 0 has raised one.
  """
  found, problem = None, ""
  if jax.process_index() == 0:
    try:
      found = read()
    except errors.UserError as error:
      problem = str(error)
  found, problem = json.loads(hosts.exchanged(json.dumps([found, problem]))[0])
  if problem:
    raise errors.UserError(problem)
  return found


def write(
  out: pathlib.Path, result: dict[str, Any], *, files_hash: Callable[[], str]
) -> None:
  """Writes a set's result, and the hash of its files, on process 0 only."""
  if jax.process_index() == 0:
    result_files.write(out, {**result, "files_hash": files_hash()})
