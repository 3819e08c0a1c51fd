"""Where a data set of the suite lies below a directory, and in what layout.

NAME is the set's name in the table. Looked for are, in this order:

- CLIP_benchmark's tars: `wds_NAME/test/0.tar`, with `classnames.txt`;
- what TFDS prepared: `mnist/3.0.1/dataset_info.json`, under its name there;
- captions: `NAME/dataset_flickr30k.json` and what else `coco:` reads;
- Parquet: `NAME/data/test-00000-of-00001.parquet`;
- class folders: `NAME/test/CLASS/…` or `NAME/CLASS/…`, of UCF101 with the lists
  of its splits, `ucf101/ucfTrainTestlist/testlist01.txt`.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

from clip_jax import errors, regular_files, terminal
from clip_jax.data import record as record_lib
from clip_jax.data import sources
from clip_jax.evals import folds
from clip_jax.evals.suite import classes as classes_lib
from clip_jax.evals.suite import data_sets

SPLITS = ("test", "validation", "val", "valid", "images")
_OTHER_SPLIT = re.compile("train|dev|unsupervised|extra")
_SHARD_COUNT = "nshards.txt"  # CLIP_benchmark writes it beside the tars.


@dataclasses.dataclass(frozen=True)
class Found:
  """A data set that is there.

  Attributes:
    layout: "wds", "tfds", "coco", "parquet" or "folder".
    address: the DATA address of its test images.
    place: the directory of what is read for its records.
    lists: the directory of the lists of its splits, where there is one.
  """

  layout: str
  address: str
  place: pathlib.Path
  lists: str = ""

  def files_hash(self) -> str:
    """Returns the digest of its files' names, sizes and times of change."""
    places = (self.place, *([pathlib.Path(self.lists)] if self.lists else ()))
    digest = hashlib.sha256()
    for line in sorted(line for place in places for line in _states(place)):
      digest.update(line + b"\0")
    return digest.hexdigest()


def _states(place: pathlib.Path) -> Iterator[bytes]:
  """Yields what tells the files below a directory from others, in any order."""
  seen = {_identity(place)}  # A link may lead back.
  for folder, folders, files in os.walk(place, followlinks=True):
    for name in sorted(folders):
      own = _identity(os.path.join(folder, name))
      if own is None or own in seen:
        folders.remove(name)
      seen.add(own)
    folders.sort()
    for name in files:
      path = os.path.join(folder, name)
      with contextlib.suppress(OSError):  # A link to nothing.
        state = os.stat(path)
        said = (os.path.relpath(path, place), state.st_size, state.st_mtime_ns)
        yield repr(said).encode()


def _identity(folder: str | os.PathLike) -> tuple[int, int] | None:
  with contextlib.suppress(OSError):
    state = os.stat(folder)
    return state.st_dev, state.st_ino
  return None


def check_root(root: str) -> pathlib.Path:
  """Returns `root` as a path; raises UserError where it is no directory."""
  errors.check_local("The directory of data sets", root)
  path = pathlib.Path(os.path.expanduser(root))
  if not path.is_dir():
    raise errors.UserError(
      f"--data-root {root} is no directory; make it, and put the data sets "
      "into it as `clip-jax data doctor --suite NAME --data-root DIR` says."
    )
  return path


def find(entry: data_sets.Entry, root: pathlib.Path) -> Found | None:
  """Returns `entry` as it lies below `root`; None where it does not.

  Raises:
    UserError: there is a directory of its name that is in no layout.
  """
  try:
    found = next(_candidates(entry, root), None)
  except OSError as error:
    raise errors.UserError(
      f"{error.filename} cannot be read: {error.strerror}."
    ) from None
  if found:
    return found
  last = "captions" if entry.task == "retrieval" else "class folders"
  for name in _directories(entry):
    if (root / name).is_dir():
      raise errors.UserError(
        f"{root / name} is in no layout that is known here: it has neither "
        f"tar files in test/, nor what TFDS prepared, nor Parquet files, nor "
        f"{last}."
      )
  return None


def _directories(entry: data_sets.Entry) -> list[str]:
  # Where CLIP_benchmark has a name of its own for the set, `wds_NAME` may be
  # another set, as wds_voc2007 is that of the crops.
  names = (entry.wds or f"wds_{entry.name}", entry.name)
  return list(dict.fromkeys(names))


def _candidates(entry: data_sets.Entry, root: pathlib.Path) -> Iterator[Found]:
  retrieval = entry.task == "retrieval"
  for name in _directories(entry):
    for directory in _splits(root / name):
      if _names(directory, "*.tar"):
        options = "captions=lines" if retrieval else entry.wds_options
        mark = "?" if options else ""
        yield Found("wds", f"wds:{directory}{mark}{options}", directory)
  prepared = root / entry.tfds.rpartition("/")[0]
  if entry.tfds and _is_prepared(prepared):
    quoted = urllib.parse.quote(str(root))
    more = f"&{entry.tfds_options}" if entry.tfds_options else ""
    address = f"tfds:{entry.tfds}?data_dir={quoted}{more}"
    yield Found("tfds", address, prepared)
  own = root / entry.name
  if entry.karpathy and (own / entry.karpathy).is_file():
    yield Found("coco", f"coco:{own / entry.karpathy}/test", own)
  elif retrieval and any(_names(own, p) for p in ("*.txt", "*.token", "*.csv")):
    yield Found("coco", f"coco:{own}/test", own)
  # Labels of ImageNet's test images, which the hub has too, are not public.
  published = entry.tfds.rpartition("/")[2]
  splits = sorted(SPLITS, key=lambda split: split != published)
  for directory in (own / "data", own):
    for split in splits:
      if _names(directory, f"{split}*.parquet"):
        address = f"parquet:{directory}/{split}*.parquet"
        yield Found("parquet", address, directory)
  for directory in (*_splits(own), own / "data", own):
    files = _names(directory, "*.parquet")
    # Another split, such as the one for training, is not what is measured.
    if files and not any(_OTHER_SPLIT.match(file.name) for file in files):
      yield Found("parquet", f"parquet:{directory}", directory)
  if not retrieval:
    for directory in (*_splits(own), own):
      if directory.is_dir() and any(x.is_dir() for x in directory.iterdir()):
        lists = own / entry.lists
        given = str(lists) if entry.lists and lists.is_dir() else ""
        address = f"folder:{directory}?layout=classes"
        yield Found("folder", address, directory, given)


def _splits(directory: pathlib.Path) -> list[pathlib.Path]:
  return [directory / split for split in SPLITS if (directory / split).is_dir()]


def _names(directory: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  return sorted(directory.glob(pattern)) if directory.is_dir() else []


def _is_prepared(directory: pathlib.Path) -> bool:
  """Whether TFDS prepared a data set there, in any version."""
  info = "dataset_info.json"
  return any(_names(directory, f"{d}/{info}") for d in ("*", "*/*"))


@dataclasses.dataclass(frozen=True)
class Opened:
  """A data set that is there and is what the table says.

  Attributes:
    found: where it lies.
    source: its records, labelled with the numbers of the table's classes.
    count: number of its test images; None where some are left out.
    warnings: sentences about counts that differ from the table's.
    parts: the test images of each split, where the metric is the mean over
      splits.
  """

  found: Found
  source: record_lib.Source
  count: int | None
  warnings: tuple[str, ...]
  parts: tuple[record_lib.Source, ...] = ()


def open_found(entry: data_sets.Entry, found: Found) -> Opened:
  """Opens a data set and checks its classes; reads no record.

  Raises:
    UserError: it cannot be read, or its classes are not those of the table.
  """
  try:
    _check_shards(found)
    source = sources.open_source(found.address)
  except OSError as error:
    raise errors.UserError(
      f"{found.address} cannot be read: {error}. Copy it again."
    ) from error
  count: int | None = len(source)
  splits = []
  if found.lists:
    names = folds.names_of(source, found.address)
    splits = folds.read_splits(found.lists, names, train=False)
  if entry.task == "zero_shot":
    if source.class_names is None:
      raise errors.UserError(
        f"{found.address} names no classes, and a label's number says nothing "
        "about its class: add the names (for tar files, classnames.txt beside "
        "them)."
      )
    of_table = data_sets.classes(entry)
    numbers = classes_lib.match(
      source.class_names,
      of_table,
      within=data_sets.classes_of(entry.within) if entry.within else None,
      others_left_out=entry.others_left_out,
    )
    if entry.others_left_out and (numbers < 0).any():
      count = None
    source = classes_lib.Relabelled(
      source, class_names=of_table.names, classes=numbers
    )
  parts = folds.test_parts(source, splits)
  if parts:
    count = len(parts[0])
  warnings = []
  if count is not None and count not in entry.counts:
    known = " or ".join(f"{number:,}" for number in entry.counts)
    warnings.append(
      f"{found.address} holds {count:,} test {terminal.noun(count, 'image')}"
      f"{' in its first split' if parts else ''}, but {entry.title} has "
      f"{known}: the figure does not compare with published ones."
    )
  return Opened(found, source, count, tuple(warnings), parts)


def _check_shards(found: Found) -> None:
  """Raises UserError where fewer tars are there than were written."""
  if found.layout != "wds":
    return
  place = sources.parse_address(found.address)[1]
  path = os.path.join(place, _SHARD_COUNT)
  if not os.path.isfile(path):
    return
  text = regular_files.read_regular(path, limit=100).decode("ascii", "replace")
  shards = len(_names(pathlib.Path(place), "*.tar"))
  if re.fullmatch(r"\s*\d+\s*", text) and int(text) != shards:
    raise errors.UserError(
      f"{place} holds {terminal.counted(shards, 'tar file')}, but "
      f"{_SHARD_COUNT} says that there are {int(text)}. Get the others."
    )
