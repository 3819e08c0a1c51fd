"""The parts of a checkpoint format, and the code that all formats share.

In this package "theirs" is the checkpoint's side, with the other library's
names, and "ours" is the side of this package. A format is data in one file of
`convert/formats/`:

- `names.Names`: tables with a row for each tensor, "KIND THEIRS OURS", which
  become a list of `Entry`s: which tensor of theirs goes to which places of
  ours, and through which transform. With this list the engine reads and writes,
  checks that both sides are covered exactly once, and compares shapes before
  any data are read. Data are read lazily, one tensor at a time.
- `fields.Field` and similar classes: a row for each field of the config. A row
  reads and writes the field, reports where its value comes from, and rejects
  values that are not supported.
- `family.Family` holds both, with the defaults of the config's classes.
- `format.Format` says how files of the format are recognised, read and
  written; `convert/formats/table.py` lists them all.

To write one, after the example of `formats/huggingface_clip.py`:

    TOWER = '''
    -      token_embedding.weight  token_embedding/embedding
    stack  layers.{i}.             blocks  block
    norm   final_norm              ln_final
    '''
    BLOCK = '''
    norm   norm1                   ln_1
    heads  attn.q_proj             attention/query
    '''
    FAMILY = Family(
      "my_clip",
      Names({"whole": "part text. text tower", "tower": TOWER, "block": BLOCK}),
      fields=(
        Fixed("text.kind", "transformer", in_weights=True),
        Field("text.layers", "text.depth", in_weights=True),
        Field("text.act", "text.activation", one_of({"gelu": "gelu"})),
        Written("model_type", "my_clip"),
      ),
      defaults={"text": {"layers": 12}},
    )

With a `source_reading.SourceReading`, which holds the options and the report,
`FAMILY.describe(reading.config(config, FAMILY.defaults, …))` reads a config.
`FAMILY.config(spec)` writes one, `FAMILY.entries(spec)` gives the place of
every tensor to `reading.model` and `to_theirs`, and `FAMILY.refusals(spec)`
lists the fields of a model that would change if such a config were written and
read again, so that no refusal is written by hand. For a row that needs several
fields, derive a class from `fields.Row`; for a new layout of a tensor, add a
line to `transforms.LAYOUTS`. Another model of HuggingFace's is a
`formats.huggingface_family.HuggingFaceFamily`, listed in
`formats/huggingface.py`, as `huggingface_chinese_clip.py` is. A new class of
image processor is a line in `formats/huggingface_images.py`, and the model's
class is one in `verify/huggingface.py`, for `verify`.
"""

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax import errors, sharding
from clip_jax.convert import report as report_lib
from clip_jax.convert import transforms
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants


@dataclasses.dataclass(frozen=True)
class Slot:
  """A place in our tree: an array, or one layer of a stacked array."""

  path: str
  layer: int | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of theirs and the places of ours that it fills."""

  name: str
  slots: tuple[Slot, ...]
  transform: transforms.Transform = transforms.IDENTITY


# numpy counts no more, not even in an array of strides that are 0.
_MAX_ELEMENTS = 2**60
FLOATS = ("float16", "bfloat16", "float32", "float64")

# The fields of a description that say how images are preprocessed.
IMAGE_FIELDS = (
  *("image_mean", "image_std", "interpolation", "antialias", "resize", "fill"),
  *("crop_rounding", "crop_fraction", "convert_rgb"),
)

# The fields of a description that belong to each tower, besides its own.
FIELDS_BESIDE = {"image": IMAGE_FIELDS, "text": ("tokenizer",)}

# The smallest sizes that are valid for all kinds of towers.
_LEAST = {
  **{"width": 1, "depth": 1, "heads": 1, "image_size": 1, "patch_size": 1},
  **{"context_length": 3, "positions": 3, "vocab_size": 1, "token_types": 1},
}


def stand_in(tower: str, kind: str) -> dict[str, Any]:
  """Returns the description of the smallest tower, used only as a filler."""
  fields = dataclasses.fields(variants.TOWERS[tower][kind])
  sizes = {x.name: _LEAST[x.name] for x in fields if x.name in _LEAST}
  return {"kind": kind, **sizes}


# Fillers for the missing tower of a single one, so that a model can be made.
STAND_INS = {
  "image": stand_in("image", "vit"),
  "text": stand_in("text", "cbow"),
}


def towers(spec: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the towers that a description has: both, "image" or "text"."""
  return tuple(part for part in STAND_INS if part in spec)


def resolve(spec: dict[str, Any]) -> dict[str, Any]:
  """Completes a description of one tower or of both (`variants.spec`)."""
  parts = towers(spec)
  if len(parts) == 2:
    return variants.spec(spec)
  whole = variants.spec({"embed_dim": 1, **STAND_INS, **spec})
  return {field: whole[field] for field in (*parts, *FIELDS_BESIDE[parts[0]])}


def completed(spec: dict[str, Any]) -> dict[str, Any]:
  """Returns a description that `variants.create_model` takes.

  A single tower gets a filler as the other one, and no projections.
  """
  parts = towers(spec)
  if len(parts) == 2:
    return spec
  return {
    **STAND_INS,
    **spec,
    "embed_dim": spec[parts[0]]["width"],
    "image_projection": "none",
    "text_projection": "none",
  }


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree of variables by path."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {sharding.path_name(path): leaf for path, leaf in leaves}


def leaf_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array of the model of `spec`, by path.

  A model with one tower has only that tower's arrays, and neither projection
  nor temperature.
  """
  # Cached, since tracing takes most of the time of a small conversion, which
  # reads, writes and reads back the same description.
  return dict(_leaf_shapes(json.dumps(spec, sort_keys=True, default=list)))


@functools.lru_cache(maxsize=32)
def _leaf_shapes(description: str) -> dict[str, tuple[int, ...]]:
  spec = json.loads(description)
  parts = towers(spec)
  if len(parts) == 1:
    spec = {"embed_dim": 1, **STAND_INS, **spec}
  model = variants.create_model(spec)
  tree = variants.abstract_variables(model)
  shapes = {path: leaf.shape for path, leaf in flatten(tree).items()}
  for path, shape in shapes.items():
    if math.prod(shape) >= _MAX_ELEMENTS:
      raise errors.UserError(
        f"A model of this config would have an array of {list(shape)}, {path}, "
        "which is beyond all memory; check the sizes that the config says."
      )
  if len(parts) == 1:
    shapes = {k: v for k, v in shapes.items() if k.split("/")[1] == parts[0]}
  return shapes


def check_cover(
  entries: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]]
) -> None:
  """Asserts that the entries fill every place exactly once, as tables must."""
  places = collections.Counter(s for entry in entries for s in entry.slots)
  wanted = set()
  stacked = {slot.path for slot in places if slot.layer is not None}
  for path, shape in shapes.items():
    layers = range(shape[0]) if path in stacked else (None,)
    wanted |= {Slot(path, layer) for layer in layers}
  twice = [slot for slot, count in places.items() if count > 1]
  assert not twice, f"filled twice: {twice}"
  assert set(places) == wanted, (
    f"not filled: {sorted(map(str, wanted - set(places)))}; "
    f"no such place: {sorted(map(str, set(places) - wanted))}"
  )
  names = collections.Counter(entry.name for entry in entries)
  assert max(names.values()) == 1, "a tensor has two entries"


def their_shape(
  entry: Entry, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
  """Returns the shape of an entry's tensor, almost without allocating."""
  # A single zero with strides of 0, so that transposes and reshapes are views.
  zero = np.zeros((), np.bool_)
  slot, *others = entry.slots
  shape = shapes[slot.path] if slot.layer is None else shapes[slot.path][1:]
  found = entry.transform.theirs([np.broadcast_to(zero, shape)]).shape
  # Not by joining what lies in one tensor, which is no view: all of its parts
  # have the shape of the first.
  return (found[0] * (1 + len(others)), *found[1:]) if others else found


def to_ours(
  entries: Sequence[Entry],
  tensors: Mapping[str, Tensor],
  spec: dict[str, Any],
  *,
  report: report_lib.Report,
  name: str,
  ignored: Iterable[str] = (),
  hint: str = "",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
  """Returns our arrays, read lazily from the tensors of a checkpoint.

  Args:
    entries: the format's entries for the model of `spec`.
    tensors: the checkpoint's tensors by name.
    spec: the model's description.
    report: the report to write to.
    name: the checkpoint's name in messages.
    ignored: regular expressions, searched in the names of tensors without an
      entry, for those that are not parameters.
    hint: advice for the user in case of a mismatch.

  Returns:
    Our leaves by path, and the ignored tensors by name.

  Raises:
    MismatchError: a tensor is missing, unexpected or of another shape.
  """
  shapes = leaf_shapes(spec)
  check_cover(entries, shapes)
  known = {entry.name: entry for entry in entries}
  patterns = [re.compile(pattern) for pattern in ignored]
  extras = {}
  for key, tensor in tensors.items():
    if key in known and tensor.dtype.name not in FLOATS:
      raise errors.UserError(
        f"{name}: {key} holds {tensor.dtype}, not floating numbers; quantised "
        "checkpoints are not read. Take the one before quantisation."
      )
    if key in known:
      want = their_shape(known[key], shapes)
      if tensor.shape != want:
        report.shape_mismatch.append(
          {"key": key, "got": list(tensor.shape), "want": list(want)}
        )
    elif any(pattern.search(key) for pattern in patterns):
      extras[key] = tensor
    else:
      report.unexpected.append(key)
  report.tensors = len(tensors)
  report.mapped = sum(key in tensors for key in known)
  report.ignored = sorted(extras)
  report.missing = sorted(key for key in known if key not in tensors)
  report.unexpected.sort()
  if not report.exact:
    raise report_lib.MismatchError(report, name=name, hint=hint)
  return _leaves(entries, tensors, shapes), extras


def _leaves(entries, tensors, shapes) -> dict[str, Tensor]:
  sources = collections.defaultdict(dict)  # path -> layer -> (entry, index)
  for entry in entries:
    for index, slot in enumerate(entry.slots):
      sources[slot.path][slot.layer] = (entry, index)
  return {
    path: _leaf(shape, sources[path], tensors) for path, shape in shapes.items()
  }


def _leaf(shape, sources, tensors) -> Tensor:
  """Returns the leaf whose layers are in the tensors named by `sources`."""
  dtypes = {i: tensors[entry.name].dtype for i, (entry, _) in sources.items()}
  dtype = common_dtype(dtypes.values())
  layers = None
  if len(set(dtypes.values())) > 1:
    layers = tuple(dtypes[i] for i in range(shape[0]))

  def part(layer):
    if layer in sources:
      entry, index = sources[layer]
      return entry.transform.ours(tensors[entry.name].read())[index]
    if layer is not None:  # Stacked there too.
      return part(None)[layer]
    whole = np.empty(shape, dtype)
    for i in range(shape[0]):
      whole[i] = part(i)
    return whole

  return Tensor(shape, dtype, lambda: part(None), part, layers)


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
  """Returns a dtype that represents the numbers of all `dtypes` exactly."""
  kinds = set(dtypes)
  if len(kinds) == 1:
    return kinds.pop()
  # float16 and bfloat16 do not contain each other.
  wide = (
    np.dtype(np.float32) if kind.itemsize == 2 else kind for kind in kinds
  )
  return functools.reduce(np.promote_types, wide)


def to_theirs(
  entries: Sequence[Entry], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
  """Returns a format's tensors of our leaves, lazily, in the format's order."""
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  check_cover(entries, shapes)
  return {entry.name: _their_tensor(entry, leaves, shapes) for entry in entries}


def _their_tensor(entry, leaves, shapes) -> Tensor:
  def read():
    parts = [leaves[slot.path].part(slot.layer) for slot in entry.slots]
    return np.asarray(entry.transform.theirs(parts), order="C")

  kinds = [leaves[slot.path].dtype_of(slot.layer) for slot in entry.slots]
  dtype = common_dtype(kinds)
  return Tensor(their_shape(entry, shapes), dtype, read)
