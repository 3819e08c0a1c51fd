"""Where a run's models and data are, from any working directory."""

import dataclasses
import itertools
import os

from clip_jax import config as config_lib
from clip_jax.convert import opening
from clip_jax.data import mixture, sources

PARTS = ("model", "image", "text")
_NAMED = ("builtin", "tfds")  # Their addresses hold names, not paths.
_PATTERN = set("*?[{")


def whole(init: config_lib.Init) -> config_lib.Init:
  """Returns `init` with absolute paths, which a workdir keeps."""
  found = {part: _whole(getattr(init, part)) for part in PARTS}
  return dataclasses.replace(init, **found)


def is_same(kept: config_lib.Init, given: config_lib.Init) -> bool:
  """Whether a resumed run names the models with which it began.

  A path that was given relative to the first working directory need not exist
  any more, nor lead to the same place from this one.
  """

  def same(part: str) -> bool:
    old, new = getattr(kept, part), getattr(given, part)
    unseen = not (os.path.isabs(new) or os.path.exists(new or os.curdir))
    return _whole(old) == _whole(new) or (
      unseen and old.endswith(os.path.join(os.sep, os.path.normpath(new)))
    )

  return kept.scheme == given.scheme and all(map(same, PARTS))


def may_be_same_data(kept: str, given: str) -> bool:
  """Whether values of `data.train` may name the same data.

  The kept paths may be relative to another working directory. Whether the data
  are those with which the run began is decided by their fingerprint.
  """
  old, new = (list((mixture.parse(x) or {x: 1}).items()) for x in (kept, given))
  return len(old) == len(new) and all(
    share == other and _may_be_same_address(before, now)
    for (before, share), (now, other) in zip(old, new, strict=True)
  )


def _may_be_same_address(kept: str, given: str) -> bool:
  if kept == given:
    return True
  scheme, old, options = sources.parse_address(kept)
  new_scheme, new, new_options = sources.parse_address(given)
  if (scheme, options) != (new_scheme, new_options) or scheme in _NAMED:
    return False
  before, now = (os.path.realpath(_whole(path)) for path in (old, new))
  if before == now:
    return True
  # Where the kept path leads somewhere from here, it means what is there.
  if os.path.isabs(os.path.expanduser(old)) or _is_seen(before):
    return False
  inner = [part for part in os.path.normpath(old).split(os.sep) if part != ".."]
  return _whole(new).endswith(os.path.join(os.sep, *inner))


def _is_seen(path: str) -> bool:
  """Whether `path` exists, or the folder in front of its first pattern."""
  plain = itertools.takewhile(
    lambda part: not set(part) & _PATTERN, path.split(os.sep)
  )
  return os.path.exists(os.path.join(os.sep, *plain))


def _whole(address: str) -> str:
  if not address or opening.is_remote(address):
    return address
  return os.path.abspath(os.path.expanduser(address))
