"""Copies any source into ArrayRecord files, and inspects sources."""

import collections
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clip_jax import errors, preprocess
from clip_jax.data import account
from clip_jax.data import record as record_lib
from clip_jax.data.sources import array_record

SHARD_BYTES = 512 * 2**20
FOUND = "found"  # In the partial directory: what an interrupted run keeps.
_LOCK = ".lock"

Item = record_lib.Record | record_lib.BadRecord


class Interrupted(errors.UserError):
  """An error that lies in no data and no rule: the same command may succeed.

  Within `partial_directory` its message also says so.
  """


def prepare(
  source: record_lib.Source,
  out: str | os.PathLike,
  *,
  address: str = "",
  drop_bad: bool = False,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
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

  The directory appears complete or not at all. Where it is there already and
  was made from the same source in the same way, nothing is done.

  Args:
    source: what to copy.
    out: a new directory.
    address: where `source` came from, for the record.
    drop_bad: decode every image and leave bad slots out; the copy then has an
      order of its own.
    limits: what is too large to be used.
    shard_bytes: a new file is begun after this many.
    on_record: called with the number of records done.
    about: further entries of `dataset.json`.
    beside: further files, by name.
    partial: where to write, if the caller is within `partial_directory` of
      `out`; it becomes `out`.

  Returns:
    The content of `dataset.json`, and `written`: whether anything was.

  Raises:
    UserError: `out` holds something else, or is being written right now.
  """
  errors.check_out(out)
  out = pathlib.Path(os.path.expanduser(out))
  made = existing(out, source.fingerprint, limits, drop_bad=drop_bad)
  if made is not None:
    return made | {"written": False}
  origin = _origin(source.fingerprint, limits, drop_bad)
  opened = (
    partial_directory(out)
    if partial is None
    else contextlib.nullcontext(partial)
  )
  with opened as partial:
    summary = {
      "format": array_record.FORMAT,
      "version": array_record.VERSION,
      "class_names": source.class_names,
      "templates": source.templates,
      "source": {"address": address, **origin},
      "account": account.of(source).to_dict(),
      **(about or {}),
    } | _write_shards(source, partial, drop_bad, limits, shard_bytes, on_record)
    bad = summary["bad"]
    if summary["records"] <= (0 if drop_bad else sum(bad.values())):
      said = ", ".join(f"{count} {reason}" for reason, count in bad.items())
      error = errors.UserError(
        f"The source has no usable record to write ({said or 'it is empty'}); "
        "`clip-jax data inspect` says more."
      )
      error.payload = {"records": 0, "bad": bad}
      raise error
    sidecar = partial / array_record.SIDECAR
    sidecar.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    for name, data in (beside or {}).items():
      (partial / name).write_bytes(data)
    finish(partial, out)
  return summary | {"written": True}


def finish(partial: pathlib.Path, out: pathlib.Path) -> None:
  """Lets what was written in a partial directory become `out`, at once."""
  for path in partial.iterdir():
    if path.name != FOUND:
      _sync(path)
  # Last: as long as something may fail, what was found is kept.
  shutil.rmtree(partial / FOUND, ignore_errors=True)
  (partial / _LOCK).unlink()
  os.rename(partial, out)
  _sync(out.parent)


def _is_empty_directory(path: pathlib.Path) -> bool:
  return path.is_dir() and not any(path.iterdir())


def _origin(
  fingerprint: str, limits: preprocess.Limits, drop_bad: bool
) -> dict[str, Any]:
  """Returns the record of a copy: what it was made from, and how."""
  return {
    "fingerprint": fingerprint,
    "drop_bad": drop_bad,
    "max_pixels": limits.max_pixels,
  }


def existing(
  out: str | os.PathLike,
  fingerprint: str,
  limits: preprocess.Limits,
  *,
  drop_bad: bool = False,
) -> dict[str, Any] | None:
  """Returns the `dataset.json` of the copy that is in `out`, if there is one.

  Args:
    out: a directory, or nothing yet.
    fingerprint: of the source.
    limits: that the copy should have been made with.
    drop_bad: whether it should have been made without bad records.

  Raises:
    UserError: `out` holds something else.
  """
  out = pathlib.Path(os.path.expanduser(out))
  if not out.exists() or _is_empty_directory(out):
    return None
  summary = {}
  with contextlib.suppress(OSError, errors.UserError):
    summary = array_record.read_sidecar(out / array_record.SIDECAR)
  made_from = summary.get("source", {})
  origin = _origin(fingerprint, limits, drop_bad)
  if origin.items() <= ({"max_pixels": None} | made_from).items():
    return {"records": 0, "bad": {}} | summary
  what = f"made from {made_from.get('address')!r}" if made_from else "in use"
  raise errors.UserError(
    f"{str(out)!r} exists and is {what}; nothing is overwritten. Choose another"
    " directory or remove it."
  )


@contextlib.contextmanager
def partial_directory(out: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes the directory to write to, for one process at a time.

  Of what a run has left there that was killed or failed, its `FOUND` stays, and
  the message of a UserError says so.

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
      elif isinstance(error, errors.UserError):
        same = isinstance(error, Interrupted)
        command = "The same command" if same else "A command with the same OUT"
        error.args = (
          f"{error} {command} goes on from what was found, which is kept in "
          f"{str(partial)!r}.",
        )
      raise


def _clear(partial: pathlib.Path) -> None:
  """Removes what a run has left, but for what it has found."""
  for left_over in partial.iterdir():
    if left_over.name in (_LOCK, FOUND):
      continue
    if left_over.is_dir() and not left_over.is_symlink():
      shutil.rmtree(left_over, ignore_errors=True)
    else:
      left_over.unlink()


def _write_shards(
  source: record_lib.Source,
  directory: pathlib.Path,
  drop_bad: bool,
  limits: preprocess.Limits,
  shard_bytes: int,
  on_record: Callable[[int], None] | None,
) -> dict[str, Any]:
  bad: collections.Counter[str] = collections.Counter()
  counts: list[int] = []
  writer, written = None, 0
  try:
    for slot in range(len(source)):
      item = _read(source, slot)
      check = preprocess.decode if drop_bad else preprocess.check_header
      item, _ = _checked(item, check, limits)
      if isinstance(item, record_lib.BadRecord):
        bad[item.reason] += 1
        if drop_bad:
          continue
      if writer is None or written >= shard_bytes:
        if writer is not None:
          writer.close()
        path = directory / _shard_name(len(counts))
        writer = array_record.open_writer(str(path))
        counts.append(0)
        written = 0
      data = array_record.encode(item)
      writer.write(data)
      written += len(data)
      counts[-1] += 1
      if on_record is not None:
        on_record(slot + 1)
  finally:
    if writer is not None:
      writer.close()
  names = [_shard_name(number) for number in range(len(counts))]
  return {
    "records": sum(counts),
    "bad": dict(bad),
    "files": [
      {"name": name, "records": n, "bytes": (directory / name).stat().st_size}
      for name, n in zip(names, counts, strict=True)
    ],
  }


def _shard_name(number: int) -> str:
  return f"{number:05d}{array_record.SUFFIX}"


def _read(source: record_lib.Source, slot: int) -> Item:
  try:
    return source[slot]
  except record_lib.BadRecord as error:
    return error


def _checked(
  item: Item, check: Callable[..., Any], limits: preprocess.Limits
) -> tuple[Item, Any]:
  """Returns `item`, or a bad record for a bad image; and what `check` found."""
  if isinstance(item, record_lib.BadRecord):
    return item, None
  try:
    return item, check(item.image, limits=limits)
  except preprocess.ImageError as error:
    return record_lib.BadRecord(error.reason, item.key), None


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def inspect(
  source: record_lib.Source,
  *,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  first: int = 5,
  most_bad: int = 1000,
  on_record: Callable[[int], None] | None = None,
) -> dict[str, Any]:
  """Reads all of `source`, decodes every image and returns what was found.

  Returns:
    `records`: number of slots; `good`; `bad`: number of slots by reason;
    `bad_keys`: the first `most_bad` as (key, reason); `hints`: what to do about
    a reason, for its first record; `texts`: number of captions; `class_names`;
    `templates`; `labels`: number of records by label; `image_bytes`: their sum;
    `first`: the first `first` records; and what the account of the source holds
    (account.py), `left_out` and `damages` among it.
  """
  bad: collections.Counter[str] = collections.Counter()
  labels: collections.Counter[int] = collections.Counter()
  bad_keys: list[tuple[str, str]] = []
  hints: dict[str, str] = {}
  shown: list[dict[str, Any]] = []
  texts = image_bytes = 0
  for slot in range(len(source)):
    item = _read(source, slot)
    item, image = _checked(item, preprocess.decode, limits)
    if isinstance(item, record_lib.BadRecord):
      bad[item.reason] += 1
      if item.hint:
        hints.setdefault(item.reason, item.hint)
      if len(bad_keys) < most_bad:
        bad_keys.append((item.key, item.reason))
    else:
      texts += len(item.texts)
      image_bytes += len(item.image)
      labels.update(item.labels or ())
      if item.label is not None:
        labels[item.label] += 1
      if len(shown) < first:
        shown.append(_describe(item, image.size))
    if on_record is not None:
      on_record(slot + 1)
  about = account.of(source).to_dict()
  # Most tokenizers know no capitals.
  names = collections.Counter(map(str.lower, source.class_names or ()))
  if twice := sorted(name for name, count in names.items() if count > 1):
    more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
    about["notes"].append(
      "Several classes have the same name, but for capitals, and most models "
      f"cannot tell them apart: {', '.join(map(repr, twice[:5]))}{more}."
    )
  return {
    "records": len(source),
    "good": len(source) - bad.total(),
    "bad": dict(bad),
    "bad_keys": bad_keys,
    "hints": hints,
    **about,
    "texts": texts,
    "class_names": source.class_names,
    "templates": source.templates,
    "labels": dict(sorted(labels.items())),
    "image_bytes": image_bytes,
    "first": shown,
  }


def _describe(
  record: record_lib.Record, size: tuple[int, int]
) -> dict[str, Any]:
  return {
    "key": record.key,
    "texts": record.texts,
    "label": record.label,
    **({} if record.labels is None else {"labels": record.labels}),
    "width": size[0],
    "height": size[1],
    "bytes": len(record.image),
  }
