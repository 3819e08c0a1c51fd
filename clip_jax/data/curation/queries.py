"""The list of queries that a training set is balanced by."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence

from clip_jax import errors, json_text, regular_files, terminal
from clip_jax.data.curation import matching

MAX_FILE_BYTES = 2**30
_MAX_CHARACTERS = 1000
_LANGUAGE = re.compile(r"(?P<language>[a-z]{2,3})=(?P<file>.+)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Queries:
  """Queries, each once, in the order of the file.

  Attributes:
    texts: the queries; at least one.
    repeated: number of queries that repeat an earlier one.
  """

  texts: tuple[str, ...]
  repeated: int = 0

  def folded(self) -> "Queries":
    """Returns the queries without those that differ in capitals only."""
    first: dict[str, str] = {}
    for text in self.texts:
      first.setdefault(text.casefold(), text)
    again = len(self.texts) - len(first)
    return Queries(tuple(first.values()), repeated=self.repeated + again)

  @property
  def digest(self) -> str:
    """The SHA-256 of the queries, whatever their order."""
    digest = hashlib.sha256()
    for text in sorted(self.texts):
      digest.update(text.encode("utf-8") + b"\n")
    return digest.hexdigest()


def read(path: str | os.PathLike, *, entry: str = "query") -> Queries:
  """Returns the queries in a file: text with one a line, or a list in JSON.

  Spaces around a query are removed, and tabs and the ends of lines within one
  become spaces; empty lines are passed over.

  Args:
    path: of the file.
    entry: what messages call a query.

  Raises:
    OSError: it cannot be read.
    UserError: it is not UTF-8, or holds no query, or something else.
  """
  errors.check_local(f"The {entry} list", path)
  path = os.path.expanduser(path)
  data = regular_files.read_regular(path, limit=MAX_FILE_BYTES)
  if len(data) > MAX_FILE_BYTES:
    raise errors.UserError(
      f"{path} has more than {terminal.size(MAX_FILE_BYTES)}, too much for a "
      f"{entry} list; give a file with a {entry} a line."
    )
  if path.endswith(".json"):
    lines = _checked(json_text.parse(data, what=path, kind=list), path)
  else:
    lines = _decoded(data, path)
  # A query stands on one line of the tables: as in captions, what breaks lines
  # is a space.
  spaced = [line.translate(matching.SPACES).strip() for line in lines]
  found = [query for query in spaced if query]
  if too_long := [query for query in found if len(query) > _MAX_CHARACTERS]:
    raise errors.UserError(
      f"{path} has a {entry} of {len(too_long[0])} characters, at most "
      f"{_MAX_CHARACTERS} can be: {terminal.escaped(too_long[0], limit=60)}. "
      f"Put one {entry} on each line."
    )
  texts = tuple(dict.fromkeys(found))
  if not texts:
    raise errors.UserError(f"{path} holds no {entry}; put one on each line.")
  return Queries(texts, repeated=len(found) - len(texts))


def read_all(names: Sequence[str]) -> Queries | dict[str, Queries]:
  """Returns the list in a file, or of several `LANGUAGE=FILE` that of each.

  Raises:
    OSError: a file cannot be read.
    UserError: as `read`; or a file says not which language it is of, where
      another does or there are several, or says what another has said.
  """
  named = [_LANGUAGE.fullmatch(name) for name in names]
  if len(names) == 1 and not named[0]:
    return read(names[0])
  found: dict[str, Queries] = {}
  for name, match in zip(names, named, strict=True):
    if match is None or match["language"] in found:
      raise errors.UserError(
        f"Of several lists of queries each is LANGUAGE=FILE, such as "
        f"en=words.txt, each language once; got {name!r}"
        f"{' after another of it' if match else ''}."
      )
    found[match["language"]] = read(match["file"])
  return found


def _decoded(data: bytes, path: str) -> list[str]:
  """Returns the lines of a text; U+2028 and the like end none of them."""
  lines = []
  data = data.removeprefix(b"\xef\xbb\xbf")
  for number, line in enumerate(data.splitlines(), 1):
    try:
      lines.append(line.decode("utf-8"))
    except UnicodeDecodeError:
      raise errors.UserError(
        f"Line {number} of {path} is not UTF-8: {line[:40]!r}. Save the list "
        "as UTF-8."
      ) from None
  return lines


def _checked(found: list, path: str) -> list[str]:
  for number, entry in enumerate(found, 1):
    try:
      is_text = isinstance(entry, str) and bool(entry.encode("utf-8") + b"x")
    except UnicodeEncodeError:  # Half of a surrogate pair.
      is_text = False
    if not is_text:
      raise errors.UserError(
        f"Entry {number} of the list in {path} is no text: {entry!r:.60}."
      )
  return found
