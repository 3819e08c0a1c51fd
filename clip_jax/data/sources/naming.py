"""Which part of which sample a file is, by its name.

A part is named `KEY.SUFFIX`. The key ends at the first dot after the last
slash, as WebDataset has it, where a known suffix follows: `a.jpg`. Where none
does, there are two kinds of names, told apart by the other names of the shard:

- `photo 0.5 final.jpg`: the key has dots, and ends at the last one.
- `s1.input.jpg` beside `s1.outputs.txt`: the suffix has dots. Both are parts of
  `s1`, if up to their last dots neither makes a sample anywhere in the shard,
  together they make one, and other samples have parts of the same names.

What is left of the second kind beside a sample that is complete without it
(`s1.mask.png` beside `s1.jpg` and `s1.txt`) is not read.
"""

import collections
import re
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

IMAGE, TEXT, JSON, LABEL, UNREAD_IMAGE = range(5)
IMAGE_SUFFIXES = (
  *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib"),
  *("tif", "tiff", "jp2", "j2k", "jpx", "j2c", "jpc", "jpf", "avif", "avifs"),
  *("ppm", "pgm", "pbm", "pnm", "mpo"),
)
# Images, too, but of formats that are not decoded.
UNREAD_SUFFIXES = (
  *("heic", "heif", "hif", "heics", "jxl", "jxr", "wdp", "svg", "svgz", "psd"),
  *("ico", "icns", "cur", "tga", "exr", "hdr", "eps", "pcx", "sgi", "dds"),
  *("pfm", "pam", "qoi", "xbm", "xpm", "wbmp", "wmf", "emf"),
  *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw", "xcf"),
)
TEXT_SUFFIXES = {"txt": TEXT, "json": JSON}
_KINDS = {
  **dict.fromkeys(IMAGE_SUFFIXES, IMAGE),
  **dict.fromkeys(UNREAD_SUFFIXES, UNREAD_IMAGE),
  **TEXT_SUFFIXES,
  "cls": LABEL,
}
_FIELD = re.compile(r"[A-Za-z][\w-]*")


class Part(NamedTuple):
  """The part of a sample in a file; `field` is its whole suffix, lower case."""

  key: str
  field: str
  kind: int


def is_image_suffix(suffix: str) -> bool:
  """Whether files that end so are images, read or not."""
  return _KINDS.get(suffix) in (IMAGE, UNREAD_IMAGE)


def split(name: str, *, labels: Container[str] = ()) -> Part | None:
  """Returns the part up to the last dot; None where it is not to be read.

  Args:
    name: of the file.
    labels: suffixes of labels besides "cls".
  """
  directory, slash, base = name.rpartition("/")
  stem, _, suffix = base.rpartition(".")
  kind = _KINDS.get(suffix.lower())
  if suffix.lower() in labels:
    kind = LABEL
  if kind is None or not stem or base.startswith("."):
    return None
  return Part(directory + slash + stem, suffix.lower(), kind)


def is_dotted(key: str) -> bool:
  """Whether the file's name has another dot, at which its key may end, too."""
  return _first_dot(key) > 0


def _first_dot(key: str) -> int:
  return key.find(".", key.rfind("/") + 1)


def split_all(
  names: Sequence[str], *, labels: Container[str] = ()
) -> list[Part | None]:
  """Returns the parts that the files of a shard are, None where not read.

  Args:
    names: of the files.
    labels: as in `split`.
  """
  parts: list[Part | None] = []
  # By the last dot and by the first, whose suffix is not known.
  dotted: dict[int, tuple[Part, Part]] = {}
  for number, name in enumerate(names):
    part = split(name, labels=labels)
    if part is not None and (dot := _first_dot(part.key)) > 0:
      field = f"{part.key[dot + 1 :].lower()}.{part.field}"
      dotted[number] = part, Part(part.key[:dot], field, part.kind)
    parts.append(part)
  if dotted:
    _settle(parts, dotted)
  return parts


def _settle(
  parts: list[Part | None], dotted: dict[int, tuple[Part, Part]]
) -> None:
  """Decides for each of `dotted` which dot ends its key; changes `parts`."""
  kinds = collections.defaultdict(list)  # Of each key as in `parts`.
  for part in parts:
    if part is not None:
      kinds[part.key].append(part.kind)
  inner = collections.defaultdict(set)  # Short key: the keys up to last dots.
  owners = collections.defaultdict(set)  # Field: short keys that have it.
  whole_fields = set()  # Fields of a key that makes a sample by itself.
  for long, short in dotted.values():
    inner[short.key].add(long.key)
    owners[short.field].add(short.key)
    if _is_sample(kinds[long.key]):
      whole_fields.add(short.field)
  plain = {part.key for i, part in enumerate(parts) if part and i not in dotted}
  alone = len(inner) == 1 and plain <= set(inner)

  def is_field(field: str) -> bool:
    if field in whole_fields:
      return False
    return len(owners[field]) > 1 or (
      alone and all(map(_FIELD.fullmatch, field.split(".")))
    )

  fields = {field for field in owners if is_field(field)}
  left_out: list[int] = []
  joined = collections.defaultdict(set)
  for long, short in dotted.values():
    if short.field in fields:
      joined[short.key].add(long.kind)
  beside = {
    short
    for short, keys in inner.items()
    if any(_is_sample(kinds[key]) for key in keys)
  }
  for number, (long, short) in dotted.items():
    if _is_sample(kinds[long.key]):
      continue
    own = kinds[short.key] if short.key in plain else []
    known = short.field in fields
    if _is_sample(own) or (known and short.key in beside):
      left_out.append(number)  # The sample is complete without it.
    elif known and (own or _is_sample(joined[short.key])):
      parts[number] = short
  for number in left_out:
    parts[number] = None


def _is_sample(kinds: Iterable[int]) -> bool:
  """Whether parts of these kinds make a sample."""
  return bool({IMAGE, UNREAD_IMAGE} & set(kinds)) and bool(
    {TEXT, JSON, LABEL} & set(kinds)
  )
