"""The parts of some data to train on and to test on."""

import os

from clip_jax import errors
from clip_jax.data import builtin, sources

_TESTS = ("test", "val", "validation", "valid")


def train_and_test(address: str) -> tuple[str, str]:
  """Returns the addresses of both parts; opens nothing.

  Built-in data and TensorFlow Datasets have the splits `train` and `test`. A
  folder may hold two of these names. Of other data a fifth is held out.

  Raises:
    UserError: the address names one split already.
  """
  scheme, path, options = sources.parse_address(address)
  rest = address.removeprefix(f"{scheme}:{path}")
  named = scheme == "builtin" and path not in builtin.SPLITS
  if "split" in options or named or (scheme == "tfds" and "/" in path):
    raise errors.UserError(
      f"{address} names one split, and this task trains on one and tests on "
      "another. Give the address without its split, or the part to train on "
      "with --train-data."
    )
  if scheme in ("builtin", "tfds"):
    return f"{scheme}:{path}/train{rest}", f"{scheme}:{path}/test{rest}"
  if scheme == "folder" and os.path.isdir(os.path.join(path, "train")):
    for name in _TESTS:
      if os.path.isdir(os.path.join(path, name)):
        inside = path.rstrip("/")
        return f"folder:{inside}/train{rest}", f"folder:{inside}/{name}{rest}"
  joint = "&" if options else "?"
  return f"{address}{joint}split=train", f"{address}{joint}split=held_out"
