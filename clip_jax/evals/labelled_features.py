"""Image features of labelled data, which probes are trained and tested on."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account, sources
from clip_jax.data.sources import overlap, splits
from clip_jax.evals import prompts
from clip_jax.evals import reading as reading_lib

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
  order = check_parts(opened, (train_data, data))
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
  train, test = read
  train = dataclasses.replace(train, labels=order[train.labels])
  train = dataclasses.replace(train, class_names=test.class_names)
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


def check_parts(
  opened: Sequence[sources.Source], addresses: Sequence[str]
) -> np.ndarray:
  """Returns what `check_classes` does, of two parts that share no record.

  Args:
    opened: the training and the test data.
    addresses: of both, for messages.

  Raises:
    UserError: a record is in both, or as in `check_classes`.
  """
  order = check_classes(opened, addresses)
  overlap.check_apart(opened, addresses, hint=_BOTH)
  return order


def check_classes(
  opened: Sequence[sources.Source], addresses: Sequence[str]
) -> np.ndarray:
  """Returns the test data's number of each class of the training data.

  Args:
    opened: the training and the test data.
    addresses: of both, for messages.

  Raises:
    UserError: one has no classes, or they have not the same.
  """
  for source, address in zip(opened, addresses, strict=True):
    if source.class_names is None:
      raise errors.UserError(
        f"{address} has no classes to tell apart; a probe needs labelled data "
        "such as builtin:digits or a folder of class folders."
      )
  train, test = (source.class_names or () for source in opened)
  splits.check_same_classes((train, test), addresses)
  if tuple(train) == tuple(test):
    return np.arange(len(train))
  if twice := prompts.repeated(train) or prompts.repeated(test):
    raise errors.UserError(
      f"{addresses[0]} and {addresses[1]} name their classes in different "
      f"orders, and give several the name {twice[0]!r}. Give all classes names "
      "that differ."
    )
  return np.array([test.index(name) for name in train])


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
