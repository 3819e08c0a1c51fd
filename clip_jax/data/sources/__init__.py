"""Random-access sources of records, opened by a short address.

An address is `SCHEME:PATH`, with options after it where a scheme has some:
`csv:pairs.tsv?image=filepath&caption=title`. Every scheme has `split=train` and
`split=held_out`, two parts of data that has none of its own, and with them
`held_out=0.1` for another share than a fifth. Where data have splits of their
own, `split=` alone names one of them.
"""

import importlib

from clip_jax import errors
from clip_jax.data import schemes
from clip_jax.data.record import BadRecord, Record, Source
from clip_jax.data.schemes import (
  has_scheme,
  parse_address,
  split_address,
  without_split,
)
from clip_jax.data.sources import views

__all__ = [
  "BadRecord",
  "Record",
  "Source",
  "has_scheme",
  "open_source",
  "parse_address",
  "split_address",
  "without_split",
]


def open_source(address: str, *, with_texts: bool = True) -> Source:
  """Opens the source at `address`.

  Args:
    address: of the data.
    with_texts: whether each record needs a text; without one it can only be
      looked at and embedded.

  Raises:
    UserError: it cannot be opened, or its records have no texts.
  """
  scheme, path, options = parse_address(address)
  if with_texts and scheme in schemes.WITHOUT_TEXTS:
    raise errors.UserError(
      f"{address} has images alone, for `clip-jax embed` and `clip-jax data "
      f"inspect`. This needs captions or classes, too: folder:{path} reads "
      "them from names of folders, or from a .txt file beside each image."
    )
  module, function, known = schemes.SCHEMES[scheme]
  split, share = (options.pop(name, None) for name in schemes.OF_ALL)
  if share is not None and split is None:
    raise errors.UserError(
      f"{address}: held_out={share} goes with split=train or split=held_out."
    )
  if "split" in known and split is not None and share is None:
    options["split"], split = split, None
  opener = importlib.import_module(f"clip_jax.data.{module}")
  source = getattr(opener, function)(path, options)
  if split is None:
    return source
  share = views.HELD_OUT if share is None else _share(share)
  return views.part(source, split, held_out=share)


def _share(text: str) -> float:
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if not 0 < share < 1:
    raise errors.UserError(
      f"held_out={text} must be a share between 0 and 1, such as 0.2."
    )
  return share
