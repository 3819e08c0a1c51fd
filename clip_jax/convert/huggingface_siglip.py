"""HuggingFace's SiglipModel, SigLIP 2 at a fixed resolution included.

A `Siglip2Model` (NaFlex) takes images of any shape as lists of patches; at the
square that its position embeddings were made for, it is a SiglipModel whose
patch embedding is a linear layer.
"""

import math
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, portable, transforms
from clip_jax.convert import huggingface_config as config_lib
from clip_jax.convert import huggingface_towers as towers
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import Entry, Slot

# What training started from (Zhai et al. 2023, section 3.2).
_INIT_LOGIT_SCALE, _INIT_LOGIT_BIAS = 10.0, -10.0

_FIXED = {
  "image": {
    "kind": "vit",
    "pooling": "map",
    "class_token": False,
    "registers": 0,
    "pre_norm": False,
    "patch_bias": True,
    "activation": tuple(towers.HIDDEN_ACTS),
  },
  "text": {
    "kind": "transformer",
    "causal": False,
    "pooling": "last",
    "activation": tuple(towers.HIDDEN_ACTS),
  },
  "": {
    "image_projection": "none",
    "text_projection": "linear_bias",
    # big_vision's adds 1e-8 to the length, which is below float32.
    "embed_norm": ("l2", "l2_plus_1e-8"),
  },
}


def describe(
  config: config_lib.Config,
  report: report_lib.Report,
  options: portable.Options,
) -> dict[str, Any]:
  """Returns the description without preprocessing and tokenizer."""
  found: dict[str, Any] = {}
  if config.tower != "text":
    found["image"] = _describe_image(config, report, options)
  if config.tower != "image":
    found["text"] = _describe_text(config.text, report, options)
  if config.tower:
    return found
  embed_dim = config.text.get("projection_size")
  if embed_dim is None:
    embed_dim = found["text"]["width"]
  else:
    embed_dim = config.text.integer("projection_size")
  if embed_dim != found["image"]["width"]:
    raise errors.UserError(
      f"{config.text.where}: projection_size={embed_dim} must be the image "
      f"tower's hidden_size, {found['image']['width']}: that tower has no "
      "projection."
    )
  return found | {
    "embed_dim": embed_dim,
    "image_projection": "none",
    "text_projection": "linear_bias",
    "embed_norm": report.infer("embed_norm", "l2", "format"),
    "init_logit_scale": _INIT_LOGIT_SCALE,
    "init_logit_bias": _INIT_LOGIT_BIAS,
    "max_logit_scale": report.infer("max_logit_scale", None, "format"),
  }


def _describe_image(config, report, options) -> dict[str, Any]:
  section = config.vision
  if not section.flag("vision_use_head"):
    raise errors.UserError(
      f"{section.where}: vision_use_head=false: this tower gives no feature of "
      "a whole image, only of patches."
    )
  naflex = config.family == "siglip2"
  grid = _naflex_grid if naflex else towers.describe_grid
  return towers.describe_image(
    section,
    grid(section, report),
    pooling="map",
    clip=False,
    activation=options.activation,
    report=report,
  )


def _naflex_grid(section, report) -> dict[str, Any]:
  patches = section.integer("num_patches")
  side = math.isqrt(patches)
  if side * side != patches:
    raise section.wrong(
      "num_patches", patches, "a square number, for a fixed resolution"
    )
  patch_size = section.side("patch_size")
  if section.integer("num_channels") != 3:
    raise section.wrong("num_channels", section.get("num_channels"), "3")
  report.warnings.append(
    f"This model takes images of any shape (NaFlex); here it is fixed to its "
    f"own grid of {side} by {side} patches, to which images are squashed."
  )
  return {
    "kind": "vit",
    "image_size": report.infer("image.image_size", side * patch_size, "format"),
    "patch_size": patch_size,
    "drop_edge": False,
  }


def _describe_text(section, report, options) -> dict[str, Any]:
  return {
    "kind": "transformer",
    "context_length": section.integer("max_position_embeddings"),
    "vocab_size": section.integer("vocab_size"),
    **towers.describe(
      section, "text", activation=options.activation, report=report
    ),
    "causal": report.infer("text.causal", False, "format"),
    "pooling": report.infer("text.pooling", "last", "format"),
    "eos_id": None,
  }


def entries(spec: dict[str, Any], dialect: dict[str, Any]) -> list[Entry]:
  """Returns where each tensor goes.

  Args:
    spec: of both towers or of one.
    dialect: "naflex", whether patches are embedded by a linear layer; of a
      tower alone, "prefix": what its names start with.
  """
  parts = engine.towers(spec)
  scalar = transforms.reshape((), (1,))
  found = []
  if len(parts) == 2:
    found = [
      Entry("logit_scale", (Slot("params/log_scale"),), scalar),
      Entry("logit_bias", (Slot("params/logit_bias"),), scalar),
    ]
  if "text" in parts:
    prefix = dialect.get("prefix", "text_model.")
    found += towers.text_entries(prefix, spec["text"])
  if len(parts) == 2:
    found += towers.linear("text_model.head", "params/text_projection")
  if "image" in parts:
    found += _image_entries(
      dialect.get("prefix", "vision_model."),
      spec["image"],
      naflex=dialect.get("naflex", False),
    )
  return found


def _linear_to_patches(patch_size: int) -> transforms.Transform:
  """[out, rows * cols * in] <-> (rows, cols, in, out)."""
  p = patch_size
  return transforms.Transform(
    lambda x: (x.T.reshape(p, p, -1, x.shape[0]),),
    lambda parts: parts[0].reshape(-1, parts[0].shape[3]).T,
  )


def _image_entries(prefix, description, *, naflex) -> list[Entry]:
  image, embeddings = "params/image", f"{prefix}embeddings."
  heads = description["heads"]
  pool, path = f"{prefix}head.", f"{image}/map_head"
  parts = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
  patches = transforms.CONV
  if naflex:
    patches = _linear_to_patches(description["patch_size"])
  return [
    Entry(
      f"{embeddings}patch_embedding.weight",
      (Slot(f"{image}/patch_kernel"),),
      patches,
    ),
    Entry(f"{embeddings}patch_embedding.bias", (Slot(f"{image}/patch_bias"),)),
    Entry(
      f"{embeddings}position_embedding.weight",
      (Slot(f"{image}/position_embedding"),),
    ),
    *towers.block_entries(f"{prefix}encoder.layers.", "image", description),
    *towers.norm(f"{prefix}post_layernorm", f"{image}/ln_post"),
    Entry(f"{pool}probe", (Slot(f"{path}/probe"),)),
    Entry(
      f"{pool}attention.in_proj_weight",
      tuple(Slot(f"{part}/kernel") for part in parts),
      transforms.fused_linear_to_heads(heads),
    ),
    Entry(
      f"{pool}attention.in_proj_bias",
      tuple(Slot(f"{part}/bias") for part in parts),
      transforms.fused_bias_to_heads(heads),
    ),
    *towers.linear(
      f"{pool}attention.out_proj",
      f"{path}/attention/out",
      transforms.heads_to_linear(heads),
    ),
    *towers.norm(f"{pool}layernorm", f"{path}/ln"),
    *towers.linear(f"{pool}mlp.fc1", f"{path}/mlp/fc_in"),
    *towers.linear(f"{pool}mlp.fc2", f"{path}/mlp/fc_out"),
  ]


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description a SiglipModel cannot be told."""
  problems = towers.refusals(spec, _FIXED)
  if spec["init_logit_bias"] is None:
    problems.append("init_logit_bias=None (it has a logit bias)")
  return problems


def config(spec: dict[str, Any], dialect: dict[str, Any]) -> dict[str, Any]:
  """Returns a config.json that describes both towers."""
  text, image = spec["text"], spec["image"]
  naflex = dialect.get("naflex", False)
  family = "siglip2" if naflex else "siglip"
  sizes = {"image_size": image["image_size"]}
  if naflex:
    grid = image["image_size"] // image["patch_size"]
    sizes = {"num_patches": grid * grid}
  # The tower knows no special token; ids that exist keep transformers quiet.
  special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
  return {
    "architectures": ["Siglip2Model" if naflex else "SiglipModel"],
    "model_type": family,
    "text_config": {
      "model_type": f"{family}_text_model",
      **towers.config(text),
      "vocab_size": text["vocab_size"],
      "max_position_embeddings": text["context_length"],
      "projection_size": spec["embed_dim"],
      **special,
    },
    "vision_config": {
      "model_type": f"{family}_vision_model",
      **towers.config(image),
      **sizes,
      "patch_size": image["patch_size"],
      "num_channels": 3,
      "vision_use_head": True,
    },
  }
