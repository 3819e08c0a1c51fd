"""The error for a config field that does not exist."""

from collections.abc import Iterable

from clip_jax import errors, other_trainers
from clip_jax.config import schema

_LEAST_SIMILARITY = 0.8  # To an open field's name, from 0 to 1.


def error(
  path: str, value: str = "", *, known: Iterable[str] = schema.SCHEMA
) -> errors.UserError:
  """Returns the error, with what the field is called here.

  Args:
    path: of the field, such as "optim.lr".
    value: that it was given, as text; "" where that is not known.
    known: the names to list.
  """
  parents, _, leaf = path.rpartition(".")
  meant, same = other_trainers.meant(path, value), []
  root = parents.partition(".")[0]
  if not errors.nearest(root, schema.OPEN, cutoff=_LEAST_SIMILARITY):
    same = [x for x in schema.SCHEMA if x.rpartition(".")[2] == leaf]
    meant = meant or (None if same else other_trainers.meant(leaf, value))
  if meant is not None:
    return errors.UserError(
      f"Unknown config field {path!r:.100}, which is one of other trainers. "
      f"Here one writes {meant}."
    )
  if same:
    names = " or ".join(map(repr, same))
    return errors.UserError(
      f"Unknown config field {path!r:.100}. Did you mean {names}?"
    )
  return errors.unknown("config field", path, known)
