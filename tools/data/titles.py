"""What drawings are called, which belong together, and who is held out.

Many titles name a collection or who drew it: "Clipart by A. N. Other - apple".
A part of a title that very many drawings share names no drawing. It still tells
that they belong together, as do equal titles, titles that begin with the same
two words as many others, equal names of files but for numbers, and equal
descriptions. What belongs together stays in one split. A part of a title that
has no word names nothing either: "M", "12". A drawing that is left without a
title is called after its file, and is only trained on; where neither can be
read, because most words are unknown, it is called by its keywords.
"""

import collections
import dataclasses
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence

# More drawings than this share a part of a title only where it names a series.
MOST_SHARED = 12
# A series larger than this one is trained on.
_LARGEST_HELD_OUT = 12
# Characters of a caption: in rows of 16 tokens, a locked tower costs least.
LONGEST = 30
# What no two splits share: a series, which is harder, or a title alone.
SPLIT_BY = ("series", "title")
# Words of which a keyword names a collection, or its place in one.
_OF_SERIES = {
  "clipart",
  "collection",
  "iconset",
  "theme",
  "themes",
  "openclipart",
}
# Keywords that say nothing of a drawing: damage of the program that once sorted
# them, and where it sorted them to.
_EMPTY = re.compile(
  r"hash|hash\(?0x[0-9a-f]+\)?|0x[0-9a-f]+|unsorted|special|miscellany|magick"
  r"|signs and symbols|mapsym|appicon|clip art|untitled|no title"
)
_ADDRESS = re.compile(r"@|www\.|https?:|\.(?:com|net|org)\b")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")  # WrittenLikeThis.
_WORD = re.compile(r"[^\W\d_]{2,}")  # Of at least two letters.
_NUMBERS = re.compile(r"\d+|\b[a-z]\b|\([^)]*\)")


@dataclasses.dataclass(frozen=True)
class Named:
  """A drawing's name, and what it belongs to.

  Attributes:
    title: what it shows; "" where nothing tells.
    own: whether the title is its own, and not the name of its file.
    keywords: of what it shows.
    series: names of what it belongs to; equal ones belong together.
  """

  title: str
  own: bool
  keywords: tuple[str, ...]
  series: frozenset[str]


def plain(text: str) -> str:
  """Returns a text in small letters, its spaces and underscores made one."""
  text = unicodedata.normalize("NFKC", text).replace("_", " ").casefold()
  return " ".join(text.split())


def name_all(
  paths: Sequence[str], words: Sequence, *, known: Container[str] | None = None
) -> list[Named]:
  """Returns the names of drawings; each depends on all of them.

  Args:
    paths: of the files, below one directory.
    words: `drawings.Words` of each.
    known: words, in plain letters, that the reader of the titles knows; None:
      all.
  """
  parts = [_parts(own.title) for own in words]
  counts = collections.Counter(
    part for own in parts for part in set(map(_series_of, own))
  )
  files = [
    _file_name(path, own.people) for path, own in zip(paths, words, strict=True)
  ]
  file_counts = collections.Counter(map(plain, files))
  context = _Context(
    shared={part for part, count in counts.items() if count > MOST_SHARED},
    told=collections.Counter(plain(own.description) for own in words),
    people={plain(person) for own in words for person in own.people},
    begun=collections.Counter(_beginning(own) for own in parts),
    known=known,
  )
  return [
    _name(
      path,
      own,
      pieces,
      file="" if file_counts[plain(file)] > MOST_SHARED else file,
      context=context,
    )
    for path, own, pieces, file in zip(paths, words, parts, files, strict=True)
  ]


@dataclasses.dataclass(frozen=True)
class _Context:
  """What all drawings tell of one: what they share, and who made them."""

  shared: set[str]
  told: collections.Counter  # Descriptions.
  people: set[str]
  begun: collections.Counter  # The first two words of titles.
  known: Container[str] | None

  def reads(self, text: str) -> bool:
    """Whether most words of a text are known."""
    if self.known is None:
      return bool(text)
    found = [word in self.known for word in _WORD.findall(plain(text))]
    return 2 * sum(found) > len(found)


def _parts(title: str) -> list[str]:
  """Returns the parts of a title, as a caption has them."""
  title = title.replace("_", " ").removesuffix(".svg")
  title = re.sub(r"\b(?:open ?)?clip ?arts?\b(?! by)", " ", title, flags=re.I)
  parts = []
  for part in re.split(r"\s+-+\s+", title):
    part = _HUMPS.sub(" ", part)
    part = " ".join(part.split()).strip(" -,;:")
    # "horse#2" is a second horse.
    parts.append(re.sub(r"(?<=[^\W\d])[\s#-]*\d+$", "", part))
  return [part for part in parts if part]


def _beginning(parts: Sequence[str]) -> str:
  words = plain(parts[0]).split() if parts else []
  return " ".join(words[:2]) if len(words) > 2 else ""


def _series_of(part: str) -> str:
  return " ".join(re.sub(r"\([^)]*\)", " ", plain(part)).split()) or plain(part)


def _name(path, words, parts, *, file, context) -> Named:
  people = {plain(person) for person in words.people if len(person) > 2}

  def names_people(part):
    return any(person in plain(part) for person in people)

  shared = [part for part in parts if _series_of(part) in context.shared]
  called = [
    part
    for part in parts
    if part not in shared
    and not names_people(part)
    and _WORD.search(part)
    and not _EMPTY.fullmatch(plain(part))
    and not _ADDRESS.search(plain(part))
  ]
  title = " - ".join(called)
  series = {f"title {_series_of(x)}" for x in shared if not names_people(x)}
  beginning = _beginning(parts)
  if beginning and context.begun[beginning] > MOST_SHARED:
    series.add(f"beginning {beginning}")
  file_title = file if words.title else ""
  called_so = title or file_title
  series.add(f"file {pathlib.PurePosixPath(path).parent}/{plain(file)}")
  description = plain(words.description)
  if description and context.told[description] > 1:
    series.add(f"description {description}")
  keywords = [
    keyword
    for keyword in dict.fromkeys(plain(keyword) for keyword in words.keywords)
    if keyword
    and not names_no_content(keyword, people=context.people, own=people)
    and keyword not in context.shared
    and keyword != plain(called_so)
  ]
  own = context.reads(title)
  if own or context.reads(file_title):
    name = title if own else file_title
    keywords = [keyword for keyword in keywords if keyword != plain(name)]
  else:  # Of what has a title, the keywords may still be read.
    name, keywords = _cut(keywords) if called_so and keywords else "", []
  for text in filter(None, map(plain, (called_so, name))):
    series |= {f"title {text}", f"stem {_stem(text)}"}
  return Named(name, own, tuple(keywords), frozenset(series))


def names_no_content(keyword: str, *, people: set[str], own: set[str]) -> bool:
  """Whether a keyword names an artist or a series, or says nothing.

  Args:
    keyword: in plain letters.
    people: all who made drawings.
    own: who made this one; a part of their names counts too.
  """
  return bool(
    _EMPTY.fullmatch(keyword)
    or _ADDRESS.search(keyword)
    or keyword in people
    or (len(keyword) > 2 and keyword in _pieces(own))
    or _OF_SERIES & set(keyword.split())
  )


def _pieces(people: Iterable[str]) -> set[str]:
  return set(re.split(r"[\W\d_]+", plain(" ".join(people))))


def _file_name(path: str, people: Iterable[str]) -> str:
  """Returns the words of a file's name, without numbers and its artist's name.

  The name may end in the middle of the artist's: `apple_maria_mus_01.svg`.
  """
  words = _stem(_stem(plain(pathlib.PurePosixPath(path).stem))).split()
  artist = [piece for piece in _pieces(people) if len(piece) > 1]
  while len(words) > 1 and any(x.startswith(words[-1]) for x in artist):
    words.pop()
  return " ".join(words)


def _stem(text: str) -> str:
  """Returns a name without numbers, single letters and what is in brackets."""
  return " ".join(re.findall(r"[^\W\d_]+", _NUMBERS.sub(" ", text))) or text


def captions(named: Named) -> list[str]:
  """Returns the title, and the title with keywords where there are any."""
  return list(dict.fromkeys((_cut([named.title]), with_keywords(named))))


def with_keywords(named: Named) -> str:
  """Returns the title and keywords as one caption."""
  return _cut([named.title, *named.keywords])


def _cut(pieces: Sequence[str]) -> str:
  """Returns the first pieces that fit into a caption."""
  text = pieces[0]
  if len(text) > LONGEST:
    return text[:LONGEST].rsplit(" ", 1)[0]
  for piece in pieces[1:]:
    if len(text) + 2 + len(piece) <= LONGEST:
      text += ", " + piece
  return text


def group(series: Sequence[Iterable[str]]) -> list[int]:
  """Returns the number of each drawing's group: the first drawing in it.

  Drawings with a series in common are in one group, and so are those that are
  so with a third one.
  """
  parents = list(range(len(series)))

  def root(index):
    while parents[index] != index:
      parents[index] = parents[parents[index]]
      index = parents[index]
    return index

  first: dict[str, int] = {}
  for index, own in enumerate(series):
    for name in own:
      a, b = root(first.setdefault(name, index)), root(index)
      parents[max(a, b)] = min(a, b)
  return [root(index) for index in range(len(series))]


def split(
  paths: Sequence[str],
  named: Sequence[Named],
  held_out: dict[str, int],
  *,
  by: str = "series",
  rest: str = "train",
) -> list[str | None]:
  """Returns the split of each drawing; no group is in two.

  Groups of drawings with a title of their own are held out, in an order that
  depends on their paths alone, until a split has its number of titles. It has
  one drawing of each title; the others are in none, and no more is a drawing
  without a title of its own that belongs to them.

  Args:
    paths: of the files.
    named: the drawings, each with a title.
    held_out: titles of each split that is held out.
    by: what makes a group, of `SPLIT_BY`. By series, titles that differ in a
      number, a single letter or what is in brackets are one title.
    rest: the split of all others.

  Raises:
    ValueError: there are too few groups.
  """
  order = sorted(range(len(paths)), key=lambda index: order_of(paths[index]))
  own = [index for index in order if named[index].own]
  alike = {"series": _stem, "title": str}[by]
  called = [alike(plain(one.title)) for one in named]
  belongs = [
    one.series if by == "series" else frozenset((title,))
    for one, title in zip(named, called, strict=True)
  ]
  groups = group([belongs[index] for index in own])
  members: dict[int, list[int]] = collections.defaultdict(list)
  for index, number in zip(own, groups, strict=True):
    members[number].append(index)
  splits: list[str | None] = [rest] * len(paths)
  taken: set[str] = set()
  left = iter(members.values())
  for name, count in held_out.items():
    while count:
      group_of = next(left, None)
      if group_of is None:
        raise ValueError(name)
      first: dict[str, int] = {}
      for index in group_of:
        first.setdefault(called[index], index)
      if len(group_of) > _LARGEST_HELD_OUT or len(first) > count:
        continue
      for index in group_of:
        taken |= belongs[index]
        splits[index] = None
      for index in first.values():
        splits[index] = name
      count -= len(first)
  for index, one in enumerate(named):
    if not one.own and belongs[index] & taken:
      splits[index] = None
  return splits


def order_of(path: str) -> str:
  """Returns what a drawing is sorted by: its path, shuffled."""
  return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
