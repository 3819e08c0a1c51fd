"""The names of WordNet's synsets, from its database files.

The format is that of WordNet 3 (`wndb(5WN)`): a line of `data.noun` and the
like has offset, file number, class, the number of words in hexadecimal, and the
words, each with a number behind it.
"""

import os
import re
from collections.abc import Sequence

from clip_jax import errors, regular_files, terminal

CLASSES = ("noun", "verb", "adj", "adv")
_MAX_FILE_BYTES = 256 * 2**20
_SUBFOLDERS = ("", "dict")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # Where an adjective may stand.


def read_names(
  directory: str | os.PathLike, *, classes: Sequence[str] = CLASSES
) -> list[str]:
  """Returns the name of each synset, its first word, with spaces.

  Synsets of the same name give it as often as there are such.

  Args:
    directory: has `data.noun`, `data.verb`, `data.adj` and `data.adv`, itself
      or in its folder `dict`.
    classes: of words; whose synsets.

  Raises:
    UserError: a file is missing or is none of WordNet's.
  """
  errors.check_local("WordNet", directory)
  directory = os.path.expanduser(directory)
  folders = [os.path.join(directory, name) for name in _SUBFOLDERS]
  for folder in folders:
    if os.path.exists(os.path.join(folder, f"data.{CLASSES[0]}")):
      break
  else:
    raise errors.UserError(
      f"{directory!r} has no file data.noun; give the directory of WordNet's "
      "database, such as /usr/share/wordnet."
    )
  return [
    name
    for kind in classes
    for name in _read(os.path.join(folder, f"data.{kind}"))
  ]


def _read(path: str) -> list[str]:
  data = regular_files.read_regular(path, limit=_MAX_FILE_BYTES)
  if len(data) > _MAX_FILE_BYTES:
    raise errors.UserError(
      f"{path} has more than {terminal.size(_MAX_FILE_BYTES)}, too much for a "
      "file of WordNet's; get it again."
    )
  names = []
  for number, line in enumerate(data.splitlines(), 1):
    if line.startswith(b"  ") or not line.strip():  # The licence.
      continue
    try:
      fields = line.decode("utf-8").split(" ")
      if int(fields[0]) < 0 or int(fields[3], 16) < 1:
        raise ValueError
      names.append(_MARKER.sub("", fields[4]).replace("_", " "))
    except (ValueError, IndexError):
      raise errors.UserError(
        f"Line {number} of {path} is none of WordNet's: {line[:60]!r}; get "
        "the file again."
      ) from None
  return names
