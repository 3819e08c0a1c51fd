"""Random-access sources of records, opened by a short address.

An address is `SCHEME:PATH`, with options after it where a scheme has some:
`csv:pairs.tsv?image=filepath&caption=title`.
"""

import importlib
import re
import urllib.parse

from clip_jax import errors
from clip_jax.data.record import BadRecord, Record, Source

__all__ = ["BadRecord", "Record", "Source", "open_source", "parse_address"]

# Scheme: module, function, names of its options.
_SCHEMES = {
  "arrayrecord": ("sources.array_record", "open_array_record", ()),
  "builtin": ("builtin", "open_builtin", ()),
  "csv": (
    "sources.table",
    "open_table",
    ("image", "caption", "root", "sep", "quote", "links"),
  ),
  "folder": ("sources.folder", "open_folder", ("layout", "captions", "links")),
  "tfds": (
    "sources.tfds",
    "open_tfds",
    ("data_dir", "image", "caption", "label"),
  ),
  "wds": ("sources.webdataset", "open_webdataset", ("captions", "classes")),
}
# The "?" of a glob is not followed by `name=`.
_OPTIONS = re.compile(r"\?((?:[a-z_]+=[^&?]*)(?:&[a-z_]+=[^&?]*)*)$")


def parse_address(address: str) -> tuple[str, str, dict[str, str]]:
  """Splits `SCHEME:PATH?name=value&...` into scheme, path and options.

  A "%26" in a value stands for "&" (percent-encoding as in URLs).
  """
  scheme, colon, path = address.partition(":")
  if not colon:
    raise errors.UserError(
      f"DATA address {address!r} has no scheme. Put one of these in front of"
      f" it: {', '.join(f'{name}:' for name in sorted(_SCHEMES))}."
    )
  if scheme not in _SCHEMES:
    raise errors.unknown("DATA scheme", scheme, _SCHEMES)
  options: dict[str, str] = {}
  if match := _OPTIONS.search(path):
    path = path[: match.start()]
    known = _SCHEMES[scheme][2]
    if not known:
      raise errors.UserError(f"{scheme}: takes no options, got {match[0]!r}.")
    for item in match[1].split("&"):
      name, _, value = item.partition("=")
      if name not in known:
        raise errors.unknown(f"option of {scheme}:", name, known)
      options[name] = urllib.parse.unquote(value)
  if not path:
    raise errors.UserError(f"DATA address {address!r} names no data.")
  return scheme, path, options


def open_source(address: str) -> Source:
  """Opens the source at `address`; raises `UserError` where it cannot."""
  scheme, path, options = parse_address(address)
  module, function, _ = _SCHEMES[scheme]
  opener = importlib.import_module(f"clip_jax.data.{module}")
  return getattr(opener, function)(path, options)
