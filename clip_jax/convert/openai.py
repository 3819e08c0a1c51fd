"""OpenAI's `.pt`: a TorchScript archive or a state dict in, a state dict out.

The description comes from the tensors' shapes by the rules of OpenAI's own
`build_model`. A state dict does not say which activation it was trained with;
an archive does, by the constant of its QuickGELU.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import containers, engine, portable, transforms
from clip_jax.convert import report as report_lib
from clip_jax.convert.containers import torch_zip
from clip_jax.convert.engine import Entry, Slot
from clip_jax.convert.tensor import Tensor
from clip_jax.models import resnet, variants

NAME = "openai"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
HEAD_DIM = 64  # Of both towers: OpenAI's rule.
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
    entries(spec),
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
  axis = Axes({key: tensor.shape for key, tensor in tensors.items()}, name)
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


class Axes:
  """Sizes of a checkpoint's axes, by tensor; an absent one is an error."""

  def __init__(self, shapes: Mapping[str, tuple[int, ...]], name: str):
    self._shapes = shapes
    self._name = name

  def __call__(self, key: str, index: int, *, rank: int) -> int:
    """Returns axis `index` of the tensor `key`, which must have `rank`."""
    shape = self._shapes.get(key)
    if shape is None or len(shape) != rank or min(shape) < 1:
      got = "nothing" if shape is None else list(shape)
      raise errors.UserError(
        f"{self._name}: {key} must be an array with {rank} axes, got {got}."
      )
    return shape[index]

  def count(self, pattern: str) -> int:
    """Counts the layers that the names list by the group of `pattern`."""
    found = {m[1] for key in self._shapes if (m := re.search(pattern, key))}
    if not found:
      raise errors.UserError(
        f"{self._name} has no layer named like {pattern!r}."
      )
    return len(found)

  def heads(self, width: int, tower: str) -> int:
    """Returns OpenAI's number of heads, one for 64 of the width."""
    if width % HEAD_DIM:
      raise errors.UserError(
        f"{self._name}: the {tower} tower is {width} wide; OpenAI's have one "
        f"head for {HEAD_DIM} of the width, which does not divide it."
      )
    return width // HEAD_DIM

  def square(self, cells: int, key: str) -> int:
    """Returns the side of a square grid of `cells`."""
    side = math.isqrt(cells)
    if side * side != cells:
      raise errors.UserError(
        f"{self._name}: {key} has {cells} positions, which make no square."
      )
    return side


def _describe_vit(axis: Axes, activation: str) -> dict[str, Any]:
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


def _describe_resnet(axis: Axes, activation: str) -> dict[str, Any]:
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


def entries(spec: dict[str, Any]) -> list[Entry]:
  """Returns where each tensor under OpenAI's names goes."""
  image = {"vit": vit_entries, "resnet": resnet_entries}
  return [
    Entry("logit_scale", (Slot("params/log_scale"),)),
    *image[spec["image"]["kind"]](spec["image"]),
    *text_entries(spec["text"]),
    Entry("text_projection", (Slot("params/text_projection/kernel"),)),
  ]


def norm(name: str, *slots: Slot) -> list[Entry]:
  """Returns the two tensors of a norm; `slots` are those of scale and bias."""
  scale, bias = slots
  return [Entry(f"{name}.weight", (scale,)), Entry(f"{name}.bias", (bias,))]


def whole_norm(name: str, path: str) -> list[Entry]:
  """Returns the two tensors of the norm at `path`."""
  return norm(name, Slot(f"{path}/scale"), Slot(f"{path}/bias"))


def block_entries(prefix: str, tower: str, description: dict) -> list[Entry]:
  """Returns the entries of a tower's residual attention blocks."""
  heads = description["heads"]
  found = []
  for i in range(description["depth"]):
    name = f"{prefix}{i}."

    def slots(*paths, i=i):
      return tuple(engine.block_slot(tower, path, i) for path in paths)

    def linear(theirs, ours, *, transform, name=name, slots=slots):
      return [
        Entry(f"{name}{theirs}.weight", slots(f"{ours}/kernel"), transform),
        Entry(f"{name}{theirs}.bias", slots(f"{ours}/bias")),
      ]

    parts = [f"attention/{part}" for part in ("query", "key", "value")]
    found += [
      *norm(f"{name}ln_1", *slots("ln_1/scale", "ln_1/bias")),
      Entry(
        f"{name}attn.in_proj_weight",
        slots(*(f"{part}/kernel" for part in parts)),
        transforms.fused_linear_to_heads(heads),
      ),
      Entry(
        f"{name}attn.in_proj_bias",
        slots(*(f"{part}/bias" for part in parts)),
        transforms.fused_bias_to_heads(heads),
      ),
      *linear(
        "attn.out_proj",
        "attention/out",
        transform=transforms.heads_to_linear(heads),
      ),
      *norm(f"{name}ln_2", *slots("ln_2/scale", "ln_2/bias")),
      *linear("mlp.c_fc", "mlp/fc_in", transform=transforms.LINEAR),
      *linear("mlp.c_proj", "mlp/fc_out", transform=transforms.LINEAR),
    ]
  return found


def text_entries(description: dict, prefix: str = "") -> list[Entry]:
  """Returns the entries of the text tower without its projection."""
  text = "params/text"
  return [
    Entry(
      f"{prefix}token_embedding.weight",
      (Slot(f"{text}/token_embedding/embedding"),),
    ),
    Entry(
      f"{prefix}positional_embedding", (Slot(f"{text}/position_embedding"),)
    ),
    *block_entries(f"{prefix}transformer.resblocks.", "text", description),
    *whole_norm(f"{prefix}ln_final", f"{text}/ln_final"),
  ]


def vit_entries(description: dict) -> list[Entry]:
  """Returns the entries of the Vision Transformer and its projection."""
  image = "params/image"
  found = []
  if description["class_token"]:
    found = [
      Entry("visual.class_embedding", (Slot(f"{image}/class_embedding"),))
    ]
  found += [
    Entry(
      "visual.positional_embedding", (Slot(f"{image}/position_embedding"),)
    ),
    Entry("visual.proj", (Slot("params/image_projection/kernel"),)),
    Entry(
      "visual.conv1.weight", (Slot(f"{image}/patch_kernel"),), transforms.CONV
    ),
  ]
  if description["pre_norm"]:
    found += whole_norm("visual.ln_pre", f"{image}/ln_pre")
  return [
    *found,
    *block_entries("visual.transformer.resblocks.", "image", description),
    *whole_norm("visual.ln_post", f"{image}/ln_post"),
  ]


def _conv_norm(conv: str, norm_name: str, path: str) -> list[Entry]:
  stats = f"batch_stats/image/{path}/norm"
  params = f"params/image/{path}"
  return [
    Entry(f"{conv}.weight", (Slot(f"{params}/conv/kernel"),), transforms.CONV),
    *whole_norm(norm_name, f"{params}/norm"),
    Entry(f"{norm_name}.running_mean", (Slot(f"{stats}/mean"),)),
    Entry(f"{norm_name}.running_var", (Slot(f"{stats}/var"),)),
  ]


def resnet_entries(description: dict) -> list[Entry]:
  """Returns the entries of the ResNet with its attention pooling."""
  found = []
  for i in (1, 2, 3):
    found += _conv_norm(f"visual.conv{i}", f"visual.bn{i}", f"stem_{i}")
  for stage, depth in enumerate(description["depths"], start=1):
    for block in range(depth):
      name = f"visual.layer{stage}.{block}."
      path = f"stage_{stage}_block_{block + 1}"
      for i in (1, 2, 3):
        found += _conv_norm(
          f"{name}conv{i}", f"{name}bn{i}", f"{path}/conv_{i}"
        )
      if block == 0:  # It changes the number of channels, so it projects.
        down = f"{name}downsample."
        found += _conv_norm(f"{down}0", f"{down}1", f"{path}/downsample")
  return found + _attention_pool(description)


def _attention_pool(description: dict) -> list[Entry]:
  stages = len(description["depths"])
  features = description["width"] * resnet.EXPANSION * 2 ** (stages - 1)
  heads = features // resnet.HEAD_DIM
  pool, path = "visual.attnpool.", "params/image/attention_pool"
  found = [
    Entry(f"{pool}positional_embedding", (Slot(f"{path}/position_embedding"),))
  ]
  for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
    found += [
      Entry(
        f"{pool}{theirs}_proj.weight",
        (Slot(f"{path}/attention/{ours}/kernel"),),
        transforms.linear_to_heads(heads),
      ),
      Entry(
        f"{pool}{theirs}_proj.bias",
        (Slot(f"{path}/attention/{ours}/bias"),),
        transforms.bias_to_heads(heads),
      ),
    ]
  return [
    *found,
    Entry(
      f"{pool}c_proj.weight",
      (Slot(f"{path}/attention/out/kernel"),),
      transforms.heads_to_linear(heads),
    ),
    Entry(f"{pool}c_proj.bias", (Slot(f"{path}/attention/out/bias"),)),
  ]


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
    if heads is not None and width != heads * HEAD_DIM:
      problems.append(
        f"{tower}.heads={heads} (it has one for {HEAD_DIM} of the width, "
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
  tensors = engine.to_theirs(entries(model.spec), model.leaves)
  kept = model.extras if model.source.get("format") == NAME else {}
  for key in list(tensors):
    if key.endswith("running_var"):  # Torch's strict loading wants a count.
      count = key.replace("running_var", "num_batches_tracked")
      tensors[count] = Tensor.from_array(np.zeros((), np.int64))
  return {**tensors, **kept}
