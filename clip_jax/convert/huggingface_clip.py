"""HuggingFace's CLIPModel (and MetaCLIP 2): description, names, config."""

import math
from typing import Any

from clip_jax.convert import engine, portable, transforms
from clip_jax.convert import huggingface_config as config_lib
from clip_jax.convert import huggingface_towers as towers
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import Entry, Slot

# Configs from before transformers 4.31 name this end token, which no tokenizer
# gives; CLIPTextModel then takes the largest id, and MetaClip2TextModel does
# not (transformers#24773, #39821).
LEGACY_END_ID = 2
VOCAB_SIZE = 49408

_FIXED = {
  "image": {
    "kind": "vit",
    "pooling": "class",
    "class_token": True,
    "class_position": True,
    "registers": 0,
    "pre_norm": True,
    "patch_bias": False,
    "activation": tuple(towers.HIDDEN_ACTS),
  },
  "text": {
    "kind": "transformer",
    "causal": True,
    "pooling": ("argmax", "eos"),
    "activation": tuple(towers.HIDDEN_ACTS),
  },
  "": {
    "image_projection": "linear",
    "text_projection": "linear",
    "embed_norm": "l2",
    "init_logit_bias": None,
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
    found["image"] = towers.describe_image(
      config.vision,
      towers.describe_grid(config.vision, report),
      pooling="class",
      clip=True,
      activation=options.activation,
      report=report,
    )
  if config.tower != "image":
    found["text"] = _describe_text(config, report, options)
  if config.tower:
    return found
  initial = config.root.number("logit_scale_init_value")
  if abs(initial) > 80:  # Float32 ends at e^88.
    raise config.root.wrong(
      "logit_scale_init_value", initial, "the logarithm of a scale"
    )
  return found | {
    "embed_dim": config.root.integer("projection_dim"),
    "image_projection": "linear",
    "text_projection": "linear",
    "embed_norm": report.infer("embed_norm", "l2", "format"),
    "init_logit_scale": math.exp(initial),
    "init_logit_bias": None,
    # What training keeps to; the model itself has no bound.
    "max_logit_scale": report.infer("max_logit_scale", 100.0, "format"),
  }


def _describe_text(config, report, options) -> dict[str, Any]:
  section = config.text
  end_id = section.get("eos_token_id")
  if type(end_id) is not int or not 0 <= end_id <= config_lib.MAX_INTEGER:
    raise section.wrong("eos_token_id", end_id, "the id of one token")
  legacy = config.family == "clip" and end_id == LEGACY_END_ID
  section.get("eos_token_id", "text.pooling")
  pooling = "argmax" if legacy else "eos"
  report.inferred["text.pooling"]["value"] = (
    pooling if legacy else f"eos, first id {end_id}"
  )
  return {
    "kind": "transformer",
    "context_length": section.integer("max_position_embeddings"),
    "vocab_size": section.integer("vocab_size"),
    **towers.describe(
      section, "text", activation=options.activation, report=report
    ),
    "causal": report.infer("text.causal", True, "format"),
    "pooling": pooling,
    "eos_id": None if legacy else end_id,
  }


def entries(spec: dict[str, Any], dialect: dict[str, Any]) -> list[Entry]:
  """Returns where each tensor goes.

  Args:
    spec: of both towers or of one.
    dialect: of a tower alone, "prefix": what its names start with.
  """
  parts = engine.towers(spec)
  found = []
  if len(parts) == 2:
    found = [Entry("logit_scale", (Slot("params/log_scale"),))]
  if "text" in parts:
    prefix = dialect.get("prefix", "text_model.")
    found += towers.text_entries(prefix, spec["text"])
  if "image" in parts:
    found += _image_entries(
      dialect.get("prefix", "vision_model."), spec["image"]
    )
  if len(parts) == 2:
    found += [
      Entry(f"{theirs}.weight", (Slot(f"params/{ours}/kernel"),), kind)
      for theirs, ours, kind in (
        ("visual_projection", "image_projection", transforms.LINEAR),
        ("text_projection", "text_projection", transforms.LINEAR),
      )
    ]
  return found


def _image_entries(prefix: str, description: dict[str, Any]) -> list[Entry]:
  image, embeddings = "params/image", f"{prefix}embeddings."
  return [
    Entry(f"{embeddings}class_embedding", (Slot(f"{image}/class_embedding"),)),
    Entry(
      f"{embeddings}patch_embedding.weight",
      (Slot(f"{image}/patch_kernel"),),
      transforms.CONV,
    ),
    Entry(
      f"{embeddings}position_embedding.weight",
      (Slot(f"{image}/position_embedding"),),
    ),
    *towers.norm(f"{prefix}pre_layrnorm", f"{image}/ln_pre"),  # Their spelling.
    *towers.block_entries(f"{prefix}encoder.layers.", "image", description),
    *towers.norm(f"{prefix}post_layernorm", f"{image}/ln_post"),
  ]


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description a CLIPModel cannot be told."""
  return towers.refusals(spec, _FIXED)


def config(spec: dict[str, Any], dialect: dict[str, Any]) -> dict[str, Any]:
  """Returns a config.json that describes both towers."""
  del dialect
  text, image = spec["text"], spec["image"]
  end_id = _end_id(text)
  # Only MetaCLIP 2 means 2 by 2.
  meta = text["pooling"] == "eos" and end_id == LEGACY_END_ID
  family = "metaclip_2" if meta else "clip"
  embed_dim = spec["embed_dim"]
  special = {"bos_token_id": 0, "pad_token_id": 1}
  if end_id == VOCAB_SIZE - 1:
    special = {"bos_token_id": end_id - 1, "pad_token_id": end_id}
  return {
    "architectures": ["MetaClip2Model" if meta else "CLIPModel"],
    "model_type": family,
    "projection_dim": embed_dim,
    "logit_scale_init_value": math.log(spec["init_logit_scale"]),
    "text_config": {
      "model_type": f"{family}_text_model",
      **towers.config(text),
      "vocab_size": text["vocab_size"],
      "max_position_embeddings": text["context_length"],
      "projection_dim": embed_dim,
      **special,
      "eos_token_id": end_id,
    },
    "vision_config": {
      "model_type": f"{family}_vision_model",
      **towers.config(image),
      "image_size": image["image_size"],
      "patch_size": image["patch_size"],
      "num_channels": 3,
      "projection_dim": embed_dim,
    },
  }


def _end_id(text: dict[str, Any]) -> int:
  if text["pooling"] == "eos":
    return text["eos_id"]
  # The end token has the largest id of CLIP's vocabulary. Of another one no id
  # is known to be the end, and the legacy id says "the largest".
  full = text["vocab_size"] == VOCAB_SIZE
  return VOCAB_SIZE - 1 if full else LEGACY_END_ID
