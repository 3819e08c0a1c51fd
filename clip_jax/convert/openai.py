"""OpenAI's `.pt`: a TorchScript archive or a state dict in, a state dict out.

The description comes from the tensors' shapes by the rules of OpenAI's own
`build_model`. A state dict does not say which activation it was trained with;
an archive does, by the constant of its QuickGELU.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import axes, containers, engine, openai_entries, portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.containers import torch_zip
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

NAME = "openai"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_QUICK_GELU = 1.702
_SCALARS = ("input_resolution", "context_length", "vocab_size")
IGNORED = (
  r"^(input_resolution|context_length|vocab_size)$",
  r"(^|\.)num_batches_tracked$",
  r"(^|\.)attn_mask$",
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` looks like a torch file on its own."""
  return path.is_file() and path.suffix in SUFFIXES


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads an archive or a state dict.

  Raises:
    UserError: the file is damaged, or holds another model.
    AmbiguousError: nothing says which activation the towers have.
  """
  archive = torch_zip.read(path)
  report = report_lib.Report(NAME)
  names = archive.tensors
  if "visual.conv1.weight" not in names or "text_projection" not in names:
    raise errors.UserError(
      f"{path} holds no model under OpenAI's names: it lacks "
      "visual.conv1.weight or text_projection; it has "
      f"{', '.join(list(names)[:5])}, … . Give the directory that the "
      "checkpoint came in, with its config."
    )
  activation = _activation(path, archive, options, report)
  spec = describe(names, activation=activation, report=report, name=str(path))
  _cross_check(archive, spec, path)
  leaves, extras = engine.to_ours(
    openai_entries.entries(spec),
    names,
    spec,
    report=report,
    name=str(path),
    ignored=IGNORED,
  )
  return portable.Portable(
    spec=spec,
    leaves=leaves,
    report=report,
    extras=extras,
    source={
      "format": NAME,
      "dialect": {"torchscript": archive.torchscript},
      "files": portable.digests([path]),
    },
  )


def _activation(path, archive, options, report) -> str:
  if options.activation:
    return report.infer("activation", options.activation, "flag")
  if archive.torchscript and any(
    math.prod(value.shape) == 1
    and math.isclose(float(value.read()), _QUICK_GELU, rel_tol=1e-3)
    for value in archive.constants.values()
  ):
    return report.infer("activation", "quick_gelu", "archive")
  raise errors.AmbiguousError(
    f"{path} does not say which activation its towers have: the names are "
    "OpenAI's, but models with QuickGELU (OpenAI's own, DFN, MetaCLIP) share "
    "them with models with GELU (LAION, DataComp). Give --activation "
    "quick_gelu or --activation gelu."
  )


def _cross_check(archive, spec, path) -> None:
  """Compares the scalars that an archive carries with what shapes say."""
  wanted = (
    spec["image"]["image_size"],
    spec["text"]["context_length"],
    spec["text"]["vocab_size"],
  )
  for name, want in zip(_SCALARS, wanted, strict=True):
    if name in archive.tensors:
      got = np.ravel(archive.tensors[name].read())
      if got.size != 1 or int(got[0]) != want:
        raise containers.DamagedError(
          f"{path} says {name}={got.tolist()}, but its tensors have {want}; "
          "download it again."
        )


def describe(
  tensors: Mapping[str, Tensor],
  *,
  activation: str,
  report: report_lib.Report,
  name: str,
) -> dict[str, Any]:
  """Returns the description that the tensors' shapes imply (`build_model`)."""
  axis = axes.Axes({key: tensor.shape for key, tensor in tensors.items()}, name)
  width = axis("ln_final.weight", 0, rank=1)
  text = {
    "kind": "transformer",
    "context_length": axis("positional_embedding", 0, rank=2),
    "vocab_size": axis("token_embedding.weight", 0, rank=2),
    "width": width,
    "depth": axis.count(r"^transformer\.resblocks\.(\d+)\."),
    "heads": axis.heads(width, "text"),
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
  report.infer("image.kind", image["kind"], "shape")
  report.infer("image.image_size", image["image_size"], "shape")
  report.infer("text.heads", text["heads"], "format")
  report.infer("text.pooling", "argmax", "format")
  report.infer("norm_epsilon", 1e-5, "format")
  report.infer("preprocessing and tokenizer", "OpenAI's", "format")
  embed_dim = axis("text_projection", 1, rank=2)
  return variants.resolve(
    {"embed_dim": embed_dim, "image": image, "text": text}
  )


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
    "heads": axis.heads(width, "image"),
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


# What OpenAI's `build_model` takes for granted, by field.
_FIXED = {
  "image": {
    "vit": {
      "activation": "quick_gelu",
      "norm_epsilon": 1e-5,
      "pooling": "class",
      "class_token": True,
      "class_position": True,
      "pre_norm": True,
      "patch_bias": False,
      "registers": 0,
      "drop_edge": False,
    },
    "resnet": {},
  },
  "text": {
    "transformer": {
      "activation": "quick_gelu",
      "norm_epsilon": 1e-5,
      "causal": True,
      "pooling": "argmax",
    },
  },
}


def _read_at_largest(description: dict[str, Any]) -> dict[str, Any]:
  """Returns a tower with pooling="argmax" where its end token's id says so.

  If the end token has the last id of the vocabulary, then its first position
  is that of the first largest id, in every row that has one.
  """
  if description.get("pooling") != "eos":
    return description
  if description["eos_id"] != description["vocab_size"] - 1:
    return description
  return {**description, "pooling": "argmax", "eos_id": None}


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description OpenAI's `build_model` cannot be told."""
  problems = []
  for tower, kinds in _FIXED.items():
    description = _read_at_largest(spec[tower])
    if description["kind"] not in kinds:
      problems.append(f"{tower}.kind={description['kind']!r}")
      continue
    problems += [
      f"{tower}.{field}={description[field]!r} (it has {want!r})"
      for field, want in kinds[description["kind"]].items()
      if description[field] != want
    ]
    heads, width = description.get("heads"), description["width"]
    if heads is not None and width != heads * axes.HEAD_DIM:
      problems.append(
        f"{tower}.heads={heads} (it has one for {axes.HEAD_DIM} of the width, "
        f"{width})"
      )
    mlp_dim = description.get("mlp_dim")
    if mlp_dim not in (None, 4 * width):
      problems.append(f"{tower}.mlp_dim={mlp_dim} (it has {4 * width})")
  image = spec["image"]
  if image["kind"] == "resnet" and len(image["depths"]) != 4:
    problems.append(f"image.depths={image['depths']} (it has four stages)")
  return problems + shared_refusals(spec)


def shared_refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what no format with OpenAI's two-tower head can hold."""
  linear = {
    "text_projection": "linear",
    "image_projection": (
      "none" if spec["image"]["kind"] == "resnet" else "linear"
    ),
    "embed_norm": "l2",
    "init_logit_bias": None,
  }
  return [
    f"{field}={spec[field]!r} (it has {want!r})"
    for field, want in linear.items()
    if spec[field] != want
  ]


def write(
  model: portable.Portable, destination: pathlib.Path, options: portable.Options
) -> None:
  """Writes a state dict that `clip.model.build_model` takes."""
  del options
  portable.refuse(NAME, refusals(model.spec))
  torch_zip.write(destination, state_dict(model))


def state_dict(model: portable.Portable) -> dict[str, Tensor]:
  """Returns the tensors under OpenAI's names, running counts included."""
  tensors = engine.to_theirs(openai_entries.entries(model.spec), model.leaves)
  kept = model.extras if model.source.get("format") == NAME else {}
  for key in list(tensors):
    if key.endswith("running_var"):  # Torch's strict loading wants a count.
      count = key.replace("running_var", "num_batches_tracked")
      tensors[count] = Tensor.from_array(np.zeros((), np.int64))
  return {**tensors, **kept}
