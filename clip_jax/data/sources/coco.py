"""Captions of COCO, Flickr30k and Flickr8k, in the files that they come in.

Known are, by their content:

- COCO's captions, as `annotations/captions_val2014.json`.
- Karpathy's `dataset_coco.json`, `dataset_flickr30k.json` and
  `dataset_flickr8k.json`, which have splits: `coco:PATH/test`.
- Flickr30k's `results_20130124.token` and `results.csv`, Flickr8k's
  `Flickr8k.token.txt` and `captions.txt`. `Flickr_8k.testImages.txt` and the
  like beside them name splits.

PATH may be the directory of one of these. An image is a record, with all of its
captions.

Options:
  split: such as test, or train+restval: Karpathy's own restval belongs to the
    training data of COCO.
  captions: at most so many of an image's captions, the first ones.
  images: a file that names the images to read, one a line.
  root: the directory of the images, relative to the file; by default the usual
    places in its directory and the one above.
  links: follow, where symbolic links may lead out of the images' directory.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from clip_jax import buckets, errors, json_text, places, terminal
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import image_files, split_names, table, views

# In a directory, or in the annotations' below it.
_KNOWN = re.compile(
  r"(dataset_(coco|flickr30k|flickr8k)|captions_\w+)\.json"
  r"|results(_\d+)?\.(csv|token)|captions\.txt|Flickr8k\.token\.txt"
)
_ANNOTATIONS = "annotations"
_SUFFIXES = (".json", ".csv", ".token", ".txt")
_FOLDERS = (
  *("train2014", "val2014", "train2017", "val2017", "images", "Images"),
  *("images/train2014", "images/val2014", "images/train2017"),
  *("images/val2017", "flickr30k-images", "flickr30k_images"),
  *("Flicker8k_Dataset", "Flickr8k_Dataset"),
)
_TOKEN_LINE = re.compile(r"(.+?)#\d+\t(.*)")
# In one line of Flickr30k's the second bar is missing.
_BARS = "image_name|"  # Its first line begins so.
_BAR_LINE = re.compile(r"(.+?)\|\s*\d+\s*\|?(.*)")
_TRAIN, _MORE_TRAIN = "train", "restval"  # Karpathy's, of COCO.
_TOO_LONG = "x" * (captions_lib.MAX_TEXT_BYTES + 1)
_MOST_EXACT = 2**53  # Of floats.
_SPLIT_FILE = re.compile(r"Flickr_?8k\.(\w+)Images\.txt")


@dataclasses.dataclass(frozen=True)
class _Image:
  """An image's file, its captions and the split that it is of."""

  name: str
  captions: list[str]
  split: str | None = None


def open_coco(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens the file at `path`; the module says what the options are."""
  place, split = _locate(places.expanded(path))
  part = options.get("split")  # By a share, where data have no splits.
  notes: list[str] = []
  images = _read(place, notes)
  splits = sorted({image.split for image in images if image.split})
  lists = {} if splits else _split_files(place)
  if split is None and (splits or lists):
    split, part = part, None
  if split is not None:
    if not splits and not lists:
      raise errors.UserError(
        f"coco:{place} has no splits, and so no {split!r}."
      )
    names = split_names.chosen(split, splits or lists, what=f"coco:{place}")
    images = _of_splits(images, names, lists, notes)
  if "images" in options:
    images = _listed(images, options["images"], notes)
  if not images:
    raise errors.UserError(f"coco:{path} lists no images.")
  directory = os.path.dirname(place)
  files = image_files.open_files(
    [directory, _above(directory)],
    options,
    scheme="coco",
    folders=_FOLDERS,
    flat=True,
  )
  pairs = _pairs(images, _most_captions(options))
  source = table.of_pairs(files, pairs, notes=notes)
  return source if part is None else views.part(source, part)


def _locate(path: str) -> tuple[str, str | None]:
  """Returns the file that `path` names, and the split where it ends in one."""
  split = None
  if not (places.exists(path) or os.path.islink(path)):
    head, _, tail = path.rstrip("/").rpartition("/")
    if not places.exists(head) or tail.lower().endswith(_SUFFIXES):
      raise errors.UserError(
        f"coco:{path} does not exist.{errors.beside(path)} Check the path"
        f"{places.starting_point(path)}."
      )
    path, split = head, tail
  if places.is_folder(path):
    path = _find(path)
  return path, split


def _above(directory: str) -> str:
  """Returns the folder above one; of a bucket, the bucket."""
  if buckets.is_address(directory):
    above = directory.rpartition("/")[0]
    return directory if above.endswith("/") else above
  return os.path.join(directory, os.pardir)


def _find(directory: str) -> str:
  """Returns the one file of captions in a directory."""
  found = []
  for folder in (directory, os.path.join(directory, _ANNOTATIONS)):
    names = places.names(folder) if places.is_folder(folder) else []
    found += [os.path.join(folder, n) for n in names if _KNOWN.fullmatch(n)]
  if len(found) == 1:
    return found[0]
  if found:
    seen = ", ".join(f"'{terminal.escaped(name)}'" for name in found[:5])
    raise errors.UserError(
      f"coco:{directory} holds several files of captions: {seen}. Name one: "
      f"coco:{found[0]}."
    )
  raise errors.UserError(
    f"coco:{directory} holds no file of captions: captions_val2014.json, "
    "dataset_coco.json, results_20130124.token, captions.txt and the like are "
    "looked for, in it and in annotations/."
  )


def _read(path: str, notes: list[str]) -> list[_Image]:
  try:
    if path.lower().endswith(".json"):
      return _from_json(json_text.read(path), path, notes)
    pairs = list(_from_text(path, notes))
  except OSError as error:
    raise errors.UserError(f"Cannot read {path}: {error.strerror}.") from error
  captions: dict[str, list[str]] = {}
  for name, caption in pairs:
    captions.setdefault(name, []).append(caption)
  return [_Image(name, own) for name, own in captions.items()]


def _from_text(path: str, notes: list[str]) -> Iterator[tuple[str, str]]:
  """Yields image and caption of each line of a file of Flickr's."""
  with table.open_text(path, []) as file:
    first = file.readline(captions_lib.MAX_TEXT_BYTES)
  bars = first.startswith(_BARS)
  if bars or _TOKEN_LINE.match(first):
    yield from _from_lines(path, _BAR_LINE if bars else _TOKEN_LINE, notes)
    return
  try:
    for name, caption in table.read_pairs(path, {}, notes):
      yield name, _TOO_LONG if caption is None else caption
  except errors.UserError as error:
    raise errors.UserError(
      f"coco:{path} is none of the files of COCO, Flickr30k and Flickr8k, and "
      f"as a table it is read by csv: instead ({error})"
    ) from None


def _from_lines(
  path: str, form: re.Pattern[str], notes: list[str]
) -> Iterator[tuple[str, str]]:
  odd = blank = 0
  with table.open_text(path, notes) as file:
    for line in file:
      if match := form.fullmatch(line.rstrip("\r\n")):
        blank += not match[2].strip()
        yield match[1].strip(), match[2].strip()
      else:
        odd += bool(line.strip()) and not line.startswith(_BARS)
  if odd:
    notes.append(
      f"{terminal.counted(odd, 'line')} of {terminal.escaped(path)} without an "
      f"image and a caption {terminal.noun(odd, 'is', 'are')} left out."
    )
  notes.extend(_note_blank(blank))


def _note_blank(count: int) -> Iterator[str]:
  """Yields a sentence where captions are empty, or no texts at all."""
  if count:
    yield (
      f"{terminal.counted(count, 'caption is', 'captions are')} empty or no "
      "text, and left out."
    )


def _from_json(data: Any, path: str, notes: list[str]) -> list[_Image]:
  images, annotations = data.get("images"), data.get("annotations")
  if not isinstance(images, list) or not images:
    why = "it has no list 'images', as COCO's and Karpathy's files have"
    if images == []:
      why = "its list 'images' is empty"
    raise errors.UserError(f"coco:{path} lists no images: {why}.")
  if any(isinstance(each, dict) and "sentences" in each for each in images):
    found = [_from_karpathy(each) for each in images]
  else:
    found = _from_annotations(images, annotations, path, notes)
  captions = (caption for image in found for caption in image.captions)
  notes.extend(_note_blank(sum(not each.strip() for each in captions)))
  return found


def _from_annotations(
  images: list[Any], annotations: Any, path: str, notes: list[str]
) -> list[_Image]:
  if not isinstance(annotations, list) or not any(
    isinstance(each, dict) and "caption" in each for each in annotations
  ):
    holds = "no captions"
    if annotations and isinstance(annotations, list):
      holds = "objects' boxes and classes, and no captions"
    raise errors.UserError(
      f"coco:{path} holds {holds}; give COCO's file of captions, such as "
      "captions_val2014.json."
    )
  return _from_coco(images, annotations, notes)


def _from_coco(
  images: list[Any], annotations: list[Any], notes: list[str]
) -> list[_Image]:
  captions: dict[Any, list[str]] = collections.defaultdict(list)
  for each in map(_object, annotations):
    captions[_id(each.get("image_id"))].append(_text(each.get("caption")))
  strays = captions.pop(None, [])  # An image without an id is none of theirs.
  found = []
  for each in map(_object, images):
    own = captions.pop(_id(each.get("id")), [])
    found.append(_Image(_text(each.get("file_name")), own))
  if count := len(strays) + sum(map(len, captions.values())):
    notes.append(
      f"{terminal.counted(count, 'caption is', 'captions are')} left out, of "
      "images that are not listed."
    )
  return found


def _object(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _id(value: Any) -> int | str | None:
  """Returns the id of an image; None for what tells no image from others."""
  if isinstance(value, float) and value.is_integer():
    # pandas writes so; beyond the limit, different numbers are equal floats.
    return int(value) if abs(value) < _MOST_EXACT else None
  if isinstance(value, int | str) and not isinstance(value, bool):
    return value
  return None


def _from_karpathy(image: Any) -> _Image:
  image = _object(image)
  name = _text(image.get("filename"))
  if name and (folder := _text(image.get("filepath"))):
    name = f"{folder}/{name}"
  sentences = image.get("sentences")
  captions = [
    _text(each.get("raw") if isinstance(each, dict) else each)
    for each in (sentences if isinstance(sentences, list) else ())
  ]
  return _Image(name, captions, _text(image.get("split")) or None)


def _text(value: Any) -> str:
  """Returns a text as it can be kept, and for anything else an empty one."""
  if not isinstance(value, str):
    return ""
  # Half a surrogate pair, which JSON can hold, makes a caption bad.
  return value.encode("utf-8", "surrogatepass").decode(
    "utf-8", "surrogateescape"
  )


def _split_files(path: str) -> dict[str, str]:
  """Returns the lists of images beside a file, by the names of their splits."""
  directory = os.path.dirname(path)
  matches = map(_SPLIT_FILE.fullmatch, places.names(directory or "."))
  return {m[1]: os.path.join(directory, m[0]) for m in matches if m}


def _of_splits(
  images: list[_Image],
  names: list[str],
  lists: dict[str, str],
  notes: list[str],
) -> list[_Image]:
  if not lists:
    if _TRAIN in names and _MORE_TRAIN not in names:
      more = sum(image.split == _MORE_TRAIN for image in images)
      if more:
        notes.append(
          f"{terminal.counted(more, 'image')} of the split {_MORE_TRAIN!r}, "
          f"which {terminal.noun(more, 'belongs', 'belong')} to the training "
          f"data, {terminal.noun(more, 'is', 'are')} not read; "
          f"{_TRAIN}+{_MORE_TRAIN} is all of them."
        )
    return [image for image in images if image.split in names]
  return [
    image for name in names for image in _listed(images, lists[name], notes)
  ]


def _listed(images: list[_Image], path: str, notes: list[str]) -> list[_Image]:
  """Returns the images that a file names, in its order.

  Where it has other folders, or none, names without folders are compared.
  """
  by_name: dict[str, list[_Image]] = collections.defaultdict(list)
  by_base: dict[str, list[_Image]] = collections.defaultdict(list)
  for image in images:
    by_name[image.name].append(image)
    by_base[os.path.basename(image.name)].append(image)
  names = dict.fromkeys(captions_lib.read_lines(path))
  found = {
    name: by_name.get(name) or by_base.get(os.path.basename(name), [])
    for name in names
  }
  missing = [name for name, own in found.items() if not own]
  if missing:
    notes.append(
      f"{len(missing)} of {terminal.counted(len(names), 'image')} in "
      f"{terminal.escaped(path)} {terminal.noun(len(missing), 'has', 'have')} "
      f"no caption, the first is '{terminal.escaped(missing[0], limit=80)}'."
    )
  # Several names may be those of one image.
  each = {id(image): image for own in found.values() for image in own}
  return list(each.values())


def _most_captions(options: dict[str, str]) -> int | None:
  if "captions" not in options:
    return None
  text = options["captions"]
  if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
    raise errors.UserError(
      f"captions={text} must be a number from 1 up: the most captions of an "
      "image."
    )
  return int(text)


def _pairs(
  images: Iterable[_Image], most: int | None
) -> Iterator[tuple[str, str | None]]:
  for image in images:
    for caption in image.captions[:most] or [""]:
      too_long = captions_lib.exceeds(caption, captions_lib.MAX_TEXT_BYTES)
      yield image.name, None if too_long else caption
