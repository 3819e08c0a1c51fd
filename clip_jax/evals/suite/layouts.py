"""Where a data set of the suite lies below a directory, and in what layout.

NAME is the set's name in the table. Looked for are, in this order:

- CLIP_benchmark's tars: `wds_NAME/test/0.tar`, with `classnames.txt`;
- what TFDS prepared: `mnist/3.0.1/dataset_info.json`, under its name there;
- captions: `NAME/dataset_flickr30k.json` and what else `coco:` reads;
- Parquet: `NAME/data/test-00000-of-00001.parquet`, where for "data" the name of
  the hub's config may stand, as in `cifar10/plain_text/…`;
- class folders: `NAME/test/CLASS/…` or `NAME/CLASS/…`, of UCF101 with the lists
  of its splits, `ucf101/ucfTrainTestlist/testlist01.txt`; a folder of a split
  without any known class is taken last.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Sequence

from clip_jax import errors
from clip_jax.data.sources import globs
from clip_jax.evals import class_names
from clip_jax.evals.suite import classes as classes_lib
from clip_jax.evals.suite import data_sets

SPLITS = ("test", "validation", "val", "valid", "images")
_VALIDATIONS = ("validation", "val", "valid")
_OTHER_SPLIT = re.compile("train|dev|unsupervised|extra")


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
        f"tar files in test/, nor what TFDS prepared, nor Parquet files "
        f"of a split for tests, nor {last}."
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
  yield from _parquets(entry, own)
  if not retrieval:
    yield from _class_folders(entry, own)


def _parquets(entry: data_sets.Entry, own: pathlib.Path) -> Iterator[Found]:
  splits = _in_order(entry)
  for directory in (own / "data", own):
    yield from _of_names(directory, splits)
  for directory in (*_splits(own, splits), own / "data", own):
    yield from _of_folder(directory)
  # The hub has a folder for each config: `cifar10/plain_text/test-…`.
  configs = {}
  for directory in _below(own):
    if directory.name not in SPLITS and _holds_tables(directory):
      found = [
        *_of_names(directory, splits),
        *(f for x in _splits(directory, splits) for f in _of_folder(x)),
        *_of_folder(directory),
      ]
      if found:
        configs[directory.name] = found[0]
  if len(configs) > 1 and entry.config in configs:
    configs = {entry.config: configs[entry.config]}
  if len(configs) > 1:
    raise errors.UserError(
      f"{own} holds Parquet files of several data sets, {', '.join(configs)}; "
      f"keep those of {entry.title} there."
    )
  yield from configs.values()


def _holds_tables(directory: pathlib.Path) -> bool:
  """Whether a directory, or one of a split in it, holds Parquet files."""
  if _OTHER_SPLIT.match(directory.name):
    return False
  return any(_names(x, "*.parquet") for x in (directory, *_splits(directory)))


def _of_names(directory: pathlib.Path, splits: list[str]) -> Iterator[Found]:
  """Yields the Parquet files of each split, told by their names."""
  for split in splits:
    if _names(directory, f"{split}*.parquet"):
      escaped = globs.escaped(str(directory))
      address = f"parquet:{escaped}/{split}*.parquet"
      yield Found("parquet", address, directory)


def _of_folder(directory: pathlib.Path) -> Iterator[Found]:
  """Yields all Parquet files of a directory, unless they are of other splits.

  Another split, such as the one for training, is not what is measured.
  """
  files = _names(directory, "*.parquet")
  if files and not any(_OTHER_SPLIT.match(file.name) for file in files):
    yield Found("parquet", f"parquet:{directory}", directory)


def _in_order(entry: data_sets.Entry) -> list[str]:
  """Returns the names of splits, those of the published one first."""
  # Labels of ImageNet's test images, which the hub has too, are not public.
  published = entry.tfds.rpartition("/")[2]
  names = _VALIDATIONS if published in _VALIDATIONS else (published,)
  return sorted(SPLITS, key=lambda split: split not in names)


def _class_folders(
  entry: data_sets.Entry, own: pathlib.Path
) -> Iterator[Found]:
  """Yields directories of class folders, those with a known class first."""
  there = [directory for directory in (*_splits(own), own) if _below(directory)]
  if not there:
    return
  known = classes_lib.known_names(data_sets.classes(entry)).keys()
  if entry.within:
    within = data_sets.classes_of(entry.within)
    known |= classes_lib.known_names(within).keys()

  def has_none(directory: pathlib.Path) -> bool:
    names = {x.name for x in _below(directory)} - {*SPLITS, "train"}
    return not any(class_names.normalise(name) in known for name in names)

  lists = own / entry.lists
  given = str(lists) if entry.lists and lists.is_dir() else ""
  for directory in sorted(there, key=has_none):
    if has_none(directory) and any(map(_holds_tables, _below(directory))):
      continue
    address = f"folder:{directory}?layout=classes"
    yield Found("folder", address, directory, given)


def _splits(
  directory: pathlib.Path, order: Sequence[str] = SPLITS
) -> list[pathlib.Path]:
  return [directory / split for split in order if (directory / split).is_dir()]


def _below(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the directories in one, in order; none where it is not there."""
  if not directory.is_dir():
    return []
  return sorted(each for each in directory.iterdir() if each.is_dir())


def _names(directory: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  return sorted(directory.glob(pattern)) if directory.is_dir() else []


def _is_prepared(directory: pathlib.Path) -> bool:
  """Whether TFDS prepared a data set there, in any version."""
  info = "dataset_info.json"
  return any(_names(directory, f"{d}/{info}") for d in ("*", "*/*"))
