"""Addresses of data: parsed, before anything is opened or imported for it."""

import itertools
import os
import re
import urllib.parse

from clip_jax import buckets, errors

# Scheme: module, function, names of its options. With `split` among them, the
# function takes splits of the data's own.
SCHEMES = {
  "arrayrecord": ("sources.array_record", "open_array_record", ()),
  "builtin": ("builtin", "open_builtin", ()),
  "coco": (
    "sources.coco",
    "open_coco",
    ("root", "captions", "images", "links", "split"),
  ),
  "csv": (
    "sources.table",
    "open_table",
    ("image", "caption", "label", "root", "sep", "quote", "links"),
  ),
  "folder": ("sources.folder", "open_folder", ("layout", "captions", "links")),
  "hf": (
    "sources.hf",
    "open_hf",
    ("image", "caption", "label", "classes", "root", "links", "split"),
  ),
  "images": ("sources.images_alone", "open_images", ("links",)),
  "parquet": (
    "sources.parquet",
    "open_parquet",
    ("image", "caption", "label", "classes", "root", "links", "split"),
  ),
  "tfds": (
    "sources.tfds",
    "open_tfds",
    ("data_dir", "image", "caption", "label", "ignored"),
  ),
  "tfrecord": (
    "sources.tfrecord",
    "open_tfrecord",
    ("image", "caption", "label", "classes"),
  ),
  "wds": (
    "sources.webdataset",
    "open_webdataset",
    ("captions", "classes", "labels"),
  ),
}
# Whose records have no texts.
WITHOUT_TEXTS = ("images",)
# Whose paths are not those of files.
_NAMED = ("builtin", "tfds")
OF_ALL = ("split", "held_out")
# The "?" of a glob is not followed by `name=`.
_OPTIONS = re.compile(
  r"\?((?:[A-Za-z_][\w-]*=[^&?]*)(?:&[A-Za-z_][\w-]*=[^&?]*)*)$"
)
# The scheme of what a name ends with.
_SUFFIXES = {
  "wds": (".tar",),
  "csv": (".csv", ".tsv", ".txt"),
  "parquet": (".parquet",),
  "tfrecord": (".tfrecord",),
}
# The scheme of a folder, by a part of the names of files in it.
_IN_FOLDERS = {
  "wds": ".tar",
  "parquet": ".parquet",
  "tfrecord": ".tfrec",
  "arrayrecord": ".array_record",
  "hf": ".arrow",
}


def has_scheme(text: str) -> bool:
  """Whether `text` begins with a scheme, as an address does."""
  return text.partition(":")[0] in SCHEMES and ":" in text


def parse_address(address: str) -> tuple[str, str, dict[str, str]]:
  """Splits `SCHEME:PATH?name=value&...` into scheme, path and options.

  A "%26" in a value stands for "&" (percent-encoding as in URLs).
  """
  scheme, colon, path = address.partition(":")
  _check_place(address, scheme, path)
  if not colon:
    likely = _likely_scheme(address)
    hint = f" Did you mean {likely}:{address}?" if likely else ""
    raise errors.UserError(
      f"DATA address {address!r} has no scheme.{hint} Put one of these in "
      f"front of it: {', '.join(f'{name}:' for name in sorted(SCHEMES))}."
    )
  if scheme not in SCHEMES:
    raise errors.unknown("DATA scheme", scheme, SCHEMES)
  options: dict[str, str] = {}
  if match := _OPTIONS.search(path):
    path = path[: match.start()]
    known = dict.fromkeys((*SCHEMES[scheme][2], *OF_ALL))
    for item in match[1].split("&"):
      name, _, value = item.partition("=")
      if name not in known:
        elsewhere = [f"{x}:" for x in SCHEMES if name in SCHEMES[x][2]]
        if elsewhere and not errors.nearest(name, known, cutoff=0.75):
          raise errors.UserError(
            f"DATA address {address!r}: {name}= is an option of "
            f"{', '.join(elsewhere)}; {scheme}: takes {', '.join(known)}."
          )
        raise errors.unknown(f"option of {scheme}:", name, known)
      if name in options:
        raise errors.UserError(
          f"DATA address {address!r} gives {name}= twice; leave one out."
        )
      options[name] = urllib.parse.unquote(value)
  if not path:
    raise errors.UserError(f"DATA address {address!r} names no data.")
  if ".tar::" in path:
    parts = path.split("::")
    several = f"{scheme}:{{{','.join(parts)}}}"
    if "{" in path:  # Ranges are not nested.
      weights = ", ".join(f'"{scheme}:{part}": 1' for part in parts)
      several = f"{{{weights}}} for data.train"
    raise errors.UserError(
      f"DATA address {address!r} joins tars by '::'. Several are written "
      f"{several}."
    )
  return scheme, path, options


def _likely_scheme(path: str) -> str:
  """Returns the scheme that a path without one was to have; "" if unknown."""
  if not os.path.isdir(path):
    ends = (name for name, ends in _SUFFIXES.items() if path.endswith(ends))
    return next(ends, "")
  try:
    with os.scandir(path) as entries:
      names = [entry.name for entry in itertools.islice(entries, 1000)]
  except OSError:
    return ""
  parts = _IN_FOLDERS.items()
  found = (
    scheme for scheme, part in parts if any(part in name for name in names)
  )
  return next(found, "folder")


def _check_place(address: str, scheme: str, path: str) -> None:
  """Raises UserError for a remote address that is not read."""
  if buckets.is_address(address):
    known = " or ".join(f"{x}:{address}" for x in SCHEMES if x not in _NAMED)
    raise errors.UserError(
      f"DATA address {address!r} does not say what kind of data it is; give "
      f"{known}."
    )
  match = _OPTIONS.search(path)
  place = path[: match.start()] if match else path
  for item in match[1].split("&") if match else ():
    if not buckets.is_address(value := item.partition("=")[2]):
      errors.check_local("DATA", value)
  if not buckets.is_address(place):
    errors.check_local("DATA", place)
    errors.check_local("DATA", f"{scheme}:{place}")
  elif scheme in _NAMED:
    raise errors.UserError(
      f"DATA address {address!r} names a folder where the name of data stands"
      "; tfds:NAME/SPLIT?data_dir=gs://BUCKET/FOLDER (or s3://) is read."
    )


def without_split(address: str) -> str:
  """Returns `address` without its split, its options in a fixed order."""
  scheme, path, options = parse_address(address)
  rest = sorted(x for x in options.items() if x[0] not in OF_ALL)
  return f"{scheme}:{path}?{rest}"


def split_address(address: str, split: str, held_out: float) -> str:
  """Returns the address of one of the two parts of the data at `address`.

  Raises:
    UserError: it names a split already.
  """
  options = parse_address(address)[2]
  if "split" in options:
    raise errors.UserError(
      f"{address} names its split already: leave that out, or set "
      "data.held_out=0 and give the evaluations their own data."
    )
  return f"{address}{'&' if options else '?'}split={split}&held_out={held_out}"
