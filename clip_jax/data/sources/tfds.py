"""Data sets of TensorFlow Datasets, read without TensorFlow.

`tfds:NAME[/CONFIG][:VERSION]/SPLIT` reads what `tfds build NAME
--file_format=array_record` has prepared; nothing is downloaded. SPLIT may be a
part, such as `train[:80%]`.

Options:
  data_dir: where it lies; by default the variable TFDS_DATA_DIR or
    ~/tensorflow_datasets. From a bucket, the files of the split are copied.
  image, caption, label: names of the features, with "/" for nested ones; by
    default they are guessed by type and usual names, and the guess is reported.
    A label may be a sequence, of the classes of an image that may be of any
    number. Commas join several captions. Without captions, the label's name is
    the caption.
  ignored: with such a sequence, another one; its classes that are not in the
    first are ignored: `label=labels_no_difficult&ignored=labels` of `voc`.
"""

import hashlib
import os
import re
from typing import Any

import numpy as np

from clip_jax import buckets, errors, mirrors, places
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  lazy_imports,
  tfds_features,
  tfds_prepared,
  usual_names,
)

with lazy_imports.kept_to("tensorflow_datasets"):
  import tensorflow_datasets as tfds

_ABOUT = "dataset_info.json"
_SHARD = re.compile(r"-(\w+)\.\w+-\d+-of-\d+$")


class TfdsSource:
  """The records of one split.

  Attributes:
    account: which features are read.
  """

  templates = None

  def __init__(
    self,
    data: Any,
    *,
    name: str,
    image: str,
    captions: tuple[str, ...],
    label: str | None,
    class_names: tuple[str, ...] | None,
    ignored: str | None = None,
    guessed: bool = False,
  ):
    self._data = data
    self._name = name
    self._image = image
    self._captions = captions
    self._label = label
    self._ignored = ignored
    self.class_names = class_names
    self.account = account_lib.Account()
    if guessed:
      self.account.choices.append(
        usual_names.tell_guess(
          "Features", image=image, captions=captions, label=label
        )
      )
    caption = ",".join(captions) or None
    settings = (name, len(data), image, caption, label, class_names)
    if ignored:
      settings += (ignored,)
    self.fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = record_lib.name_row(self._name, index)
    try:
      example = self._data[index]
    except OSError:
      raise
    except Exception:  # TFDS's readers raise exceptions of nearly any type.
      raise record_lib.BadRecord("damaged_record", key) from None
    image = _look_up(example, self._image)
    if not image:
      reason = "missing_image" if image is None else "empty_image"
      raise record_lib.BadRecord(reason, key)
    label, labels = self._labels(example, key)
    ignored = ()
    marked = self._ignored and _look_up(example, self._ignored)
    if marked is not None:
      others = {*self._numbers(np.asarray(marked), key)} - {*(labels or ())}
      ignored = tuple(sorted(others))
    texts = self._texts(example, key, label, labels)
    return record_lib.Record(
      image=image,
      texts=texts,
      key=key,
      label=label,
      labels=labels,
      ignored=ignored,
    )

  def _labels(
    self, example: Any, key: str
  ) -> tuple[int | None, tuple[int, ...] | None]:
    """Returns the label, or the labels, of a record that has any."""
    found = self._label and _look_up(example, self._label)
    if found is None:
      return None, None
    value = np.asarray(found)
    if value.ndim:
      return None, self._numbers(value, key)
    # Test splits without labels have -1.
    return (self._numbers(value[None], key)[0] if value >= 0 else None), None

  def _numbers(self, values: np.ndarray, key: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(value) for value in values}))
    if self.class_names is not None:
      for number in numbers:
        captions_lib.check_label(number, key=key, classes=len(self.class_names))
    return numbers

  def _texts(
    self,
    example: Any,
    key: str,
    label: int | None,
    labels: tuple[int, ...] | None,
  ) -> tuple[str, ...]:
    if self._captions:
      found = [_look_up(example, caption) for caption in self._captions]
      there = [one for one in found if one is not None]
      if not there:
        raise record_lib.BadRecord("missing_caption", key)
      pieces = []
      for one in there:
        pieces += [one] if isinstance(one, bytes | str) else list(one)
      decoded = [
        piece.decode("utf-8", "surrogateescape")
        if isinstance(piece, bytes)
        else str(piece)
        for piece in pieces
      ]
      return captions_lib.checked(decoded, key=key)
    names = captions_lib.from_labels(label, labels, self.class_names)
    if names is None:
      without = self._label and label is None and labels is None
      reason = "missing_label" if without else "missing_caption"
      raise record_lib.BadRecord(reason, key)
    return names


def open_tfds(path: str, options: dict[str, str]) -> TfdsSource:
  """Opens `NAME[/CONFIG][:VERSION]/SPLIT`; the module names the options."""
  name, _, split = path.rpartition("/")
  if not name:
    raise errors.UserError(
      f"tfds:{path} has no split; write tfds:NAME/SPLIT, such as"
      f" tfds:{path}/train."
    )
  builder = _open_builder(name, split, options.get("data_dir"))
  features = builder.info.features
  image = tfds_features.find(features, options.get("image"), "image")
  if image is None:
    raise errors.UserError(f"tfds:{name} has no image among its features.")
  wanted = [x for x in options.get("caption", "").split(",") if x] or [None]
  several = [tfds_features.find(features, one, "caption") for one in wanted]
  captions = tuple(one for one in several if one is not None)
  label = tfds_features.find(features, options.get("label"), "label")
  if not captions and label is None:
    texts = [
      name
      for name, feature in features.items()
      if tfds_features.is_text(feature) and not usual_names.is_key(name)
    ]
    captions = tuple(texts) if len(texts) == 1 else ()
  if not captions and label is None:
    raise errors.UserError(
      f"tfds:{name} has neither captions nor labels; its features are"
      f" {', '.join(features)}. Name one with ?caption=NAME."
    )
  class_names = tfds_features.class_names
  names = None if label is None else class_names(features, label)
  ignored = options.get("ignored")
  if ignored is not None and class_names(features, ignored) != names:
    raise errors.UserError(
      f"tfds:{name}: ignored={ignored} is no feature with the classes of "
      f"{label}; its features are {', '.join(features)}."
    )
  return TfdsSource(
    _open_split(builder, split, image),
    name=f"{builder.info.full_name}/{split}",
    image=image,
    captions=captions,
    label=label,
    class_names=names and tuple(map(captions_lib.spaced, names)),
    ignored=ignored,
    guessed="image" not in options or not {"caption", "label"} & options.keys(),
  )


def _open_builder(name: str, split: str, data_dir: str | None) -> Any:
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
  data_dir = data_dir and places.expanded(data_dir)
  if data_dir and buckets.is_address(data_dir):
    return _open_copied(name, split, data_dir)
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except Exception as error:  # Builders raise exceptions of nearly any type.
    # The first line says it; the others list every data set there is.
    reason = str(error).strip().split("\n", 1)[0]
    there = tfds_prepared.versions(name, data_dir)
    raise errors.UserError(
      f"TFDS cannot open {name!r}: {reason} Looked in"
      f" {data_dir or '~/tensorflow_datasets'} (set by ?data_dir=DIR or the"
      " variable TFDS_DATA_DIR) and among the names it knows."
      f" {tfds_prepared.remedy(there, name, split)}".rstrip()
    ) from error
  if not builder.info.splits:
    raise _not_prepared(builder, name, split, data_dir)
  return builder


def _not_prepared(
  builder: Any, name: str, split: str, data_dir: str | None
) -> tfds_prepared.NotPreparedError:
  there = tfds_prepared.versions(name, data_dir)
  own, _, wanted = builder.info.full_name.rpartition("/")
  said = f"tfds:{name} is not prepared in {builder.data_dir}."
  if there:
    said += f" {tfds_prepared.remedy(there, name, split)} Or prepare this one"
  else:
    said += " Prepare it once"
  return tfds_prepared.NotPreparedError(
    f"{said} with `tfds build {name} --file_format=array_record` (needs"
    " TensorFlow), or name its place with ?data_dir=DIR.",
    wanted=wanted,
    versions=[one for one in there if one.partition(":")[0] == own],
  )


def _open_copied(name: str, split: str, data_dir: str) -> Any:
  """Opens the copy of a data set in a bucket, with the files of a split."""
  head, _, version = name.partition(":")
  root = f"{data_dir.rstrip('/')}/{head}"
  there = buckets.objects(root)
  folders = {x.rpartition("/")[0] for x in there if x.endswith(f"/{_ABOUT}")}
  newest: dict[str, str] = {}  # Of each config.
  for folder in sorted(folders, key=_by_version):
    config, _, own = folder.rpartition("/")
    if version in ("", own):
      newest[config] = folder
  if len(newest) != 1:
    listed = ", ".join(sorted(folders)) or "none"
    raise errors.UserError(
      f"TFDS cannot open {name!r}: in {root} one version of it is looked for; "
      f"prepared there: {listed}. Name it as NAME/CONFIG:VERSION, or another "
      "place with ?data_dir=DIR."
    )
  (folder,) = newest.values()
  words = re.findall(r"\w+", split)
  wanted = [f"{root}/{x}" for x in there if _is_of(x, folder, words)]
  place = mirrors.copied(wanted)[f"{root}/{folder}/{_ABOUT}"].parent
  try:
    return tfds.builder_from_directory(place)
  except Exception as error:  # As above.
    reason = str(error).strip().split("\n", 1)[0]
    said = reason.replace(str(place), f"{root}/{folder}")
    raise errors.UserError(
      f"TFDS cannot open {root}/{folder}: {said}. Prepare the data set again."
    ) from error


def _by_version(folder: str) -> list[int]:
  return [int(x) for x in re.findall(r"\d+", folder.rpartition("/")[2])]


def _is_of(name: str, folder: str, words: list[str]) -> bool:
  """Whether a file belongs to a version and, where it has one, to the split."""
  directory, _, own = name.rpartition("/")
  shard = _SHARD.search(own)
  split = shard is None or shard[1] in words or "all" in words
  return directory == folder and split


def _open_split(builder: Any, split: str, image: str) -> Any:
  decoders: Any = tfds.decode.SkipDecoding()  # Leaves images encoded.
  for part in reversed(image.split("/")):
    decoders = {part: decoders}
  try:
    return builder.as_data_source(split, decoders=decoders)
  except NotImplementedError as error:
    raise errors.UserError(
      f"tfds:{builder.info.full_name} is stored in a format without random"
      " access. Convert it with `tfds build --file_format=array_record`."
    ) from error
  except ValueError as error:
    raise errors.unknown(
      f"split of tfds:{builder.info.full_name}", split, builder.info.splits
    ) from error


def _look_up(example: Any, path: str) -> Any:
  """Returns a feature; None where the record lacks it."""
  for part in path.split("/"):
    if example is None:
      return None
    example = example.get(part)
  return example
