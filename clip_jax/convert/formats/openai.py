"""Reads OpenAI's `.pt` (TorchScript or state dict) and writes a state dict.

The description follows from the tensors' shapes, by the rules of OpenAI's own
`build_model`. The number of heads does not; it is known only for the sizes of
OpenAI's own models. A state dict does not say its activation either; an archive
does, by the constant of its QuickGELU.
"""

import math
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import (
  engine,
  portable,
  tokenizer_files,
  transforms,
  weights_file,
)
from clip_jax.convert.engine import family, fields
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.sizes import Sizes
from clip_jax.convert.files import torch_zip
from clip_jax.convert.formats import (
  open_clip_files,
  openai_heads,
  openai_names,
)
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import resnet, variants

NAME = "openai"
_QUICK_GELU = 1.702
_MAX_STAGES = 12  # Of a ResNet: each halves the image; its releases have 4.
IGNORED = (
  r"^(input_resolution|context_length|vocab_size)$",
  r"(^|\.)num_batches_tracked$",
  r"(^|\.)attn_mask$",
)
SIZES = {
  "vit": """
width      visual.conv1.weight                                 0 of 4
patch_size visual.conv1.weight                                 3 of 4
positions  visual.positional_embedding                         0 of 2
depth      visual.transformer.resblocks.{i}.
mlp_dim    visual.transformer.resblocks.0.mlp.c_fc.weight      0 of 2
""",
  "resnet": """
width      visual.layer1.0.conv1.weight                        0 of 4
positions  visual.attnpool.positional_embedding                0 of 2
depths     visual.layer{i}.
""",
  "transformer": """
width           ln_final.weight                                0 of 1
context_length  positional_embedding                           0 of 2
vocab_size      token_embedding.weight                         0 of 2
depth           transformer.resblocks.{i}.
mlp_dim         transformer.resblocks.0.mlp.c_fc.weight        0 of 2
""",
}
# Fields that are fixed in `build_model`, so that each of its models has them.
_VIT_FACTS = "norm_epsilon pooling class_token class_position pre_norm "
_VIT_FACTS += "patch_bias registers drop_edge"
_VIT = family.published("ViT-B-32", "image", _VIT_FACTS)
_TEXT = family.published("ViT-B-32", "text", "norm_epsilon causal pooling")
_FIXED = {"image": {"vit": _VIT, "resnet": {}}, "text": {"transformer": _TEXT}}
# Fields that are fixed in `clip.load`'s transform; others differ visibly.
_PREPROCESSING = "image_mean image_std interpolation resize crop_fraction"
# Fields that are fixed in `clip.tokenize`.
_TOKENIZER = {**tokenizer_files.CLIP, "pad_id": 0, "cleaning": "clip"}
# Fields in which OpenAI's code may differ a little, with the consequence.
_SLIGHTLY = "which differs slightly; the weights are the same"
_NEARLY = {
  "antialias": _SLIGHTLY,
  "crop_rounding": _SLIGHTLY,
  "convert_rgb": _SLIGHTLY,
  "tokenizer.cleaning": "so that some texts get other ids",
  "tokenizer.pad_id": "but no embedding sees what follows the end token",
}
# Every model under OpenAI's names has these.
_MARKS = ("visual.conv1.weight", "text_projection")


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of a model with OpenAI's names."""
  return all(mark in names for mark in _MARKS)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of an archive or a state dict.

  Raises:
    UserError: the file is damaged, or holds another model.
    AmbiguousError: the towers' activation or number of heads is not known.
  """
  reading = SourceReading(str(path), NAME, options)
  archive = weights_file.read(path, options, reading.report)
  names = archive.tensors
  if not recognise_names(names):
    raise errors.UserError(
      f"{path} holds no model under OpenAI's names: it lacks "
      f"{' or '.join(_MARKS)}; it has {', '.join(list(names)[:5])}, … . Give "
      "the directory that the checkpoint came in, with its config."
    )
  activation = _activation(path, archive, reading)
  spec = describe(names, reading, activation=activation)
  _cross_check(archive, spec, path)
  return reading.model(
    openai_names.NAMES.entries(spec),
    names,
    spec,
    weights=[path],
    ignored=IGNORED,
    dialect={"torchscript": archive.torchscript},
  )


def _activation(path, archive, reading) -> str:
  given, report = reading.options.activation, reading.report
  quick = archive.torchscript and any(
    math.prod(value.shape) == 1
    and math.isclose(value.read().item(), _QUICK_GELU, rel_tol=1e-3)
    for value in archive.constants.values()
  )
  if given:
    if quick and given != "quick_gelu":
      report.warnings.append(
        f"--activation {given} overrides {path}, which has the constant of "
        "quick_gelu."
      )
    return report.infer("activation", given, "flag")
  if quick:
    return report.infer("activation", "quick_gelu", "archive")
  if len(open_clip_files.find_configs(path.parent)) == 1:
    raise errors.AmbiguousError(
      f"{path} does not say which activation its towers have, and its "
      f"directory, {path.parent}, has OpenCLIP's config: give that."
    )
  raise errors.AmbiguousError(
    f"{path} does not say which activation its towers have: the names are "
    "OpenAI's, but models with QuickGELU (OpenAI's own, DFN, MetaCLIP) share "
    "them with models with GELU (LAION, DataComp).",
    flags="--activation quick_gelu or --activation gelu",
  )


def _cross_check(archive, spec, path) -> None:
  """Raises DamagedError if an archive's scalars contradict its shapes."""
  for name, want in _scalars(spec).items():
    if name in archive.tensors:
      got = np.ravel(archive.tensors[name].read())
      if got.size != 1 or got[0] != want:
        raise errors.DamagedError(
          f"{path} says {name}={got.tolist()!r:.100}, but its tensors have "
          f"{want}; download it again."
        )


def _scalars(spec) -> dict[str, int]:
  """Returns the sizes that OpenAI's archives hold as scalars, by name."""
  return {
    "input_resolution": spec["image"]["image_size"],
    "context_length": spec["text"]["context_length"],
    "vocab_size": spec["text"]["vocab_size"],
  }


def describe(
  tensors: Mapping[str, Tensor], reading: SourceReading, *, activation: str
) -> dict[str, Any]:
  """Returns the description that the tensors' shapes imply (`build_model`).

  Args:
    tensors: tensors by name.
    reading: the checkpoint that is read.
    activation: activation of both towers.

  Raises:
    UserError: a tensor is missing, or misses an axis.
    AmbiguousError: the sizes are not OpenAI's, and no option says the heads.
  """
  sizes = Sizes(tensors, reading.name)
  kind = "vit" if "visual.proj" in tensors else "resnet"
  image = {"kind": kind, **sizes(SIZES[kind]), **_FIXED["image"][kind]}
  side = sizes.square(image.pop("positions") - 1, "its image tower")
  if kind == "vit":
    image["image_size"] = image["patch_size"] * side
  else:
    if image["depths"] > _MAX_STAGES:
      raise errors.UserError(
        f"{reading.name} has {image['depths']} stages of a ResNet, more than "
        f"{_MAX_STAGES}; fetch or make it again."
      )
    stages = range(1, image["depths"] + 1)
    image["depths"] = [sizes.count(f"visual.layer{n}.{{i}}.") for n in stages]
    # The stem and each stage but the first halve, the stem twice.
    image["image_size"] = side * 2 ** (len(stages) + 1)
  text = {"kind": "transformer", **sizes(SIZES["transformer"])}
  text |= {**_FIXED["text"]["transformer"], "activation": activation}
  found = openai_heads.find(image, text, reading)
  text["heads"] = found[1]
  if kind == "vit":
    image |= {"heads": found[0], "activation": activation}
  infer = reading.report.infer
  infer("image.kind", kind, "shape")
  infer("image.image_size", image["image_size"], "shape")
  infer("text.pooling", "argmax", "format")
  infer("norm_epsilon", 1e-5, "format")
  infer("preprocessing and tokenizer", "OpenAI's", "format")
  ends = sizes("embed_dim  text_projection  1 of 2")
  return variants.spec({**ends, "image": image, "text": text})


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns messages about what of a description OpenAI's code lacks."""
  said = _completed(spec)
  return family.not_allowed(said, _allowed(said))


def _completed(spec: dict[str, Any]) -> dict[str, Any]:
  """Returns a description as after JSON, with all fields of the tokenizer."""
  said = family.as_json(spec)
  return {**said, "tokenizer": {**_TOKENIZER, **said["tokenizer"]}}


def _allowed(said: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
  """Yields (field, allowed values) for the fields that no tensor shows."""
  text = said["text"]
  causal = text.get("causal", False)
  # A text is read at its end token: if that has the last id, its first place
  # is that of the first largest id, in every row that has one.
  last = text.get("eos_id") == text["vocab_size"] - 1
  for field, allowed in family.fixed_fields(said, _FIXED):
    if field == "text.pooling" and last:
      allowed += ("eos",)
    yield field, allowed
  for tower, kinds in _FIXED.items():
    this = said[tower]
    if "heads" in this and this["kind"] in kinds:
      width = this["width"]
      by_rule = -(-width // resnet.HEAD_DIM)
      yield f"{tower}.activation", ("quick_gelu",)
      yield f"{tower}.heads", (by_rule,)
      if this["heads"] == by_rule:
        yield f"{tower}.width", (by_rule * resnet.HEAD_DIM,)
      yield f"{tower}.mlp_dim", (4 * width, None)
  is_resnet = said["image"]["kind"] == "resnet"
  if is_resnet:
    depths = said["image"]["depths"]
    yield "image.depths", ([*depths, 1, 1, 1, 1][:4],)
  yield "text_projection", ("linear",)
  yield "image_projection", ("none" if is_resnet else "linear",)
  yield "embed_norm", ("l2",)
  yield "init_logit_bias", (None,)
  for field in _PREPROCESSING.split():
    yield field, (family.as_json(variants.DEFAULTS[field]),)
  for field in ("kind", "start_id", "end_id"):
    yield f"tokenizer.{field}", (_TOKENIZER[field],)
  # Nothing after the end token reaches the embedding of these.
  if not (causal and text["pooling"] in ("argmax", "eos")):
    yield "tokenizer.pad_id", (0,)


def deviations(spec: dict[str, Any]) -> list[str]:
  """Returns small differences of OpenAI's code, by our fields."""
  said = _completed(spec)
  usual = {**variants.DEFAULTS, "tokenizer": _TOKENIZER}
  return [
    f"{field}={fields.get(said, field)!r} is {fields.get(usual, field)!r} in "
    f"OpenAI's code, {consequence}."
    for field, consequence in _NEARLY.items()
    if fields.get(said, field) != fields.get(usual, field)
  ]


def options_to_read(spec: dict[str, Any]) -> portable.Options:
  """Returns the options needed to read a written state dict back."""
  towers = (spec["image"], spec["text"])
  image_heads, text_heads = map(transforms.heads, towers)
  return portable.Options(
    activation=spec["text"]["activation"], heads=(image_heads, text_heads)
  )


def write(model: portable.Portable, destination: pathlib.Path) -> None:
  """Writes a state dict that `clip.model.build_model` can load."""
  portable.refuse(NAME, refusals(model.spec))
  model.report.warnings += deviations(model.spec)
  torch_zip.write(destination, state_dict(model))


def state_dict(model: portable.Portable) -> dict[str, Tensor]:
  """Returns the tensors under OpenAI's names, with batch norms' counts."""
  entries = openai_names.NAMES.entries(model.spec)
  tensors = engine.to_theirs(entries, model.leaves)
  kept = dict(model.extras_of(NAME))
  for key, value in _scalars(model.spec).items():
    if key in kept:  # The model may have been resized since.
      dtype = np.promote_types(kept[key].dtype, np.min_scalar_type(value))
      array = np.full(kept[key].shape, value, dtype)
      kept[key] = Tensor.from_array(array)
  return {**tensors, **openai_names.running_counts(tensors), **kept}


FORMAT = Format(
  NAME,
  read,
  recognise_names=recognise_names,
  write=write,
  refusals=refusals,
  options_to_read=options_to_read,
  suffixes=(".pt", ".pth", ".bin", ".ckpt"),
)
