"""The parts of some data to train on and to test on."""

import os
from collections.abc import Sequence

from clip_jax import errors, places
from clip_jax.data import builtin, sources
from clip_jax.data.sources import (
  hf_files,
  parquet_files,
  split_names,
  views,
)

_LISTS = {"parquet": parquet_files.list_files, "hf": hf_files.list_files}


def train_and_test(
  address: str, *, hint: str = ", or the part to train on with --train-data"
) -> tuple[str, str]:
  """Returns the addresses of both parts; opens nothing.

  Built-in data and TensorFlow Datasets have the splits `train` and `test`. A
  folder of images or shards may hold two of these names, and tables files of
  two. Of other data a fifth is held out.

  Args:
    address: a DATA address.
    hint: what else to do where it names one split.

  Raises:
    UserError: the address names one split already.
  """
  scheme, path, options = sources.parse_address(address)
  rest = address.removeprefix(f"{scheme}:{path}")
  data_set, slash, _ = path.partition("/")
  if scheme == "builtin" and data_set not in builtin.SPLITS:
    raise errors.unknown("built-in data", data_set, builtin.SPLITS)
  named = scheme in ("builtin", "tfds") and slash
  listed = _LISTS[scheme](path) if scheme in _LISTS else None
  named = named or (listed and listed.split)
  if "split" in options or named:
    raise errors.UserError(
      f"{address} names one split, and this task trains on one and tests on "
      f"another. Give the address without its split{hint}."
    )
  if scheme in ("builtin", "tfds"):
    return f"{scheme}:{path}/train{rest}", f"{scheme}:{path}/test{rest}"
  parts = _folders(scheme, path)
  if listed and not parts:
    parts = split_names.train_and_test(listed.splits)
  if parts:
    train, test = (f"{scheme}:{os.path.join(path, name)}" for name in parts)
    return f"{train}{rest}", f"{test}{rest}"
  if listed and listed.splits:
    train, test = (
      sources.split_address(address, part, views.HELD_OUT)
      for part in views.SPLITS
    )
    return train, test
  joint = "&" if options else "?"
  return f"{address}{joint}split=train", f"{address}{joint}split=held_out"


def _folders(scheme: str, path: str) -> tuple[str, str] | None:
  """Returns the folders to train and to test on inside of one, or None."""
  path = places.expanded(path)
  if scheme not in ("folder", "wds") or not places.is_folder(path):
    return None
  names = places.names(path)
  if scheme == "wds" and any(x.lower().endswith(".tar") for x in names):
    return None  # It holds shards itself.
  return split_names.train_and_test(names)


def check_same_classes(
  classes: Sequence[Sequence[str]], addresses: Sequence[str]
) -> None:
  """Raises UserError unless two parts have the same classes, in any order.

  Args:
    classes: the names of each part's.
    addresses: of both, for the message.
  """
  first, second = classes
  if odd := sorted(set(first) ^ set(second)):
    raise errors.UserError(
      f"{addresses[0]} and {addresses[1]} have different classes: "
      f"{', '.join(odd[:5])} {'is' if len(odd) == 1 else 'are'} in one only."
    )
