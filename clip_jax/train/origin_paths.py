"""Where the models with which a run begins are, from any working directory."""

import dataclasses
import os

from clip_jax import config as config_lib
from clip_jax.convert import hub

PARTS = ("model", "image", "text")


def whole(init: config_lib.Init) -> config_lib.Init:
  """Returns `init` with absolute paths, which a workdir keeps."""
  found = {part: _whole(getattr(init, part)) for part in PARTS}
  return dataclasses.replace(init, **found)


def is_same(kept: config_lib.Init, given: config_lib.Init) -> bool:
  """Tells whether a resumed run names the models with which it began.

  What is given relative to the first working directory need not be there
  anymore, or be seen from this one.
  """

  def same(part: str) -> bool:
    old, new = getattr(kept, part), getattr(given, part)
    unseen = not (os.path.isabs(new) or os.path.exists(new or os.curdir))
    return _whole(old) == _whole(new) or (
      unseen and old.endswith(os.path.join(os.sep, os.path.normpath(new)))
    )

  return kept.scheme == given.scheme and all(map(same, PARTS))


def _whole(address: str) -> str:
  if not address or hub.is_address(address):
    return address
  return os.path.abspath(os.path.expanduser(address))
