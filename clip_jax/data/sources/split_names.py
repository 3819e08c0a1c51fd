"""What the splits of data are called, and which of them an address names."""

from collections.abc import Collection

from clip_jax import errors
from clip_jax.data.sources import views

# In any case, the usual one first.
TRAINS = ("train", "training")
TESTS = ("test", "testing", "val", "valid", "validation", "dev")
_USUAL = frozenset(TRAINS + TESTS)


def is_usual(name: str) -> bool:
  """Whether a split, but hardly a class, is called `name`."""
  return name.lower() in _USUAL


def train_and_test(names: Collection[str]) -> tuple[str, str] | None:
  """Returns those of `names` to train and to test on; None without both."""
  there = {name.lower(): name for name in sorted(names)}
  found = [
    next((there[name] for name in usual if name in there), None)
    for usual in (TRAINS, TESTS)
  ]
  train, test = found
  return (train, test) if train and test else None


def chosen(wanted: str, known: Collection[str], *, what: str) -> list[str]:
  """Returns the splits of `known` that `wanted` names, joined by "+".

  Args:
    wanted: such as "train+restval".
    known: the splits that the data have.
    what: the data, for the message.

  Raises:
    UserError: one of them is not there.
  """
  names = wanted.split("+")
  for name in names:
    if name not in known:
      error = errors.unknown(f"split of {what}", name, known)
      if name in views.SPLITS:
        error = errors.UserError(
          f"{error} A share of all is held out by"
          f" ?split={name}&held_out={views.HELD_OUT:g}."
        )
      raise error
  return names
