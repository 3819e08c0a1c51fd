"""Copies any source into ArrayRecord files."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clip_jax import errors, json_text, preprocess, whole_files
from clip_jax.data import account, copying, processes
from clip_jax.data import record as record_lib
from clip_jax.data.sources import array_record

_LOGGER = logging.getLogger(__name__)

SHARD_BYTES = 512 * 2**20
FOUND = "found"  # In the partial directory: what an interrupted run keeps.
_LOCK = ".lock"


def prepare(
  source: record_lib.Source,
  out: str | os.PathLike,
  *,
  address: str = "",
  drop_bad: bool = False,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  shortest_side: int | None = None,
  quality: int = copying.QUALITY,
  workers: int = 1,
  shard_bytes: int = SHARD_BYTES,
  on_record: Callable[[int], None] | None = None,
  about: Mapping[str, Any] | None = None,
  beside: Mapping[str, bytes] | None = None,
  partial: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Writes `source` to the directory `out`, for `arrayrecord:OUT`.

  Bad slots are kept as bad slots, so that training reads the copy in the order
  of the original, record by record. A file that does not begin as an image is a
  bad slot too, and none of its bytes are copied: a table can name any file.

  The directory appears complete or not at all; an interrupted run keeps its
  whole files for the next one with the same arguments, and the images that it
  has decoded for the file that is not whole. The bytes are the same
  for any number of workers. Where the directory is there already and
  was made from the same source in the same way, nothing is done.

  Args:
    source: what to copy.
    out: a new directory.
    address: where `source` came from, for the record.
    drop_bad: decode every image and leave bad slots out; the copy then has an
      order of its own.
    limits: what is too large to be used.
    shortest_side: in pixels; larger images are stored as JPEGs of this size,
      others as they are. None stores all as they are.
    quality: of these JPEGs, from 1 to 100.
    workers: processes that read and decode; one does so in this process.
    shard_bytes: a new file is begun after this many.
    on_record: called with the number of records done.
    about: further entries of `dataset.json`.
    beside: further files, by name.
    partial: where to write, if the caller is within `partial_directory` of
      `out`; it becomes `out`.

  Returns:
    The content of `dataset.json`, and `written`: whether anything was. With a
    `shortest_side`, `resized` is the number of images made smaller.

  Raises:
    UserError: `out` holds something else, or is being written right now; a size
      or quality is none.
  """
  rule = copying.Rule(drop_bad, shortest_side, quality, limits)
  errors.check_out(out)
  out = pathlib.Path(os.path.expanduser(out))
  made = existing(out, source.fingerprint, limits, rule=rule)
  if made is not None:
    return made | {"written": False}
  opened = (
    partial_directory(out)
    if partial is None
    else contextlib.nullcontext(partial)
  )
  with opened as partial:
    summary = _described(source, address, rule, about or {}) | copying.write(
      source,
      partial,
      rule,
      keep=partial / FOUND,
      shard_bytes=shard_bytes,
      workers=workers,
      on_record=on_record,
    )
    _check_any(summary["records"], summary["bad"], drop_bad=drop_bad)
    sidecar = json.dumps(summary, indent=2).encode() + b"\n"
    finish(partial, out, {array_record.SIDECAR: sidecar, **(beside or {})})
  return summary | {"written": True}


def read_sealed(
  made: Mapping[str, Any], name: str, out: str | os.PathLike
) -> dict[str, Any]:
  """Returns a sealed entry about how a copy was made.

  Args:
    made: the content of the copy's `dataset.json`.
    name: of the entry.
    out: the directory, for messages.

  Raises:
    UserError: the entry is missing, damaged or was changed by hand.
  """
  try:
    return json_text.unseal(made[name])
  except (KeyError, AttributeError, ValueError):
    raise errors.UserError(
      f"{str(out)!r} is there already, but what it says of how it was made, "
      f"{name!r}, is damaged or was changed. Remove it, or give another name."
    ) from None


def _check_any(records: int, bad: dict[str, int], *, drop_bad: bool) -> None:
  """Raises UserError where none of the records can be used."""
  if records > (0 if drop_bad else sum(bad.values())):
    return
  said = ", ".join(f"{count} {reason}" for reason, count in bad.items())
  error = errors.UserError(
    f"The source has no usable record to write ({said or 'it is empty'}); "
    "`clip-jax data inspect` says more."
  )
  error.payload = {"records": 0, "bad": bad}
  raise error


def _described(
  source: record_lib.Source,
  address: str,
  rule: copying.Rule,
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the fields of `dataset.json` that need no record."""
  return {
    "format": array_record.FORMAT,
    "version": array_record.VERSION,
    "class_names": source.class_names,
    "templates": source.templates,
    "source": {"address": address, **_origin(source.fingerprint, rule)},
    "account": account.of(source).to_dict(),
    **about,
  }


def _origin(fingerprint: str, rule: copying.Rule) -> dict[str, Any]:
  """Returns the fingerprint of a copy's source, and how it was copied."""
  return {"fingerprint": fingerprint, **rule.to_dict()}


def finish(
  partial: pathlib.Path, out: pathlib.Path, files: Mapping[str, bytes]
) -> None:
  """Renames a partial directory to `out`, once everything is written.

  Args:
    partial: of `partial_directory`.
    out: what it becomes.
    files: further ones, by name, which are written first.
  """
  for name, data in files.items():
    with whole_files.named(partial / name):
      (partial / name).write_bytes(data)
  for path in partial.iterdir():
    if path.name != FOUND:
      copying.sync(path)
  # Last: as long as something may fail, what was found is kept.
  shutil.rmtree(partial / FOUND, ignore_errors=True)
  (partial / _LOCK).unlink()
  os.rename(partial, out)
  copying.sync(out.parent)


def _check_replaceable(out: pathlib.Path) -> None:
  """Raises UserError, before the work, where `finish` could not rename."""
  if out.is_symlink() or os.path.ismount(out):
    what = "link" if out.is_symlink() else "mount point"
    raise errors.UserError(
      f"{str(out)!r} is a {what}, whose place the finished directory cannot "
      "take. Choose another name, such as one in the directory that it is for."
    )


def _is_empty_directory(path: pathlib.Path) -> bool:
  return path.is_dir() and not any(path.iterdir())


def existing(
  out: str | os.PathLike,
  fingerprint: str,
  limits: preprocess.Limits,
  *,
  rule: copying.Rule | None = None,
) -> dict[str, Any] | None:
  """Returns the `dataset.json` of the copy that is in `out`, if there is one.

  Args:
    out: a directory, or nothing yet.
    fingerprint: of the source.
    limits: that the copy should have been made with.
    rule: how it should have been made, if not by the default one with `limits`.

  Raises:
    UserError: `out` holds something else.
  """
  out = pathlib.Path(os.path.expanduser(out))
  if not out.exists() or _is_empty_directory(out):
    _check_replaceable(out)
    return None
  summary = {}
  with contextlib.suppress(OSError, errors.UserError):
    summary = array_record.read_sidecar(out / array_record.SIDECAR)
  made_from = summary.get("source", {})
  rule = rule or copying.Rule(limits=limits)
  origin = _origin(fingerprint, rule)
  # An earlier version's copy says nothing of what it could not do.
  earlier = dict.fromkeys(rule.to_dict())
  if origin.items() <= (earlier | made_from).items():
    return {"records": 0, "bad": {}} | summary
  what = f"made from {made_from.get('address')!r}" if made_from else "in use"
  if made_from.get("fingerprint") == fingerprint:  # With other settings.
    other = (x for x in origin if (earlier | made_from).get(x) != origin[x])
    what += f" with {', '.join(f'{x}={made_from.get(x)!r:.60}' for x in other)}"
  elif made_from:  # The address may be the one that is given now.
    what += ", of other records or by other rules than are asked for now"
  raise errors.UserError(
    f"{str(out)!r} exists and is {what}; nothing is overwritten. Choose another"
    " directory or remove it."
  )


@contextlib.contextmanager
def partial_directory(out: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes the directory to write to, for one process at a time.

  Of what a run has left there that was killed or failed, its `FOUND` stays, and
  the message of a UserError says so, or a warning before an OSError: where a
  disk is full, what is kept takes room there.

  Args:
    out: what the directory becomes once all is written.

  Raises:
    UserError: another process writes there.
  """
  out = pathlib.Path(os.path.expanduser(out))
  partial = out.with_name(f".{out.name}.partial")
  partial.mkdir(parents=True, exist_ok=True)
  with open(partial / _LOCK, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.UserError(
        f"Another process is preparing {str(out)!r} right now."
      ) from None
    _clear(partial)
    try:
      yield partial
    except BaseException as error:
      _clear(partial)
      if not any(partial.glob(f"{FOUND}/*")):
        shutil.rmtree(partial, ignore_errors=True)
      else:
        _tell_kept(error, partial)
      raise


def _tell_kept(error: BaseException, partial: pathlib.Path) -> None:
  """Tells, with an error that ends a run, that something is kept."""
  same = isinstance(error, processes.Interrupted | OSError)
  command = "The same command" if same else "A command with the same OUT"
  kept = (
    f"{command} goes on from what was found, which is kept in {str(partial)!r}."
  )
  if isinstance(error, errors.UserError):
    error.args = (f"{error} {kept}",)
  elif isinstance(error, OSError):
    _LOGGER.warning("%s", kept)


def _clear(partial: pathlib.Path) -> None:
  """Removes what a run has left, but for what it has found."""
  for left_over in partial.iterdir():
    if left_over.name in (_LOCK, FOUND):
      continue
    if left_over.is_dir() and not left_over.is_symlink():
      shutil.rmtree(left_over, ignore_errors=True)
    else:
      left_over.unlink()
