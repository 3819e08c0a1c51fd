"""WebDataset tar shards, read at random by an index of their headers.

A sample is the run of members that share a key, the name up to the first dot
after the last slash: `000001.jpg`, `000001.txt`, `000001.json`, `000001.cls`.
The shards of img2dataset and of CLIP_benchmark are of this kind; the latter's
`classnames.txt` and `zeroshot_classification_templates.txt`, next to the shards
or one directory up, give names and prompts to the labels.

Opening reads every header once (about 5 microseconds each from memory); for
more than some million samples, `clip-jax data prepare` makes a copy that opens
at once.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import files, paths, strings, tar

_IMAGE, _TEXT, _JSON, _LABEL = range(4)
_PARTS = {suffix: _IMAGE for suffix in captions_lib.IMAGE_SUFFIXES} | {
  "txt": _TEXT,
  "json": _JSON,
  "cls": _LABEL,
}
_MISSING = -1
_MAX_KEY_BYTES = 255
_SCAN_THREADS = 8  # Hides the latency of network storage.
_CLASS_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"


@dataclasses.dataclass
class _Sample:
  """One slot in the making."""

  key: str
  parts: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
  names: set[str] = dataclasses.field(default_factory=set)
  problem: str = ""

  def add(self, suffix: str, member: tar.Member) -> None:
    part = _PARTS[suffix]
    self.names.add(suffix)
    if part in self.parts:
      self.problem = self.problem or "several_images"
    self.parts[part] = (member.offset, member.size)
    self.problem = self.problem or member.problem


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The index of one shard: slot -> where its parts are."""

  keys: strings.Strings
  bounds: np.ndarray  # (slots, 4 parts, offset and size)
  problems: dict[int, str]
  damages: tuple[tar.Damage, ...]


def index_shard(path: str) -> _Shard:
  """Scans the tar file at `path` and groups its members into slots."""
  grouper = _Grouper()
  for item in tar.scan(path):
    if isinstance(item, tar.Damage):
      grouper.add_damage(item)
    else:
      grouper.add(item)
  return grouper.finish()


class _Grouper:
  """Puts the members of one shard together to samples."""

  def __init__(self):
    self._samples: list[_Sample] = []
    self._by_key: dict[str, _Sample] = {}
    self._run: _Sample | None = None
    # Samples next to a damage: what they lack may have been there.
    self._touched: dict[int, str] = {}
    self._damages: list[tar.Damage] = []

  def add_damage(self, damage: tar.Damage) -> None:
    self._damages.append(damage)
    lost_header = damage.reason == "damaged_header"
    for slot in (len(self._samples) - 1, len(self._samples)):
      self._touched[slot] = "damaged_header" if lost_header else "truncated"

  def add(self, member: tar.Member) -> None:
    name = member.name.removeprefix("./")
    directory, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower()
    if suffix not in _PARTS or not stem:
      return
    key = directory + slash + stem
    if _is_unsafe(key):
      raw = key.encode("utf-8", "surrogateescape")
      key = f"unsafe_name_{hashlib.sha256(raw).hexdigest()[:12]}"
      member = member._replace(problem="unsafe_name")
    sample = self._sample_for(key, suffix)
    sample.add(suffix, member)
    self._run = sample

  def _sample_for(self, key: str, suffix: str) -> _Sample:
    run, known = self._run, self._by_key.get(key)
    if known is None:
      return self._new(key)
    if suffix in known.names:
      again = self._new(key)  # From here on, the second one collects parts.
      again.problem = "duplicate_key"
      return again
    if known is not run:
      known.problem = known.problem or "parts_not_adjacent"
    return known

  def _new(self, key: str) -> _Sample:
    sample = _Sample(key)
    self._samples.append(sample)
    self._by_key[key] = sample
    return sample

  def finish(self) -> _Shard:
    bounds = np.full((len(self._samples), 4, 2), _MISSING, np.int64)
    problems = {}
    for slot, sample in enumerate(self._samples):
      for part, bound in sample.parts.items():
        bounds[slot, part] = bound
      problem = sample.problem
      if not problem and _IMAGE not in sample.parts:
        problem = "missing_image"
      if not problem and not sample.parts.keys() & {_TEXT, _JSON, _LABEL}:
        problem = "missing_caption"
      if problem.startswith("missing") and slot in self._touched:
        problem = self._touched[slot]
      if problem:
        problems[slot] = problem
    keys = strings.Strings(sample.key for sample in self._samples)
    return _Shard(keys, bounds, problems, tuple(self._damages))


def _is_unsafe(key: str) -> bool:
  """Keys may become file names later on: no way out of a directory."""
  return (
    len(key.encode("utf-8", "surrogateescape")) > _MAX_KEY_BYTES
    or key.startswith("/")
    or not key.isprintable()  # Control characters and stray bytes.
    or "\\" in key
    or ".." in key.split("/")
  )


class WebDataset:
  """The samples of tar shards; see the module for what a sample is.

  Attributes:
    damages: (shard, offset, reason) of damaged headers and the like.
  """

  def __init__(
    self,
    shards: Iterable[str],
    *,
    captions: str = "text",
    class_names: tuple[str, ...] | None = None,
    templates: tuple[str, ...] | None = None,
  ):
    self._files = files.Pool(list(shards), opener=files.RawFile)
    self._captions = captions_lib.check_choice(captions)
    self.class_names = class_names
    self.templates = templates
    with concurrent.futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
      self._shards = list(pool.map(index_shard, self._files.paths))
    for path, shard in zip(self._files.paths, self._shards, strict=True):
      if not len(shard.keys):
        raise errors.UserError(
          f"Tar file {path!r} holds no samples: no member is named like"
          " KEY.jpg or KEY.txt. It must be a plain tar, not a compressed one."
        )
    self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
    self.fingerprint = self._digest()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> record_lib.Record:
    number, slot = self._locate(index)
    shard = self._shards[number]
    key = shard.keys[slot]
    if slot in shard.problems:
      raise record_lib.BadRecord(shard.problems[slot], key)
    label_data = self._read(number, slot, _LABEL, key)
    label = None
    if label_data is not None:
      classes = None if self.class_names is None else len(self.class_names)
      label = captions_lib.label_from(label_data, key=key, classes=classes)
    texts = self._texts(number, slot, key, label)
    image = self._read(number, slot, _IMAGE, key)
    if not image:
      raise record_lib.BadRecord("empty_image", key)
    return record_lib.Record(image=image, texts=texts, key=key, label=label)

  @property
  def damages(self) -> list[tuple[str, int, str]]:
    """Where the shards are damaged: (shard, offset, reason)."""
    return [
      (path, damage.offset, damage.reason)
      for path, shard in zip(self._files.paths, self._shards, strict=True)
      for damage in shard.damages
    ]

  def _locate(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = int(np.searchsorted(self._ends, index, side="right"))
    start = int(self._ends[number - 1]) if number else 0
    return number, index - start

  def _read(self, number: int, slot: int, part: int, key: str) -> bytes | None:
    offset, size = self._shards[number].bounds[slot, part].tolist()
    if offset == _MISSING:
      return None
    if part != _IMAGE and size > captions_lib.MAX_TEXT_BYTES:
      raise record_lib.BadRecord("too_large", key)
    try:
      data = self._files.get(number).read(offset=offset, size=size)
    except OSError as error:
      # The disk's fault, not the record's: to replace it would make the batch
      # a matter of luck.
      path = self._files.paths[number]
      raise errors.UserError(
        f"Cannot read {path}: {error.strerror}."
      ) from error
    if len(data) < size:
      raise record_lib.BadRecord("truncated", key)
    return data

  def _texts(
    self, number: int, slot: int, key: str, label: int | None
  ) -> tuple[str, ...]:
    text = self._read(number, slot, _TEXT, key)
    if text is not None:
      return captions_lib.from_text(text, key=key, captions=self._captions)
    fields = self._read(number, slot, _JSON, key)
    named = label is not None and self.class_names is not None
    if fields is not None:
      try:
        return captions_lib.from_json(fields, key=key)
      except record_lib.BadRecord as error:
        if error.reason != "missing_caption" or not named:
          raise
    if named:
      return (self.class_names[label],)
    raise record_lib.BadRecord("missing_caption", key)

  def _digest(self) -> str:
    settings = [self._captions, self.class_names, self.templates]
    digest = hashlib.sha256(repr(settings).encode())
    for path, shard in zip(self._files.paths, self._shards, strict=True):
      digest.update(os.path.basename(path).encode("utf-8", "surrogateescape"))
      digest.update(shard.keys.tobytes() + shard.bounds.tobytes())
      digest.update(repr(sorted(shard.problems.items())).encode())
    return digest.hexdigest()


def open_webdataset(path: str, options: dict[str, Any]) -> WebDataset:
  """Opens the shards that `path` names: braces, globs or a directory.

  Options: `captions=lines` takes each line of a `.txt` as a caption of its own;
  `classes=FILE` names the labels, one name a line.
  """
  shards = paths.find_files(path, suffix=".tar")
  class_names = templates = None
  names = options.get("classes") or _beside(shards[0], _CLASS_NAMES)
  if names:
    class_names = _read_lines(names)
  if prompts := _beside(shards[0], _TEMPLATES):
    templates = tuple(
      line.replace("{c}", "{}") for line in _read_lines(prompts)
    )
  return WebDataset(
    shards,
    captions=options.get("captions", "text"),
    class_names=class_names,
    templates=templates,
  )


def _beside(shard: str, name: str) -> str | None:
  directory = os.path.dirname(os.path.abspath(shard))
  for place in (directory, os.path.dirname(directory)):
    candidate = os.path.join(place, name)
    if os.path.isfile(candidate):
      return candidate
  return None


def _read_lines(path: str) -> tuple[str, ...]:
  with open(path, encoding="utf-8") as file:
    return tuple(line.strip() for line in file if line.strip())
