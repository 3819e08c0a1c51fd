"""The error message for a model that does not exist, with suggestions."""

import pathlib
import re

from clip_jax import errors
from clip_jax.convert import hub
from clip_jax.models import variants

_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
# How similar a name must be to be suggested.
_CLOSE = 0.8


def missing(path: pathlib.Path, accepted: str) -> str:
  """Returns the message for a path that does not exist.

  Args:
    path: the path as the user gave it.
    accepted: a description of what can be given.
  """
  name = str(path)
  what = f"Model {name!r} does not exist"
  # OpenAI writes ViT-L/14@336px.
  variant = name.replace("/", "-").replace("@336px", "-336")
  known = {x.lower(): x for x in variants.VARIANTS}
  if variant.lower() in known:
    found = known[variant.lower()]
    return (
      f"{what} as a file or directory. {found} is the name of an architecture, "
      f"which has no weights by itself: clip_jax.create_model({found!r}) makes "
      f"it untrained, `clip-jax train --config … --config.model={found}` "
      "trains it, and a checkpoint of it is given by its path or as "
      f"{hub.PREFIX}ORG/NAME."
    )
  if errors.nearest(variant, variants.VARIANTS, cutoff=_CLOSE):
    near = errors.nearest(variant, variants.VARIANTS)
    return (
      f"{what}. The nearest names of architectures, which have no weights, are "
      f"{', '.join(near)} (`clip-jax models`); give {accepted}."
    )
  if _ON_THE_HUB.fullmatch(name) and not path.parent.exists():
    return (
      f"{what} here. If it is a model of the HuggingFace Hub, give "
      f"{hub.PREFIX}{name}; else {accepted}."
    )
  beside = []
  if path.parent.is_dir():
    names = [entry.name for entry in path.parent.iterdir()]
    beside = errors.nearest(path.name, names, cutoff=0.5)
  hint = f" Near it are {', '.join(beside)}." if beside else ""
  return f"{what}.{hint} Give {accepted}."
