"""What columns of tables and features of TFDS are usually called."""

import re
from collections.abc import Sequence

PATHS = ("filepath", "image_path", "img_path", "file_name", "filename", "path")
# With a slash in TFRecords, by TFDS and others.
CAPTIONS = (
  *("caption", "captions", "text", "texts", "txt", "title", "sentences"),
  *("sentence", "raw", "TEXT", "alt_text", "description", "answer"),
  *("captions/text", "image/caption"),
)
_KEYS = re.compile(
  r"(.*[_/])?(key|url|id|ids|uuid|sha256|md5|license|split|source"
  r"|file|path|file_?names?|file_?paths?)_*",
  re.IGNORECASE,
)


def is_key(name: str) -> bool:
  """Whether texts called `name` are keys, addresses or names of files."""
  return name in PATHS or _KEYS.fullmatch(name) is not None


def tell_guess(
  what: str,
  *,
  image: str,
  captions: Sequence[str],
  label: str | None,
  has_paths: bool = False,
) -> str:
  """Returns a sentence that says what is read from which column or feature.

  Args:
    what: "Columns" or "Features".
    image: the name of that of the images.
    captions: those of the captions.
    label: that of the labels, where there are any.
    has_paths: whether images are read by their paths.
  """
  parts = [f"{'paths of images' if has_paths else 'images'} from {image!r}"]
  if captions:
    parts.append(f"captions from {', '.join(map(repr, captions))}")
  if label is not None:
    parts.append(f"labels from {label!r}")
  return (
    f"{what}, guessed by type and name: {', '.join(parts)}; ?image=, "
    "?caption= and ?label= choose others."
  )
