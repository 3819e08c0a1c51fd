"""Limits of a request to the page, and of the space that all uploads take."""

import os

from clip_jax import errors
from clip_jax.evals import label_files

UPLOAD_BYTES = 20 * 2**20  # Of one file.
REQUEST_BYTES = 64 * 2**20  # Of one request that uploads files.
# Of all uploads that are kept at a time, where each counts as so many at least.
UPLOADS_BYTES = 2**30
LEAST_BYTES = 2**16
JSON_BYTES = 2**20  # Of any other request.
PICTURES = 16
LABELS = 200
TEMPLATES = 100
PROMPTS = 4000  # Labels times templates.
TEXTS = 32  # To compare with.
TEXT_CHARACTERS = 1000  # Of one label, template or text.
RESULTS = 60


def kept(directory: str) -> int:
  """Returns the bytes that all uploads below a directory count as."""
  total = 0
  for place, _, names in os.walk(directory):
    for name in names:
      try:
        size = os.stat(os.path.join(place, name)).st_size
      except OSError:  # It was removed meanwhile.
        continue
      total += max(size, LEAST_BYTES)
  return total


def listed(text: object, what: str, *, most: int) -> list[str]:
  """Returns the texts of a field: one a line, or separated by commas.

  It never reads a file that the text might name, unlike the command line: what
  is typed here comes from anybody.

  Args:
    text: what was typed.
    what: the name of the field, for messages.
    most: number of texts.

  Raises:
    UserError: it is no text, empty, or has too many or too long parts.
  """
  found = plain(text, f"the {what}", most=most * (TEXT_CHARACTERS + 1))
  return checked(label_files.parted(found), what, most=most)


def lines(text: object, what: str, *, most: int) -> list[str]:
  """Returns the texts of a field, one a line, commas and all.

  Args:
    text: as in `listed`.
    what: as in `listed`.
    most: as in `listed`.

  Raises:
    UserError: as in `listed`.
  """
  found = plain(text, f"the {what}", most=most * (TEXT_CHARACTERS + 1))
  return checked(label_files.lines(found), what, most=most)


def checked(parts: list[str], what: str, *, most: int) -> list[str]:
  """Returns the parts that are not empty, each once.

  Raises:
    UserError: no part is left, there are too many, or one is too long.
  """
  parts = list(dict.fromkeys(part for part in parts if part))
  if not parts:
    raise errors.UserError(f"Write at least one of the {what}.")
  if len(parts) > most:
    raise errors.UserError(
      f"There are {len(parts)} {what}; write at most {most}."
    )
  one = f"one of the {what}"
  return [plain(part, one, most=TEXT_CHARACTERS) for part in parts]


def plain(text: object, what: str, *, most: int) -> str:
  """Returns `text`, if it is a text of at most so many characters.

  Raises:
    UserError: it is not.
  """
  if not isinstance(text, str):
    raise errors.UserError(
      f"There must be text in {what}, got {type(text).__name__}."
    )
  if len(text) > most:
    raise errors.UserError(
      f"There are {len(text):,} characters in {what}; write at most {most:,}."
    )
  # A lone surrogate, which JSON can hold and no tokenizer can read.
  return text.encode("utf-8", "replace").decode("utf-8")


def whole_number(value: object, what: str, *, most: int) -> int:
  """Returns `value`, if it is a whole number from 1 to `most`.

  Raises:
    UserError: it is not.
  """
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if is_number and 1 <= value <= most and value == int(value):  # pyright: ignore
    return int(value)  # pyright: ignore
  raise errors.UserError(
    f"The {what} must be from 1 to {most}, got {value!r:.50}."
  )
