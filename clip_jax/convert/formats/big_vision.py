"""Reads and writes big_vision's `.npz`: SigLIP, SigLIP 2, LiT, single ViTs.

The architecture follows from the arrays' shapes. Activation, epsilons and
preprocessing do not: the values of big_vision's models are taken, and noted in
the report. For a text tower that is not SigLIP's, the user must give pooling
and tokenizer.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, portable, positions
from clip_jax.convert.engine import family
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.sizes import Sizes
from clip_jax.convert.files import npz
from clip_jax.convert.formats import big_vision_description as description
from clip_jax.convert.formats import big_vision_names as names_lib
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.tokenizer import tokenizer_file as tokenizer_files

NAME = "big-vision"
# The names of a patch embedding and of a token embedding, with any prefix.
_MARKS = ("/embedding/kernel", "/Embed_0/embedding", "_ids/embedding")


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of one or two towers of big_vision."""
  return any(f"/{name}".endswith(_MARKS) for name in names)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a checkpoint with two towers, or with one.

  Raises:
    UserError: the file is damaged, or holds another model.
    AmbiguousError: its text tower has several possible meanings.
  """
  reading = SourceReading(str(path), NAME, options)
  model = read_tensors(reading.tensors(path), reading, weights=[path])
  files = {}
  if tokenizer := model.spec.get("tokenizer"):
    name = tokenizer["file"]
    if file := tokenizer_files.find(name, directory=path.parent):
      files[name] = file.read()
    else:
      model.report.warnings.append(
        f"An .npz holds no tokenizer: put its {name} beside the file to "
        "encode texts."
      )
  return dataclasses.replace(model, files=files)


def read_tensors(
  tensors: Mapping[str, Tensor],
  reading: SourceReading,
  weights: Iterable[pathlib.Path] = (),
) -> portable.Portable:
  """Returns the model of a checkpoint's arrays.

  Args:
    tensors: the arrays by name.
    reading: the checkpoint that is read.
    weights: the files with the arrays, for their digests.

  Raises:
    UserError: they are not a model of big_vision.
    AmbiguousError: their text tower has several possible meanings.
  """
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  layout = names_lib.find(shapes, reading.name)
  tensors = _merge_positions(tensors, layout, reading.report)
  tensors, noted = _square(tensors, layout, reading)
  spec = description.describe(tensors, layout, reading)
  root = layout["root"]
  # Whatever else a training checkpoint holds.
  ignored = [f"^(?!{root})"] if root else []
  if engine.towers(spec) == ("image",):  # A classifier.
    prefix = names_lib.prefix_of(layout, "image")
    ignored.append(f"^{prefix}(head|pre_logits)/")
  model = reading.model(
    names_lib.NAMES.entries(spec, layout),
    tensors,
    spec,
    weights=weights,
    ignored=ignored,
    hint="Only models as big_vision's vit.py, text_transformer.py and "
    "two_towers.py make them, and LiT's, can be read.",
    dialect=layout,
    noted=noted,
  )
  # An optimizer's state is not part of the model.
  extras = {k: x for k, x in model.extras.items() if k.startswith(root)}
  return dataclasses.replace(model, extras=extras)


def _merge_positions(tensors, layout, report) -> dict[str, Tensor]:
  """Replaces two position embeddings of a text tower by their sum."""
  tensors = dict(tensors)
  if not layout["text"]:
    return tensors
  prefix = names_lib.prefix_of(layout, "text")
  first, second = f"{prefix}pos_embedding", f"{prefix}Encoder_0/pos_embedding"
  if not (first in tensors and second in tensors):
    return tensors
  a, b = tensors[first], tensors.pop(second)
  if (a.shape, a.dtype) != (b.shape, b.dtype):
    raise errors.UserError(
      f"{first} {list(a.shape)} and {second} {list(b.shape)} are to be added, "
      "and differ in shape or dtype; fetch or make the file again."
    )
  tensors[first] = a.map(lambda x: x + b.read())
  report.warnings.append(
    f"{second} is added to {first}, as big_vision does on loading; an export "
    "holds the sum."
  )
  return tensors


def _square(tensors, layout, reading):
  """Returns the arrays with a grid of positions resized to a square one.

  Returns the arrays, and notes about the source.
  """
  options = reading.options
  if not layout["image"] or options.old_grid is None:
    return tensors, {}
  prefix = names_lib.prefix_of(layout, "image")
  key = prefix + layout["image"]["positions"]
  old = tensors.get(key)
  rows, cols = options.old_grid
  if old is None or rows == cols or options.image_size is None:
    return tensors, {}
  if old.shape[:1] != (1,) or layout["image"]["flat_patches"]:
    raise errors.UserError(
      f"--old-grid is for {key} of the shape [1, positions, width]; it has "
      f"{list(old.shape)}."
    )
  patch, cells = Sizes(tensors, reading.name)(
    f"patch {prefix}embedding/kernel 0 of 4\ncells {key} 1 of 3"
  ).values()
  # As many, but for a class token's.
  patches = cells - (cells == rows * cols + 1)
  new, what = positions.resized(
    old.map(lambda x: x[0], old.shape[1:]),
    {
      **{"kind": "vit", "patch_size": patch},
      "image_size": [rows * patch, cols * patch],
    },
    options.image_size,
    old_grid=positions.old_grid(patches, (rows, cols)),
    method=options.resize_method,
  )
  reading.report.facts["resized"] = what
  new = new.map(lambda x: x[None], (1, *new.shape))
  return {**tensors, key: new}, {"resized": what}


def write(model: portable.Portable, destination: pathlib.Path) -> None:
  """Writes a file with the source's layout, or with big_vision's present one.

  Raises:
    UserError: big_vision has no such model.
  """
  portable.refuse(NAME, description.refusals(model.spec))
  npz.write(destination, to_tensors(model))


def options_to_read(spec: dict[str, Any]) -> portable.Options:
  """Returns the options needed to read a model back that was written."""
  text = spec.get("text", {})
  if text.get("kind") != "transformer":
    return portable.Options()
  others = [
    name
    for name, tokenizer in description.TOKENIZERS.items()
    if not _differences(spec["tokenizer"], tokenizer)
  ]
  # If none is equal, the writer has warned: any one can read it back.
  tokenizer = (others or list(description.TOKENIZERS))[0]
  return portable.Options(
    pooling="last",
    tokenizer=description.VOCABULARIES.get(text["vocab_size"], tokenizer),
  )


def to_tensors(model: portable.Portable) -> dict[str, Tensor]:
  """Returns the model's arrays under big_vision's names."""
  spec = model.spec
  layout = model.dialect(NAME)
  if not layout:
    layout = names_lib.MODERN
    text = spec.get("text", {})
    flat = text.get("kind") == "bert" and (
      text["width"] == text["heads"] * description.BERT_HEAD_DIM
    )
    layout = {**layout, "text": {**layout["text"], "flat_heads": flat}}
    model.report.warnings += _unsaid(spec)
  return {
    **engine.to_theirs(names_lib.NAMES.entries(spec, layout), model.leaves),
    **model.extras_of(NAME),
  }


def _unsaid(spec: dict[str, Any]) -> list[str]:
  """Returns warnings about what a file of arrays cannot say."""
  said = family.normal_form(spec)
  differs = {
    field: spec[field]
    for field, want in family.normal_form(description.PREPROCESSING).items()
    if field in said and said[field] != want
  }
  warnings = []
  if differs:
    shown = ", ".join(f"{field}={value}" for field, value in differs.items())
    warnings.append(
      "The file says nothing about preprocessing, and the model's is not "
      f"big_vision's usual: {shown}."
    )
  if "tokenizer" in spec:
    usual = description.usual_tokenizer(spec["text"])
    if not usual:
      warnings.append(
        "The file says nothing about the tokenizer, and big_vision has none "
        f"of {spec['text']['vocab_size']} ids: give it to whoever reads the "
        "file."
      )
    elif other := _differences(spec["tokenizer"], usual):
      warnings.append(
        "The file says nothing about the tokenizer, and the model's is not the "
        f"one that big_vision takes for its vocabulary: {', '.join(other)}."
      )
  text = spec.get("text", {})
  if text.get("pooling") == "last" and not description.is_siglip(
    text["vocab_size"], has_bias=spec.get("init_logit_bias") is not None
  ):
    warnings.append(
      "The file does not say how the text tower pools: who reads it must be "
      "told (here, --pooling last)."
    )
  if spec.get("embed_norm") == "l2":
    warnings.append(
      "big_vision adds 1e-8 to the length of an embedding before it divides: "
      "less than float32 resolves."
    )
  return warnings


def _differences(tokenizer: dict[str, Any], usual: dict[str, Any]) -> list[str]:
  """Returns the fields of a tokenizer that would change when read back."""
  return [
    f"tokenizer.{field}={tokenizer.get(field)!r} ({want!r} there)"
    for field, want in usual.items()
    if field != "file" and tokenizer.get(field) != want
  ]


FORMAT = Format(
  NAME,
  read,
  recognise_names=recognise_names,
  write=write,
  refusals=description.refusals,
  options_to_read=options_to_read,
  suffixes=(".npz",),
)
