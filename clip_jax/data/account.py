"""Accounts of what a source did not read or lost, besides its bad records."""

import collections
import dataclasses
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clip_jax import errors, terminal
from clip_jax.data import record as record_lib
from clip_jax.data.sources import naming

_LOGGER = logging.getLogger(__name__)

_SHOWN_NAMES = 2
_KEPT_NAMES = 3
_SHOWN_FILES = 10
_SHOWN_SUFFIXES = 10
# What is wrong with a container, by the reason of its damage.
WORDS = {
  "bad_batch": "has a damaged batch of rows, or ends in one",
  "bad_footer": "has no readable footer, as if it had been cut",
  "compressed": "is compressed; unpack it to a plain tar",
  "compressed_arrow": "has compressed batches, which cannot be mapped; save it "
  "without compression",
  "cut_record": "ends within a record",
  "damaged_header": "has a damaged header",
  "dangling_link": "is not there, or links to a file that is not",
  "empty": "is empty",
  "gzip": "is compressed; unpack it by gunzip",
  "lfs_pointer": "is a pointer of Git LFS; get the file by `git lfs pull`",
  "no_end_marker": "ends without an end marker, as if it had been cut",
  "not_arrow": "is no Arrow file",
  "not_parquet": "is no Parquet file",
  "not_tfrecord": "is no TFRecord file",
  "other_columns": "has not the columns of the first file",
  "shifted": "has lost or gained bytes",
  "too_few_records": "holds fewer records than the file beside it states",
  "trailing_bytes": "has more bytes after its end",
  "truncated": "ends within a header",
  "zeros": "holds zeros in place of data",
}

# At no place in the file.
_WHOLE_FILE = (
  *("bad_footer", "compressed", "dangling_link", "empty", "lfs_pointer"),
  *("not_parquet", "other_columns", "not_arrow", "not_tfrecord", "gzip"),
  "compressed_arrow",
)


class LeftOut:
  """Files that are not read: how many of each suffix, and the first names."""

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self.names: dict[str, list[str]] = {}

  def as_json(self) -> dict[str, Any]:
    """Returns a JSON object for `from_json`."""
    return {"counts": dict(self.counts), "names": self.names}

  @classmethod
  def from_json(cls, content: Mapping[str, Any]) -> "LeftOut":
    """Returns the `LeftOut` of an object made by `as_json`."""
    made = cls()
    made.counts.update(content["counts"])
    made.names.update((k, list(names)) for k, names in content["names"].items())
    return made

  def add(self, name: str) -> None:
    """Counts the file `name` under its suffix."""
    stem, suffix = os.path.splitext(name)
    suffix = suffix.removeprefix(".").lower()
    if not suffix:  # A name that is a suffix alone, such as `.jpg`.
      _, dot, whole = os.path.basename(stem).lower().rpartition(".")
      suffix = whole if dot and naming.is_image_suffix(whole) else ""
    self._add(suffix, 1, [name])

  def merge(self, other: "LeftOut") -> None:
    """Adds the counts of `other`."""
    for suffix, count in other.counts.items():
      self._add(suffix, count, other.names[suffix])

  def _add(self, suffix: str, count: int, names: Sequence[str]) -> None:
    self.counts[suffix] += count
    kept = self.names.setdefault(suffix, [])
    kept += names[: _KEPT_NAMES - len(kept)]

  def examples(self) -> dict[str, list[str]]:
    """Returns two names of each suffix, or one where there is no other."""
    return {k: list(names[:_SHOWN_NAMES]) for k, names in self.names.items()}

  def first_names(self) -> list[str]:
    """Returns three of the names, or all where there are fewer."""
    return [name for names in self.names.values() for name in names][:3]

  def describe(self, *, images: bool) -> str:
    """Returns the counts in words: those of images, or those of other files."""
    parts = [
      f"{count} {f'.{suffix}' if suffix else 'without a suffix'} ("
      f"{', '.join(_shown(self.names[suffix]))})"
      for suffix, count in self.counts.most_common()
      if naming.is_image_suffix(suffix) == images
    ]
    more = len(parts) - _SHOWN_SUFFIXES
    return ", ".join(parts[:_SHOWN_SUFFIXES]) + (
      f" and {more} more {terminal.noun(more, 'suffix', 'suffixes')}"
      if more > 0
      else ""
    )


def _shown(names: Sequence[str]) -> list[str]:
  return [f"'{terminal.escaped(n, limit=60)}'" for n in names[:_SHOWN_NAMES]]


@dataclasses.dataclass(frozen=True)
class Account:
  """What a source leaves out, and how users are informed of it.

  Attributes:
    left_out: files or members that are not read.
    unread: images in formats that are not read; their records are bad.
    damages: places where containers are damaged: (file, offset, reason).
    lost: the number of records without a slot, known or estimated, by file;
      None where it cannot be known, which counts as one.
    notes: sentences that warn of a decision and name the option to change it.
    choices: the same of decisions that are right nearly always: no warnings.
    share: the part of the source's records that this account describes. `lost`
      and `damages` are always those of the whole source, so that the accounts
      of its parts name the same files.
  """

  left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
  unread: LeftOut = dataclasses.field(default_factory=LeftOut)
  damages: Sequence[tuple[str, int, str]] = ()
  lost: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  choices: list[str] = dataclasses.field(default_factory=list)
  share: float = 1.0

  @property
  def lost_records(self) -> int:
    """Number of records without a slot, in all files."""
    return sum(1 if n is None else n for n in self._lost_here().values())

  def _lost_here(self) -> dict[str, int | None]:
    """Returns the numbers of records that this part has lost, by file."""
    return {
      path: None if count is None else max(1, round(count * self.share))
      for path, count in self.lost.items()
    }

  @property
  def lost_in_words(self) -> str:
    """The number of lost records in words: "about 3", "at least 1"."""
    known = None not in self.lost.values()
    return f"{'about' if known else 'at least'} {self.lost_records}"

  def of_part(self, share: float) -> "Account":
    """Returns the account of a part with this share of the records."""
    return dataclasses.replace(self, share=self.share * share)

  def to_dict(self) -> dict[str, Any]:
    """Returns the account as a JSON object, for `--json`."""
    return {
      "left_out": dict(self.left_out.counts),
      "left_out_names": self.left_out.examples(),
      "unread": dict(self.unread.counts),
      "unread_names": self.unread.examples(),
      "damages": [tuple(damage) for damage in self.damages],
      "lost": self.lost_records,
      "lost_by_file": self._lost_here(),
      "notes": list(self.notes),
      "choices": list(self.choices),
    }

  def sentences(self, *, most_files: int = _SHOWN_FILES) -> list[str]:
    """Returns the sentences of `warnings` and of `remarks`."""
    return [*self.warnings(most_files=most_files), *self.remarks()]

  def remarks(self) -> list[str]:
    """Returns the sentences that inform and need no action."""
    others = self.left_out.describe(images=False)
    not_read = [f"Not read: {others}."] if others else []
    return [*self.choices, *not_read]

  def warnings(self, *, most_files: int = _SHOWN_FILES) -> list[str]:
    """Returns the sentences that warn of a loss or of a likely mistake."""
    damaged = (path for path, _, _ in self.damages)
    files = list(dict.fromkeys([*damaged, *self.lost]))
    said = [self._of_file(path) for path in files[:most_files]]
    if (more := len(files) - most_files) > 0:
      said.append(
        f"{more} more {terminal.noun(more, 'file is', 'files are')} damaged; "
        "`clip-jax data inspect --json` lists "
        f"{terminal.noun(more, 'it', 'them')}. All together have lost "
        f"{self.lost_in_words} {terminal.noun(self.lost_records, 'record')}."
      )
    if images := self.left_out.describe(images=True):
      said.append(f"Named like images, but not read: {images}.")
    if unread := self.unread.describe(images=True):
      said.append(
        f"Bad records, as images of such suffixes are not read: {unread}; "
        "convert them."
      )
    return [*said, *self.notes]

  def _of_file(self, path: str) -> str:
    places = [(at, why) for name, at, why in self.damages if name == path]
    name = terminal.escaped(path)
    lost = self.lost.get(path, 0)
    if lost is None:
      counted = "how many records it has lost is not known, at least 1"
    elif lost:
      counted = f"about {terminal.counted(lost, 'record')} lost"
    else:
      counted = "no sign of lost records besides the bad ones"
    if not places:
      return f"{name}: {counted}."
    (at, why), more = places[0], len(places) - 1
    where = "" if why in _WHOLE_FILE else f" (byte {at})"
    places_more = terminal.noun(more, "damaged place")
    again = f" and {more} more {places_more}" if more else ""
    return f"{name} {WORDS.get(why, why)}{where}{again}: {counted}."


def of_copy(sidecar: Mapping[str, Any]) -> Account:
  """Returns the account of a copy: the records that its source had lost.

  Args:
    sidecar: `dataset.json` of `clip-jax data prepare`; a copy without the bad
      records lacks nothing that it should have.

  Raises:
    UserError: the account in it is damaged.
  """
  try:
    if sidecar.get("source", {}).get("drop_bad"):
      return Account()
    fields = sidecar.get("account", {})
    damages = [(str(f), int(at), str(why)) for f, at, why in fields["damages"]]
    lost = {
      str(f): None if n is None else int(n)
      for f, n in fields["lost_by_file"].items()
    }
  except KeyError:  # Of an earlier version.
    return Account()
  except (AttributeError, TypeError, ValueError):
    raise errors.UserError(
      "dataset.json: the account of what was lost is damaged; prepare the data "
      "again."
    ) from None
  return Account(damages=damages, lost=lost)


def of(source: record_lib.Source) -> Account:
  """Returns the account of `source`; an empty one where it keeps none."""
  return getattr(source, "account", None) or Account()


def merged(accounts: Mapping[str, Account]) -> Account:
  """Returns one account of several sources, by their addresses.

  A file that several sources read is named with the address of each, as each
  has lost what is damaged in it.
  """
  left_out, unread = LeftOut(), LeftOut()
  for each in accounts.values():
    left_out.merge(each.left_out)
    unread.merge(each.unread)
  read = collections.Counter(
    path
    for x in accounts.values()
    for path in {*x.lost, *(path for path, _, _ in x.damages)}
  )

  def named(address: str, path: str) -> str:
    return f"{address}: {path}" if read[path] > 1 else path

  return Account(
    left_out=left_out,
    unread=unread,
    damages=[
      (named(name, path), at, why)
      for name, x in accounts.items()
      for path, at, why in x.damages
    ],
    lost={
      named(name, path): count
      for name, x in accounts.items()
      for path, count in x._lost_here().items()
    },
    notes=[f"{name}: {n}" for name, x in accounts.items() for n in x.notes],
    choices=[f"{name}: {c}" for name, x in accounts.items() for c in x.choices],
  )


def tell(
  source: record_lib.Source, address: str, *, told: Collection[str] = ()
) -> list[str]:
  """Logs the account of the data at `address`; returns its sentences.

  Args:
    source: the data.
    address: its address.
    told: sentences that have been logged before and are not logged again.
  """
  found, address = of(source), terminal.escaped(address)
  for log, sentences in (
    (_LOGGER.warning, found.warnings()),
    (_LOGGER.info, found.remarks()),
  ):
    for sentence in sentences:
      if sentence not in told:
        log("%s: %s", address, sentence)
  return found.sentences()


def check(
  source: record_lib.Source, address: str, *, max_bad_fraction: float
) -> None:
  """Raises UserError where more records are lost than a run lets pass."""
  found = of(source)
  lost = found.lost_records
  total = lost + len(source)
  # Not a product, whose rounding would decide where they are equal.
  if not lost or lost / total <= max_bad_fraction:
    return
  raise errors.UserError(
    f"{address}: {found.lost_in_words} of {total} records are lost to damage "
    f"({100 * lost / total:.2g} %); data.max_bad_fraction="
    f"{max_bad_fraction:g} allows {max_bad_fraction * total:g}. Copy the "
    "files again (`clip-jax data inspect` lists them), or raise the limit to "
    "train on the rest."
  )
