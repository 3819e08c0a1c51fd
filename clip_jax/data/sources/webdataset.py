"""WebDataset tar shards, read at random by an index of their headers.

A sample is the run of members that share a key: `000001.jpg`, `000001.txt`,
`000001.json`, `000001.cls`; naming.py says where a key ends. The shards of
img2dataset and of CLIP_benchmark are of this kind; the latter's
`classnames.txt` and `zeroshot_classification_templates.txt`, next to the shards
or one directory up, give names and prompts to the labels.

The first opening reads every header once; what it finds is kept in the user's
cache, and later ones read the shards' sizes and times only.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_jax import errors, places, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  globs,
  kept_index,
  missing,
  naming,
  open_files,
  tar,
)
from clip_jax.data.sources import shard as shard_lib
from clip_jax.data.sources.naming import IMAGE, JSON, LABEL, TEXT

_SCAN_THREADS = 8  # More would only wait for each other.
LABELS = ("one", "several")
_CLASS_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)
# Beside shards in a directory: what they were unpacked from, or should be.
_LIKE_SHARDS = (".tar", ".tgz", ".tbz", ".txz")
# And other data: images, and archives of other kinds.
_NO_SHARDS = tuple(
  f".{suffix}"
  for suffixes in (
    naming.IMAGE_SUFFIXES,
    naming.UNREAD_SUFFIXES,
    ("zip", "7z", "rar"),
  )
  for suffix in suffixes
)


class WebDataset:
  """The samples of tar shards; the module says what a sample is.

  Attributes:
    account: damages, records lost by them, and members that are not read.
  """

  def __init__(
    self,
    shards: Iterable[str],
    *,
    captions: str | None = None,
    labels: str | None = None,
    class_names: tuple[str, ...] | None = None,
    templates: tuple[str, ...] | None = None,
  ):
    """Indexes the shards.

    Args:
      shards: paths of tar files.
      captions: one of `captions.CAPTIONS`; None is "text".
      labels: one of `LABELS`; None is "one".
      class_names: of the labels.
      templates: prompts for these names.
    """
    if labels is not None and labels not in LABELS:
      raise errors.unknown("value of labels=", labels, LABELS)
    self._several = labels == "several"
    shards = list(shards)
    found = open_files.statuses(shards)
    self._files = open_files.Pool(
      shards, opener=open_files.SameFiles(found), found=found
    )
    self._captions = captions_lib.check_choice(captions or "text")
    self.class_names = class_names
    self.templates = templates
    suffixes = ("npy",) if self._several else ()
    self._index = kept_index.keep(
      "tar",
      self._files.paths,
      suffixes,
      lambda: shard_lib.join(
        places.of_each(
          functools.partial(shard_lib.index_shard, labels=suffixes),
          self._files.paths,
          threads=_SCAN_THREADS,
        )
      ),
      sampled=False,  # A second start reads no tar.
    )
    stated = shard_lib.stated_counts(self._files.paths)
    self._shards = list(shard_lib.split(self._index, stated))
    self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
    if not len(self):
      raise errors.UserError(self._why_empty())
    self.fingerprint = self._digest()
    self.account = self._make_account()
    if captions is None:
      self.account.notes.extend(
        captions_lib.propose_lines(
          self._text, slots=len(self), place=self._files.paths[0]
        )
      )

  def __getstate__(self) -> dict[str, Any]:
    # The shards are views of the index.
    return {**self.__dict__, "_shards": [s.stated for s in self._shards]}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._shards = list(shard_lib.split(self._index, state["_shards"]))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> record_lib.Record:
    number, slot = self._locate(index)
    shard = self._shards[number]
    key = shard.keys[slot]
    if slot in shard.problems:
      raise record_lib.BadRecord(shard.problems[slot], key)
    label_data = self._read(number, slot, LABEL, key)
    label = labels = None
    classes = None if self.class_names is None else len(self.class_names)
    if self._several:
      if label_data is None:
        raise record_lib.BadRecord("missing_label", key)
      labels = captions_lib.labels_from(label_data, key=key, classes=classes)
    elif label_data is not None:
      label = captions_lib.label_from(label_data, key=key, classes=classes)
    texts = self._texts(number, slot, key, label, labels)
    image = self._read(number, slot, IMAGE, key)
    if not image:
      raise record_lib.BadRecord("empty_image", key)
    return record_lib.Record(
      image=image,
      texts=texts,
      key=key,
      label=label,
      labels=labels,
      path=self._files.paths[number],
    )

  def _why_empty(self) -> str:
    path, shard = self._files.paths[0], self._shards[0]
    more = len(self._shards) - 1
    says = f"Tar file '{terminal.escaped(path)}' holds no samples"
    if more:
      says = f"None of {more + 1} tar files holds a sample. {says}"
    for candidate in self._shards:
      if names := candidate.left_out.first_names():
        seen = ", ".join(
          f"'{terminal.escaped(name, limit=80)}'" for name in names
        )
        advice = ""
        if any(map(_TAR.search, names)):
          advice = (
            " It holds tar files: unpack it by `tar -xf`, and give those in it."
          )
        return (
          f"{says}: no member is named like KEY.jpg or KEY.txt, but for "
          f"example {seen}.{advice}"
        )
    reason = shard.sites[0][1].reason if shard.sites else "empty"
    return f"{says}: it {account_lib.WORDS[reason]} ({shard.size} bytes)."

  def _make_account(self) -> account_lib.Account:
    left_out, unread = account_lib.LeftOut(), account_lib.LeftOut()
    lost = dict(
      zip(self._files.paths, missing.lost_records(self._shards), strict=True)
    )
    for shard in self._shards:
      left_out.merge(shard.left_out)
      unread.merge(shard.unread)
    return account_lib.Account(
      left_out,
      unread,
      damages=[
        (path, damage.offset, damage.reason)
        for path, shard in zip(self._files.paths, self._shards, strict=True)
        for _, damage in shard.sites
      ],
      lost={path: count for path, count in lost.items() if count != 0},
      notes=[
        f"{terminal.escaped(path)} holds no member named like KEY.jpg or "
        "KEY.txt."
        for path, shard in zip(self._files.paths, self._shards, strict=True)
        if not len(shard.keys) and not shard.sites
      ],
    )

  def _text(self, index: int) -> bytes | None:
    """Returns the bytes of a slot's `.txt`, where it has one."""
    number, slot = self._locate(index)
    if slot in self._shards[number].problems:
      return None
    return self._read(number, slot, TEXT, "")

  def _locate(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = int(np.searchsorted(self._ends, index, side="right"))
    start = int(self._ends[number - 1]) if number else 0
    return number, index - start

  def _read(self, number: int, slot: int, part: int, key: str) -> bytes | None:
    offset, size = self._shards[number].bounds[slot, part].tolist()
    if offset == shard_lib.MISSING:
      return None
    if part != IMAGE and size > captions_lib.MAX_TEXT_BYTES:
      raise record_lib.BadRecord("too_large", key)
    # What fails here is not the record's fault: to replace it would make the
    # batch a matter of luck.
    found = self._files.get(number).read(
      offset=offset - tar.BLOCK, size=tar.BLOCK + size
    )
    if not tar.heads(found[: tar.BLOCK], size):
      # Times with coarse steps did not show it; nor would they the next time.
      kept_index.forget(self._index)
      raise open_files.changed(self._files.paths[number])
    data = found[tar.BLOCK :]
    if data and not data.lstrip(b"\0"):  # A hole in the file.
      raise record_lib.BadRecord("damaged_member", key)
    return data

  def _texts(
    self,
    number: int,
    slot: int,
    key: str,
    label: int | None,
    labels: tuple[int, ...] | None,
  ) -> tuple[str, ...]:
    text = self._read(number, slot, TEXT, key)
    if text is not None:
      return captions_lib.from_text(text, key=key, captions=self._captions)
    fields = self._read(number, slot, JSON, key)
    names = captions_lib.from_labels(label, labels, self.class_names)
    if fields is not None:
      try:
        return captions_lib.from_json(fields, key=key)
      except record_lib.BadRecord as error:
        if error.reason != "missing_caption" or names is None:
          raise
    if names is not None:
      return names
    error = record_lib.BadRecord("missing_caption", key)
    if label is not None or labels is not None:
      named = label if labels is None else labels
      error.hint = (
        f"it has the label {named} and no text; put a {_CLASS_NAMES} with a "
        "name a line beside the shards, or add ?classes=FILE to the address"
      )
    raise error

  def _digest(self) -> str:
    settings = [self._captions, self.class_names, self.templates]
    if self._several:
      settings.append("several")
    digest = hashlib.sha256(repr(settings).encode())
    for path, shard in zip(self._files.paths, self._shards, strict=True):
      digest.update(os.path.basename(path).encode("utf-8", "surrogateescape"))
      digest.update(shard.keys.tobytes())
      digest.update(np.ascontiguousarray(shard.bounds).data)
      digest.update(repr(sorted(shard.problems.items())).encode())
    return digest.hexdigest()


def open_webdataset(path: str, options: dict[str, Any]) -> WebDataset:
  """Opens the shards that `path` names: braces, globs or a directory.

  Options: `captions=lines` takes each line of a `.txt` as a caption of its own,
  `captions=text` all of it as one; `classes=FILE` names the labels, one name a
  line; `labels=several` reads the classes of an image that may be of any number
  of them, from `KEY.cls` ("3 7") or `KEY.npy` (a 1 for each class that is
  there).
  """
  shards = globs.find_files(path, suffix=".tar")
  class_names = templates = None
  names = options.get("classes") or _beside(shards[0], _CLASS_NAMES)
  if names:
    class_names = captions_lib.read_classes(names)
  if prompts := _beside(shards[0], _TEMPLATES):
    templates = tuple(
      line.replace("{c}", "{}") for line in captions_lib.read_lines(prompts)
    )
  source = WebDataset(
    shards,
    captions=options.get("captions"),
    labels=options.get("labels"),
    class_names=class_names,
    templates=templates,
  )
  for name in globs.unread(path, shards, like=_LIKE_SHARDS, ends=_NO_SHARDS):
    source.account.left_out.add(name)
  source.account.notes.extend(globs.absent(path, shards))
  return source


def _beside(shard: str, name: str) -> str | None:
  directory = os.path.dirname(places.absolute(shard))
  for place in (directory, os.path.dirname(directory)):
    candidate = os.path.join(place, name)
    if places.is_file(candidate):
      return candidate
  return None
