"""Folds and splits that a data set's authors have published.

STL-10 has a file of ten folds: a line each, with the places (from 0) of its
examples among those of the training part (Coates et al. 2011). UCF101 has a
directory of three splits: `trainlist01.txt` and `testlist01.txt` name the files
of the first (Soomro et al. 2012). What is measured is the mean over them.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, regular_files, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account, sources
from clip_jax.data import record as record_lib
from clip_jax.data.sources import views
from clip_jax.evals import labelled_features, linear_probe
from clip_jax.evals import reading as reading_lib

_LARGEST = 1 << 26  # Bytes of a file of folds.
_DIGITS = 19  # Of a number that is a place of no data.
_LIST = re.compile(r"testlist(\d+)\.txt")
# What is averaged over folds, where there is such a measure.
_MEANS = ("top1", "top5", "mean_per_class", "mean_top1_top5")


@dataclasses.dataclass(frozen=True)
class Fold:
  """One fold or split, by the places of its records.

  Attributes:
    train: of the training data, ascending, (n,).
    test: of the same data; None tests on other data.
  """

  train: np.ndarray
  test: np.ndarray | None = None


def read_folds(path: str, *, records: int) -> list[Fold]:
  """Returns the folds of a file such as STL-10's `fold_indices.txt`.

  Args:
    path: of the file.
    records: number of training examples that there are.

  Raises:
    UserError: it cannot be read, or a line is no fold of these examples.
  """
  lines = [line for line in _lines(path) if line.strip()]
  found = []
  for number, line in enumerate(lines, 1):
    words = line.split()
    # Python turns no text of thousands of digits into a number.
    if not all(
      word.isdecimal() and len(word) < _DIGITS and int(word) < records
      for word in words
    ):
      raise errors.UserError(
        f"{path}, fold {number}: a fold is the places of training examples, "
        f"from 0 to {records - 1}, parted by spaces; got {line[:60]!r}. The "
        "training data must be the whole part, in the order of its authors."
      )
    found.append(Fold(np.unique(np.array(words, np.int64))))
  if not found:
    raise errors.UserError(f"{path} holds no fold, which is a line of numbers.")
  return found


def read_splits(
  path: str, names: Sequence[str], *, train: bool = True
) -> list[Fold]:
  """Returns the splits of a directory of lists such as UCF101's.

  A file in a list is known by its name without folder and suffix, since frames
  of videos are images.

  Args:
    path: of the directory.
    names: of the files that there are, by their places.
    train: whether to read what is trained on; else it is empty.

  Raises:
    UserError: there is no list, or one names a file that is not there, or that
      is there several times; or two of a split name the same file.
  """
  places = {_stem(name): place for place, name in enumerate(names)}
  counts = collections.Counter(map(_stem, names))
  numbers = sorted(
    match[1] for name in os.listdir(path) if (match := _LIST.fullmatch(name))
  )
  if not numbers:
    raise errors.UserError(
      f"{path} holds no lists of splits: testlist01.txt and trainlist01.txt."
    )
  found = []
  for number in numbers:
    parts = [] if train else [np.zeros(0, np.int64)]
    for kind in ("train", "test") if train else ("test",):
      file = os.path.join(path, f"{kind}list{number}.txt")
      stems = [_stem(line.split()[0]) for line in _lines(file) if line.strip()]
      missing = [stem for stem in stems if stem not in places]
      if missing or not stems:
        raise errors.UserError(
          f"{file} names {terminal.counted(len(stems), 'file')}; "
          f"{len(missing)} of them {terminal.noun(len(missing), 'is', 'are')} "
          "not in the data"
          f"{f', such as {missing[0][:80]!r}' if missing else ''}."
        )
      if twice := [stem for stem in stems if counts[stem] > 1]:
        raise errors.UserError(
          f"{file} names {twice[0][:80]!r}, and {counts[twice[0]]} files of "
          "the data are called so; keep one image of each name in the list."
        )
      parts.append(np.unique([places[stem] for stem in stems]))
    train_part, test_part = parts
    both = np.intersect1d(train_part, test_part)
    if len(both):
      one = _stem(names[int(both[0])])[:80]
      raise errors.UserError(
        f"{path}, split {number}: "
        f"{terminal.counted(len(both), 'file')} would be trained on and tested "
        f"on, such as {one!r}. Leave "
        f"{terminal.noun(len(both), 'it', 'them')} out of "
        f"trainlist{number}.txt or of testlist{number}.txt."
      )
    found.append(Fold(train_part, test_part))
  return found


def _stem(name: str) -> str:
  return pathlib.PurePath(name).stem


def _lines(path: str) -> list[str]:
  try:
    content = regular_files.read_regular(path, limit=_LARGEST)
    return content.decode("ascii").splitlines()
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read: {error.strerror or error}."
    ) from error
  except ValueError as error:
    raise errors.UserError(f"{path} is no list: {error}.") from error


def names_of(source: record_lib.Source, address: str) -> Sequence[str]:
  """Returns the names of the files of a source, by their places."""
  names = getattr(source, "names", None)
  if names is None:
    raise errors.UserError(
      f"{address} names no files, as lists of splits do; give class folders."
    )
  return names


def test_parts(
  source: record_lib.Source, splits: Sequence[Fold]
) -> tuple[views.Part, ...]:
  """Returns the test part of each split."""
  return tuple(
    views.Part(
      source, fold.test, hashlib.sha256(fold.test.tobytes()).hexdigest()
    )
    for fold in splits
    if fold.test is not None
  )


def mean(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the mean of measures over folds; `top1_std` is their deviation."""
  found = {
    name: float(np.mean([each[name] for each in measured]))
    for name in _MEANS
    if name in measured[0]
  }
  return {**found, "top1_std": float(np.std([x["top1"] for x in measured]))}


def evaluate(
  task: str,
  data: str,
  folds: str,
  *,
  embed: Callable[[np.ndarray], np.ndarray],
  preprocess: preprocess_lib.Preprocess,
  train_data: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
  **options: Any,
) -> dict[str, Any]:
  """Returns the mean accuracy of a classifier over folds or splits.

  Each is trained and its penalty chosen within the fold alone.

  Args:
    task: one of `linear_probe.TASKS`.
    data: a DATA address; with a directory of lists it holds all files.
    folds: a file of folds of the training data, or a directory of lists.
    embed: as in `linear_probe.evaluate`.
    preprocess: how an image becomes an array.
    train_data: as in `linear_probe.evaluate`; not with lists.
    reading: how the data are read.
    **options: as in `linear_probe.evaluate`.

  Raises:
    UserError: folds and data do not go together.
  """
  folds = os.path.expanduser(folds)
  read = functools.partial(
    _read_of_lists if os.path.isdir(folds) else _read_of_folds,
    data,
    folds,
    train_data=train_data,
    embed=embed,
    preprocess=preprocess,
    reading=reading,
  )
  parts, found = read()
  measured = []
  for fold in found:
    train, test = parts.train.among(fold.train), parts.test
    if fold.test is not None:
      test = test.among(fold.test)
    if not (len(train.labels) and len(test.labels)):
      raise errors.UserError(
        f"{folds}, number {len(measured) + 1}: no image that can be read is "
        "left to train on, or none to test on."
      )
    measured.append(linear_probe.fit(task, train, test, **options))
  what = "folds of the training data" if found[0].test is None else "splits"
  return {
    "task": task,
    "folds_from": folds,
    **mean(measured),
    "examples": len(parts.test.labels),
    "classes": measured[0]["classes"],
    "folds": measured,
    "protocol": f"mean over {len(measured)} published {what}; each is fitted, "
    "and its penalty chosen, by itself",
    **parts.about,
  }


def _read_of_folds(
  data: str, folds: str, *, train_data: str, **how: Any
) -> tuple[labelled_features.Parts, list[Fold]]:
  train_data, data = labelled_features.addresses(data, train_data)
  # Before the images, which take longer.
  found = read_folds(folds, records=len(sources.open_source(train_data)))
  return labelled_features.read_parts(data, train_data=train_data, **how), found


def _read_of_lists(
  data: str, folds: str, *, train_data: str, embed, preprocess, reading
) -> tuple[labelled_features.Parts, list[Fold]]:
  if train_data:
    raise errors.UserError(
      f"{folds} lists what to train on and what to test on, so that --data "
      "holds both; leave --train-data out."
    )
  source = sources.open_source(data)
  labelled_features.check_classes((source, source), (data, data))
  found = read_splits(folds, names_of(source, data))
  bad: collections.Counter[str] = collections.Counter()
  warnings = account.tell(source, data)
  examples = labelled_features.read_all(
    source, data, embed, bad=bad, preprocess=preprocess, reading=reading
  )
  about = {
    "data": data,
    "train_data": data,
    "bad_records": dict(bad),
    "warnings": warnings,
  }
  return labelled_features.Parts(examples, examples, about), found
