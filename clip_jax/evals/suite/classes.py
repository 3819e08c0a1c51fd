"""Matches the labels of data with the classes of the table, by their names.

Data sources order the classes of the same data set in different ways, so a
label's number says nothing.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from clip_jax import errors, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.evals import class_names
from clip_jax.evals.suite import data_sets

OTHER_CLASS = "other_class"  # The reason of a record that is not measured.
_NONE = -1
_SHOWN = 8


def known_names(classes: data_sets.Classes) -> dict[str, list[int]]:
  """Returns, for each name that a source may use, the classes it may mean.

  Several are meant where classes have the same name, as in ImageNet.
  """
  names, words = classes.names, data_sets.wordnet_names()
  found: dict[str, list[int]] = {}
  pairs = [
    *zip(classes.keys, range(len(classes.keys)), strict=True),
    *zip(names, range(len(names)), strict=True),
    *((words[key], i) for i, key in enumerate(classes.keys) if key in words),
    *((name, names.index(own)) for name, own in classes.also.items()),
    *((str(i), i) for i in range(len(names) if classes.numbered else 0)),
  ]
  for name, number in pairs:
    numbers = found.setdefault(class_names.normalise(name), [])
    if number not in numbers:
      numbers.append(number)
  return found


def match(
  names: Sequence[str],
  classes: data_sets.Classes,
  *,
  within: data_sets.Classes | None = None,
  others_left_out: bool = False,
) -> np.ndarray:
  """Returns the class of each label of some data, (labels,); -1 for none.

  Equal names stand for classes with this name in the order of the table, which
  all lists of ImageNet have.

  Args:
    names: of the labels.
    classes: those of the table.
    within: more classes that the data may name, too.
    others_left_out: whether the data may name any others.

  Raises:
    UserError: a name is not known, or given too often, or a class is missing.
  """
  known = {key: list(numbers) for key, numbers in known_names(classes).items()}
  more = known_names(within) if within is not None else {}
  used: set[int] = set()
  found, unknown, repeated = [], [], []
  for name in names:
    key = class_names.normalise(name)
    free = [number for number in known.get(key, ()) if number not in used]
    if free:
      used.add(free[0])
      found.append(free[0])
    elif key in known:
      repeated.append(name)
    elif others_left_out or key in more:
      found.append(_NONE)
    else:
      unknown.append(name)
  missing = [n for i, n in enumerate(classes.names) if i not in used]
  problems = {
    "not in the data": missing,
    "not in the table": unknown,
    "more than once in the data": repeated,
  }
  if missing or unknown or repeated:
    said = "; ".join(
      f"{what}: {_listed(some)}" for what, some in problems.items() if some
    )
    raise errors.UserError(
      f"The data's {terminal.counted(len(names), 'class is', 'classes are')} "
      "not the table's "
      f"{len(classes.names)}. {said[0].upper()}{said[1:]}. Give the classes "
      "of the data their published names (folders, classnames.txt)."
    )
  return np.array(found, np.int64)


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(repr(name)[:60] for name in names[:_SHOWN])
  more = len(names) - _SHOWN
  return f"{shown} and {more} more" if more > 0 else shown


class Relabelled:
  """A source whose labels are numbers of the table's classes.

  Attributes:
    class_names: the first names of the table's classes.
    account: that of the source.
  """

  templates = None

  def __init__(
    self,
    source: record_lib.Source,
    *,
    class_names: tuple[str, ...],
    classes: np.ndarray,
  ):
    self._source = source
    self._classes = classes
    self.class_names = class_names
    self.account = account_lib.of(source)
    digest = hashlib.sha256(source.fingerprint.encode())
    digest.update(classes.tobytes() + repr(class_names).encode())
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> record_lib.Record:
    record = self._source[index]
    label, labels = record.label, record.labels
    if label is not None:
      label = int(self._classes[label])
      if label == _NONE:
        raise record_lib.BadRecord(OTHER_CLASS, record.key)
    return dataclasses.replace(
      record,
      label=label,
      labels=None if labels is None else self._of_several(labels),
      ignored=self._of_several(record.ignored),
    )

  def _of_several(self, labels: Sequence[int]) -> tuple[int, ...]:
    numbers = (int(self._classes[label]) for label in labels)
    return tuple(sorted(number for number in numbers if number != _NONE))


def only_damage(bad: Mapping[str, int]) -> dict[str, int]:
  """Returns the bad records without those that are left out on purpose."""
  return {why: n for why, n in bad.items() if why != OTHER_CLASS}
