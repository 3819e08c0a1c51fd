"""The error for a config field that does not exist."""

from collections.abc import Iterable

from clip_jax import errors, other_trainers
from clip_jax.config import schema

_LEAST_SIMILARITY = 0.6  # Of two sections' names, from 0 to 1.
# Sections in which other trainers keep such fields, besides ours.
_SECTIONS = ("args", "dataloader", "lr", "scheduler", "trainer", "training")
# Last names that say too little of what is meant.
_VAGUE = ("model", "name", "output", "train")


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
  root = parents.partition(".")[0]
  same = [x for x in schema.SCHEMA if _is_like(x, root, leaf)]
  meant = other_trainers.meant(path, value)
  if meant is None and not same and root in _sections() and leaf not in _VAGUE:
    meant = other_trainers.meant(leaf, value)
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


def _is_like(known: str, root: str, leaf: str) -> bool:
  """Whether a field has this last name, in a section of about this name."""
  own, _, last = known.rpartition(".")
  if last != leaf:
    return False
  if not own:
    return root in (*_SECTIONS, "data", "optim") and leaf not in _VAGUE
  return not root or bool(errors.nearest(root, [own], cutoff=_LEAST_SIMILARITY))


def _sections() -> set[str]:
  own = {path.partition(".")[0] for path in schema.SCHEMA if "." in path}
  return own.union(_SECTIONS)
