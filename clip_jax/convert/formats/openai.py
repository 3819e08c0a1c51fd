"""OpenAI's `.pt`: a TorchScript archive or a state dict in, a state dict out.

The description comes from the tensors' shapes by the rules of OpenAI's own
`build_model`. No tensor says how many heads there are: they follow from the
sizes of OpenAI's models alone. A state dict does not say which activation it
was trained with either; an archive does, by the constant of its QuickGELU.
"""

import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import (
  axes,
  engine,
  portable,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import torch_zip
from clip_jax.convert.formats import (
  open_clip_files,
  openai_export,
  openai_heads,
  openai_names,
)
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

NAME = "openai"
_QUICK_GELU = 1.702
IGNORED = (
  r"^(input_resolution|context_length|vocab_size)$",
  r"(^|\.)num_batches_tracked$",
  r"(^|\.)attn_mask$",
)

refusals = openai_export.refusals
told = openai_export.told


# Every model under OpenAI's names has these.
_MARKS = ("visual.conv1.weight", "text_projection")


def knows(names: Collection[str]) -> bool:
  """Whether these are names of a model under OpenAI's."""
  return all(mark in names for mark in _MARKS)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads an archive or a state dict.

  Raises:
    UserError: the file is damaged, or holds another model.
    AmbiguousError: nothing says which activation the towers have, or how many
      heads.
  """
  report = report_lib.Report(NAME)
  archive = weights_file.read(path, options, report)
  names = archive.tensors
  if not knows(names):
    raise errors.UserError(
      f"{path} holds no model under OpenAI's names: it lacks "
      f"{' or '.join(_MARKS)}; it has {', '.join(list(names)[:5])}, … . Give "
      "the directory that the checkpoint came in, with its config."
    )
  activation = _activation(path, archive, options, report)
  spec = describe(
    names,
    activation=activation,
    heads=options.heads,
    report=report,
    name=str(path),
  )
  _cross_check(archive, spec, path)
  return portable.assemble(
    openai_names.NAMES.entries(spec),
    names,
    spec,
    report=report,
    name=str(path),
    options=options,
    weights=[path],
    ignored=IGNORED,
    dialect={"torchscript": archive.torchscript},
  )


def _activation(path, archive, options, report) -> str:
  quick = archive.torchscript and any(
    math.prod(value.shape) == 1
    and math.isclose(float(value.read()), _QUICK_GELU, rel_tol=1e-3)
    for value in archive.constants.values()
  )
  if options.activation:
    if quick and options.activation != "quick_gelu":
      report.warnings.append(
        f"--activation {options.activation} is not what {path} says: it has "
        "the constant of quick_gelu."
      )
    return report.infer("activation", options.activation, "flag")
  if quick:
    return report.infer("activation", "quick_gelu", "archive")
  if open_clip_files.find_config(path.parent):
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
  """Compares the scalars that an archive carries with what shapes say."""
  for name, want in _scalars(spec).items():
    if name in archive.tensors:
      got = np.ravel(archive.tensors[name].read())
      if got.size != 1 or int(got[0]) != want:
        raise errors.DamagedError(
          f"{path} says {name}={got.tolist()}, but its tensors have {want}; "
          "download it again."
        )


def _scalars(spec) -> dict[str, int]:
  """Returns the sizes that OpenAI's archives hold as tensors, by name."""
  return {
    "input_resolution": spec["image"]["image_size"],
    "context_length": spec["text"]["context_length"],
    "vocab_size": spec["text"]["vocab_size"],
  }


def describe(
  tensors: Mapping[str, Tensor],
  *,
  activation: str,
  heads: tuple[int, int] | None = None,
  report: report_lib.Report,
  name: str,
) -> dict[str, Any]:
  """Returns the description that the tensors' shapes imply (`build_model`).

  Args:
    tensors: by name.
    activation: of both towers.
    heads: of the image and of the text tower, if they were told.
    report: takes what the tensors do not say.
    name: what messages call the checkpoint.

  Raises:
    UserError: a tensor is missing, or misses an axis.
    AmbiguousError: the sizes are not OpenAI's, and no heads were told.
  """
  axis = axes.Axes({key: tensor.shape for key, tensor in tensors.items()}, name)
  width = axis("ln_final.weight", 0, rank=1)
  text = {
    "kind": "transformer",
    "context_length": axis("positional_embedding", 0, rank=2),
    "vocab_size": axis("token_embedding.weight", 0, rank=2),
    "width": width,
    "depth": axis.count(r"^transformer\.resblocks\.(\d+)\."),
    "mlp_dim": axis("transformer.resblocks.0.mlp.c_fc.weight", 0, rank=2),
    "activation": activation,
    "norm_epsilon": 1e-5,
    "causal": True,
    "pooling": "argmax",
  }
  describe_image = _describe_vit
  if "visual.proj" not in tensors:
    describe_image = _describe_resnet
  image = describe_image(axis, activation)
  found = openai_heads.find(image, text, told=heads, report=report, name=name)
  if image["kind"] == "vit":
    image["heads"] = found[0]
  text["heads"] = found[1]
  report.infer("image.kind", image["kind"], "shape")
  report.infer("image.image_size", image["image_size"], "shape")
  report.infer("text.pooling", "argmax", "format")
  report.infer("norm_epsilon", 1e-5, "format")
  report.infer("preprocessing and tokenizer", "OpenAI's", "format")
  embed_dim = axis("text_projection", 1, rank=2)
  return variants.spec({"embed_dim": embed_dim, "image": image, "text": text})


def _describe_vit(axis: axes.Axes, activation: str) -> dict[str, Any]:
  width = axis("visual.conv1.weight", 0, rank=4)
  patch_size = axis("visual.conv1.weight", 3, rank=4)
  positions = axis("visual.positional_embedding", 0, rank=2)
  grid = axis.square(positions - 1, "visual.positional_embedding")
  return {
    "kind": "vit",
    "image_size": patch_size * grid,
    "patch_size": patch_size,
    "width": width,
    "depth": axis.count(r"^visual\.transformer\.resblocks\.(\d+)\."),
    "mlp_dim": axis(
      "visual.transformer.resblocks.0.mlp.c_fc.weight", 0, rank=2
    ),
    "activation": activation,
    "norm_epsilon": 1e-5,
    "pooling": "class",
    "class_token": True,
    "pre_norm": True,
    "patch_bias": False,
  }


def _describe_resnet(axis: axes.Axes, activation: str) -> dict[str, Any]:
  del activation  # ReLU.
  positions = axis("visual.attnpool.positional_embedding", 0, rank=2)
  grid = axis.square(positions - 1, "visual.attnpool.positional_embedding")
  stages = range(1, axis.count(r"^visual\.layer(\d+)\.") + 1)
  return {
    "kind": "resnet",
    # The stem and each stage but the first halve, the stem twice.
    "image_size": grid * 2 ** (len(stages) + 1),
    "width": axis("visual.layer1.0.conv1.weight", 0, rank=4),
    "depths": [
      axis.count(rf"^visual\.layer{stage}\.(\d+)\.") for stage in stages
    ],
  }


def write(
  model: portable.Portable, destination: pathlib.Path, options: portable.Options
) -> None:
  """Writes a state dict that `clip.model.build_model` takes."""
  del options
  portable.refuse(NAME, refusals(model.spec))
  model.report.warnings += openai_export.deviations(model.spec)
  torch_zip.write(destination, state_dict(model))


def state_dict(model: portable.Portable) -> dict[str, Tensor]:
  """Returns the tensors under OpenAI's names, running counts included."""
  tensors = engine.to_theirs(
    openai_names.NAMES.entries(model.spec), model.leaves
  )
  kept = dict(model.extras) if model.source.get("format") == NAME else {}
  for key, value in _scalars(model.spec).items():
    if key in kept:  # The model may have been resized since.
      array = np.full(kept[key].shape, value, kept[key].dtype)
      kept[key] = Tensor.from_array(array)
  for key in list(tensors):
    if key.endswith("running_var"):  # Torch's strict loading wants a count.
      count = key.replace("running_var", "num_batches_tracked")
      tensors[count] = Tensor.from_array(np.zeros((), np.int64))
  return {**tensors, **kept}
