"""Image features of labelled data, which probes are trained and tested on."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax import errors, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account, sources
from clip_jax.data.sources import overlap, splits
from clip_jax.evals import prompts
from clip_jax.evals import reading as reading_lib

_LOGGER = logging.getLogger(__name__)

NOT_FINITE = (
  "The model gives features that are not finite; its parameters are damaged or "
  "its training diverged. Use an earlier checkpoint."
)

_BOTH = (
  "would be trained on and tested on; give two parts of the data, or leave "
  "--train-data out."
)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Image features with their labels.

  Attributes:
    features: float32 (n, width).
    labels: int64 (n,), indices into `class_names`.
    class_names: of the labels.
    records: the place of each in its data, (n,), where they were read from any.
  """

  features: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  records: np.ndarray | None = None

  def __getitem__(self, rows: np.ndarray) -> "Examples":
    return Examples(self.features[rows], self.labels[rows], self.class_names)

  def among(self, records: np.ndarray) -> "Examples":
    """Returns the examples at these places of their data."""
    assert self.records is not None
    return self[np.flatnonzero(np.isin(self.records, records))]


@dataclasses.dataclass(frozen=True)
class Parts:
  """The examples of a probe.

  Attributes:
    train: to train on.
    test: to test on, with classes of the same numbers.
    about: what the result says of the data.
  """

  train: Examples
  test: Examples
  about: dict[str, Any]


def read_parts(
  data: str,
  *,
  embed: Callable[[np.ndarray], np.ndarray],
  preprocess: preprocess_lib.Preprocess,
  train_data: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> Parts:
  """Returns the features of both splits; arguments are as in
  `linear_probe.evaluate`."""
  train_data, data = addresses(data, train_data)
  opened = [sources.open_source(address) for address in (train_data, data)]
  numbers = check_parts(opened, (train_data, data), may_lack=True)
  total, done = sum(map(len, opened)), 0
  bad: collections.Counter[str] = collections.Counter()
  read, warnings = [], []
  for source, address in zip(opened, (train_data, data), strict=True):
    warnings += account.tell(source, address)
    read.append(
      read_all(
        source,
        address,
        embed,
        bad=bad,
        preprocess=preprocess,
        reading=reading.part(done, total),
      )
    )
    done += len(source)
  train, test = (
    dataclasses.replace(
      part, labels=own[part.labels], class_names=numbers.names
    )
    for part, own in zip(read, (numbers.train, numbers.test), strict=True)
  )
  if lacking := sorted({*numbers.names} - {*(opened[1].class_names or ())}):
    warnings.append(
      f"{data} has no image of {len(lacking)} of the "
      f"{terminal.counted(len(numbers.names), 'class', 'classes')} of "
      f"{train_data}, such as {lacking[0]!r:.80}."
    )
    _LOGGER.warning("%s", warnings[-1])
  about = {
    "data": data,
    "train_data": train_data,
    "bad_records": dict(bad),
    "warnings": warnings,
  }
  return Parts(train, test, about)


def addresses(data: str, train_data: str = "") -> tuple[str, str]:
  """Returns the addresses to train on and to test on.

  Args:
    data: as in `linear_probe.evaluate`.
    train_data: as in `linear_probe.evaluate`.

  Raises:
    UserError: they are the same, or `data` has no two splits.
  """
  if not train_data:
    return splits.train_and_test(data)
  if train_data == data:
    raise errors.UserError(f"{data} {_BOTH}")
  return train_data, data


def unlabelled(address: str) -> errors.UserError:
  """Returns the error for data of which a probe needs the labels."""
  return errors.UserError(f"{address} has examples without a label.")


class Numbers(NamedTuple):
  """The classes of two parts, as both are numbered from then on.

  Attributes:
    names: of the classes.
    train: the number of each class of the training data.
    test: the number of each class of the test data.
  """

  names: tuple[str, ...]
  train: np.ndarray
  test: np.ndarray


def check_parts(
  opened: Sequence[sources.Source],
  addresses: Sequence[str],
  *,
  may_lack: bool = False,
) -> Numbers:
  """Returns what `check_classes` does, of two parts that share no record.

  Args:
    opened: the training and the test data.
    addresses: of both, for messages.
    may_lack: as in `check_classes`.

  Raises:
    UserError: a record is in both, or as in `check_classes`.
  """
  numbers = check_classes(opened, addresses, may_lack=may_lack)
  overlap.check_apart(opened, addresses, hint=_BOTH)
  return numbers


def check_classes(
  opened: Sequence[sources.Source],
  addresses: Sequence[str],
  *,
  may_lack: bool = False,
) -> Numbers:
  """Returns the classes of two parts: the test data's, by their numbers there.

  Args:
    opened: the training and the test data.
    addresses: of both, for messages.
    may_lack: whether the test data need not have all classes of the training
      data; these are taken then.

  Raises:
    UserError: one has no classes, or they have not the same.
  """
  for source, address in zip(opened, addresses, strict=True):
    if source.class_names is None:
      raise errors.UserError(
        f"{address} has no classes to tell apart; a probe needs labelled data "
        "such as builtin:digits or a folder of class folders."
      )
  train, test = (tuple(source.class_names or ()) for source in opened)
  lacks = may_lack and {*test} < {*train}
  if not lacks:
    splits.check_same_classes((train, test), addresses)
  if train == test:
    return Numbers(test, np.arange(len(train)), np.arange(len(test)))
  if twice := prompts.repeated(train) or prompts.repeated(test):
    raise errors.UserError(
      f"{addresses[0]} and {addresses[1]} name their classes in different "
      f"orders, and give several the name {twice[0]!r}. Give all classes names "
      "that differ."
    )
  names = train if lacks else test
  own = (np.array([names.index(x) for x in part]) for part in (train, test))
  return Numbers(names, *own)


def read_all(
  source: sources.Source,
  address: str,
  embed: Callable[[np.ndarray], np.ndarray],
  *,
  bad: collections.Counter[str],
  preprocess: preprocess_lib.Preprocess,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> Examples:
  """Returns the features of labelled data.

  Args:
    source: the data.
    address: its DATA address, for messages.
    embed: returns features (n, width) of uint8 images (n, size, size, 3).
    bad: a counter of bad records by reason, changed in place.
    preprocess: how an image becomes an array.
    reading: how the data are read.

  Raises:
    UserError: there is no example, or one without a label; features are not
      finite.
  """
  with reading.watched(source, preprocess, bad) as batches:
    return _embed(batches, embed, source.class_names, address)


def _embed(batches, embed, class_names, address: str) -> Examples:
  features, labels, records = [], [], []
  for batch in batches:
    if not len(batch["image"]):  # All of them are bad.
      continue
    features.append(np.asarray(embed(batch["image"]), np.float32))
    labels.append(batch["label"])
    records.append(batch["record"])
  if not features:
    raise errors.UserError(f"{address} has no example.")
  examples = Examples(
    np.concatenate(features),
    np.concatenate(labels),
    tuple(class_names or ()),
    np.concatenate(records),
  )
  if np.any(examples.labels < 0):
    raise unlabelled(address)
  if not np.all(np.isfinite(examples.features)):
    raise errors.UserError(NOT_FINITE)
  return examples
