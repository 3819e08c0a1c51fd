"""Which columns of a table hold images, captions and labels.

They are known by their types, their usual names and, in tables of the library
`datasets`, by the features that it writes into the schema's metadata.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from clip_jax import errors, json_text, terminal
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import naming, usual_names

_METADATA = b"huggingface"
# With a slash in TFRecords, by TFDS and others.
_IMAGES = (
  *("image", "img", "picture", "image/encoded"),
  *naming.IMAGE_SUFFIXES,
)
# Captions in a column for each, as `caption_0` to `caption_4`.
_NUMBERED = re.compile(r"(caption|text|sentence)s?[_-]?\d+")
# What the columns may hold, by the options that name them.
_KINDS = {
  "image": "images are encoded files, alone or as `bytes` with a `path`, or "
  "paths of files",
  "caption": "captions are texts or lists of texts",
  "label": "labels are texts or whole numbers (pandas makes floats of numbers "
  "where some are missing: write them as Int64)",
}
_LABELS = (
  *("label", "labels", "cls", "class", "target", "fine_label"),
  "image/class/label",
)


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns that are read.

  Attributes:
    image: of the images.
    has_paths: whether they are paths of files, instead of encoded images.
    captions: of the captions; none where labels stand for them.
    label: of the labels, where there are any.
    label_is_text: whether a label is the class's name, not a number.
    class_names: that the metadata tell.
    guessed: whether any was found here, and not named by the user.
  """

  image: str
  has_paths: bool
  captions: tuple[str, ...]
  label: str | None
  label_is_text: bool
  class_names: tuple[str, ...] | None
  guessed: bool

  @property
  def names(self) -> tuple[str, ...]:
    """The names of all columns."""
    label = () if self.label is None else (self.label,)
    return (self.image, *self.captions, *label)

  def are_in(self, schema: pa.Schema) -> bool:
    """Whether a table has these columns, with values of these kinds."""
    fields = _fields(schema)
    if not set(self.names) <= fields.keys():
      return False
    is_image = is_text if self.has_paths else is_encoded
    is_label = is_text if self.label_is_text else pa.types.is_integer
    return (
      is_image(fields[self.image])
      and all(map(_is_caption, (fields[name] for name in self.captions)))
      and (self.label is None or is_label(fields[self.label]))
    )

  def tell(self) -> str:
    """Returns a sentence: what is read from which column."""
    return usual_names.tell_guess(
      "Columns",
      image=self.image,
      captions=self.captions,
      label=self.label,
      has_paths=self.has_paths,
    )


def find(
  schema: pa.Schema, options: Mapping[str, str], *, path: str
) -> Columns:
  """Returns the columns to read.

  Args:
    schema: of a file.
    options: `image`, `caption` (several joined by commas) and `label` of an
      address, where they are given.
    path: of the file, its scheme in front, for messages.

  Raises:
    UserError: there are no images, or neither captions nor labels, or several
      columns might be meant, or an option names none or one of another kind.
  """
  fields = _fields(schema)
  repeated = tuple(dict.fromkeys(n for n in schema.names if n not in fields))
  table = _Table(fields, _features(schema), repeated, path)
  image = table.named(options.get("image"), "image", _is_image)
  captions = tuple(
    table.named(name, "caption", _is_caption)
    for name in filter(None, options.get("caption", "").split(","))
  )
  label = table.named(options.get("label"), "label", _is_label)
  image = image or table.find_image(but=(*captions, label))
  captions = captions or table.find_captions(but=(image, label))
  label = label or table.find_label(but=(image, *captions), numbers=captions)
  if not captions and label is None:
    captions = table.find_only_text(but=(image,))
  if not captions and label is None:
    raise errors.UserError(
      f"{path} has neither captions nor labels that are known as such; "
      f"its columns are {table.listed()}. Name one with ?caption=COLUMN or "
      "?label=COLUMN."
    )
  return Columns(
    image=image,
    has_paths=is_text(table.fields[image]),
    captions=captions,
    label=label,
    label_is_text=label is not None and is_text(table.fields[label]),
    class_names=None if label is None else _class_names(table.features, label),
    guessed="image" not in options or not {"caption", "label"} & options.keys(),
  )


@dataclasses.dataclass(frozen=True)
class _Table:
  """The columns of a file, by name; `repeated` are names of several."""

  fields: dict[str, pa.DataType]
  features: dict[str, Any]
  repeated: tuple[str, ...]
  path: str

  def listed(self) -> str:
    shown = [f"{name!r} ({kind})" for name, kind in self.fields.items()]
    shown = [text if len(text) < 100 else f"{text[:97]}…)" for text in shown]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    said = ", ".join(shown[:20]) + more if shown else "none"
    if self.repeated:
      names = ", ".join(f"{name!r:.100}" for name in self.repeated[:3])
      said += f"; left out are those of the same name, such as {names}"
    return said

  def named(
    self, name: str | None, option: str, is_kind: Callable[[Any], bool]
  ) -> Any:
    """Returns the `name` that a user gave, checked; None where it is None."""
    if name is None:
      return None
    if name not in self.fields:
      raise errors.unknown(f"column for {option}=", name, self.fields)
    if not is_kind(self.fields[name]):
      raise errors.UserError(
        f"{self.path}: the column {name!r} cannot be the {option}, by "
        f"its type; {_KINDS[option]}. The columns are {self.listed()}."
      )
    return name

  def find_image(self, *, but: Iterable[str | None]) -> str:
    others = set(self.fields) - set(but)
    declared = [
      name
      for name, feature in self.features.items()
      if feature.get("_type") == "Image"
    ]
    kinds = (
      (set(declared), _is_image, True),
      (others, _is_struct, True),
      (others, is_encoded, True),
      ({*_IMAGES, *usual_names.PATHS}, is_text, False),
    )
    for names, is_kind, any_name in kinds:
      found = self._of_kind(is_kind, others.intersection(names))
      usual = [name for name in (*_IMAGES, *usual_names.PATHS) if name in found]
      if usual or (any_name and len(found) == 1):
        return [*usual, *found][0]
      if any_name and found:
        raise errors.UserError(
          f"{self.path}: several columns may hold the images: "
          f"{terminal.quoted(found)}. Choose with ?image=COLUMN."
        )
    raise errors.UserError(
      f"{self.path} has no column of images, neither encoded ones nor "
      f"paths by a usual name; its columns are {self.listed()}. Name one with "
      "?image=COLUMN."
    )

  def find_captions(self, *, but: Iterable[str | None]) -> tuple[str, ...]:
    found = self._of_kind(holds_texts, set(self.fields) - set(but))
    usual = [name for name in usual_names.CAPTIONS if name in found]
    return tuple(usual[:1] or filter(_NUMBERED.fullmatch, found))

  def find_label(
    self, *, but: Iterable[str | None], numbers: Iterable[str]
  ) -> str | None:
    """Returns the column of the labels; only of numbers beside captions."""
    kind = pa.types.is_integer if numbers else _is_label
    found = self._of_kind(kind, set(self.fields) - set(but))
    usual = [name for name in _LABELS if name in found]
    declared = [n for n in found if self.features.get(n, {}).get("names")]
    return next(iter([*usual, *(declared if len(declared) == 1 else [])]), None)

  def find_only_text(self, *, but: Iterable[str]) -> tuple[str, ...]:
    """Returns the only column of texts that are no keys or addresses."""
    found = self._of_kind(holds_texts, set(self.fields) - set(but))
    found = [name for name in found if not usual_names.is_key(name)]
    return tuple(found) if len(found) == 1 else ()

  def _of_kind(
    self, is_kind: Callable[[Any], bool], names: Iterable[str]
  ) -> list[str]:
    names = set(names)
    return [
      n for n, kind in self.fields.items() if n in names and is_kind(kind)
    ]


def _fields(schema: pa.Schema) -> dict[str, pa.DataType]:
  """Returns the type of each column that has its name for itself."""
  counts = collections.Counter(schema.names)
  return {field.name: field.type for field in schema if counts[field.name] == 1}


def _features(schema: pa.Schema) -> dict[str, Any]:
  """Returns the features of the library `datasets`; none where they are odd."""
  try:
    metadata = json_text.parse((schema.metadata or {}).get(_METADATA, b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return {n: f for n, f in features.items() if isinstance(f, dict)}
  except (json_text.JsonError, AttributeError):
    return {}


def class_names(
  schemas: Iterable[pa.Schema], label: str
) -> list[tuple[str, ...] | None]:
  """Returns the names of a column's classes that each schema tells."""
  known: dict[bytes, tuple[str, ...] | None] = {}
  found = []
  for schema in schemas:
    text = (schema.metadata or {}).get(_METADATA, b"")
    if text not in known:
      known[text] = _class_names(_features(schema), label)
    found.append(known[text])
  return found


def _class_names(
  features: dict[str, Any], label: str
) -> tuple[str, ...] | None:
  names = features.get(label, {}).get("names")
  if not isinstance(names, list) or not names:
    return None
  if not all(isinstance(name, str) for name in names):
    return None
  return tuple(as_class_name(name) for name in names)


def as_class_name(name: str) -> str:
  """Returns the name of a class as a text; `_` is read as a space."""
  name = name.encode("utf-8", "replace").decode("utf-8")
  return captions_lib.spaced(name)


def _plain(kind: pa.DataType) -> pa.DataType:
  return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
  """Whether values of this type are texts."""
  kind, types = _plain(kind), pa.types
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_string_view(kind)
  )


def is_list(kind: pa.DataType) -> bool:
  """Whether values of this type are lists."""
  types = pa.types
  return (
    types.is_list(kind)
    or types.is_large_list(kind)
    or types.is_fixed_size_list(kind)
    or types.is_list_view(kind)
    or types.is_large_list_view(kind)
  )


def _is_binary(kind: pa.DataType) -> bool:
  kind, types = _plain(kind), pa.types
  return (
    types.is_binary(kind)
    or types.is_large_binary(kind)
    or types.is_binary_view(kind)
  )


def _is_struct(kind: pa.DataType) -> bool:
  if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
    return False
  path = kind.get_field_index("path")
  if path < 0 or pa.types.is_null(kind.field(path).type):
    return _is_binary(kind.field("bytes").type)
  return _is_binary(kind.field("bytes").type) and is_text(kind.field(path).type)


def is_encoded(kind: pa.DataType) -> bool:
  """Whether values of this type are encoded images."""
  return _is_struct(kind) or _is_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
  return is_encoded(kind) or is_text(kind)


def holds_texts(kind: pa.DataType) -> bool:
  """Whether values of this type are texts or lists of texts."""
  return is_text(kind.value_type if is_list(kind) else kind)


def _is_caption(kind: pa.DataType) -> bool:
  inner = kind.value_type if is_list(kind) else kind
  return is_text(inner) or _is_binary(inner)


def _is_label(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or is_text(kind)
