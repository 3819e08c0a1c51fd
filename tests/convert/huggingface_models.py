"""Small models of transformers, and what they compute in float64."""

import json

import numpy as np
import torch
import transformers

# Sizes that differ from each other wherever the architecture lets them.
TEXT = {
  "vocab_size": 50,
  "hidden_size": 48,
  "intermediate_size": 100,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "max_position_embeddings": 11,
  "bos_token_id": 3,
  "pad_token_id": 1,
  "eos_token_id": 49,
}
VISION = {
  "hidden_size": 64,
  "intermediate_size": 132,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
}
GRID = {"image_size": 20, "patch_size": 5}
GELU = {"hidden_act": "gelu"}
# transformers' spelling of the activation of big_vision.
TANH = {"hidden_act": "gelu_pytorch_tanh"}


def clip(text=(), vision=(), family="CLIP"):
  config = getattr(transformers, f"{family}Config")(
    text_config={**TEXT, **dict(text)},
    vision_config={**VISION, **GRID, **dict(vision)},
    projection_dim=24,
  )
  return getattr(transformers, f"{family}Model")(config)


def siglip(text=(), vision=(), family="Siglip"):
  sizes = {"num_patches": 16, "patch_size": 5} if family[-1] == "2" else GRID
  config = getattr(transformers, f"{family}Config")(
    text_config={**TEXT, "projection_size": 64, **dict(text)},
    vision_config={**VISION, **sizes, **dict(vision)},
  )
  return getattr(transformers, f"{family}Model")(config)


# Towers may differ in activation and epsilon.
MODELS = {
  "clip quick_gelu, largest id": lambda: clip({"eos_token_id": 2}),
  "clip gelu, first end id": lambda: clip(
    {**GELU, "eos_token_id": 40}, {**GELU, "layer_norm_eps": 3e-4}
  ),
  "clip mixed, edge of pixels": lambda: clip(
    {"layer_norm_eps": 2e-4}, {**GELU, "image_size": 23}
  ),
  "metaclip_2, end id 2": lambda: clip({"eos_token_id": 2}, family="MetaClip2"),
  "siglip": siglip,
  "siglip erf and edge of pixels": lambda: siglip(
    GELU, {"image_size": 22, "layer_norm_eps": 1e-4}
  ),
  "siglip2 naflex": lambda: siglip(family="Siglip2"),
}


def make(name, perturb):
  """Returns a model in float32 whose numbers hide no mistake."""
  model = perturb(MODELS[name]()).eval()
  with torch.no_grad():
    # Above CLIP's bound of 100, which transformers does not have.
    model.logit_scale.fill_(4.7)
    if hasattr(model, "logit_bias"):
      model.logit_bias.fill_(-7.25)
  return model


def inputs(model, seed=0):
  """Returns images (3, h, w, 3) and tokens (3, length)."""
  rng = np.random.default_rng(seed)
  vision = model.config.vision_config
  size = getattr(vision, "image_size", None) or 20
  images = rng.normal(size=(3, size, size, 3))
  tokens = rng.integers(4, 39, size=(3, TEXT["max_position_embeddings"]))
  end = model.config.text_config.eos_token_id
  legacy = model.config.model_type == "clip" and end == 2
  for row, at in enumerate((1, 5, tokens.shape[1] - 1)):
    tokens[row, at] = 49 if legacy else end
    tokens[row, at + 1 :] = 49 if legacy else 45  # Above the end id.
  return images, tokens


def run(model, images, tokens):
  """Returns both unit embeddings and the logits, in float64."""
  model = model.double()
  kind = model.config.model_type
  pixels = images.transpose(0, 3, 1, 2)
  more = {}
  if kind == "siglip2":
    b, side, p = len(images), images.shape[1], 5
    g = side // p
    pixels = images.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(b, g * g, p * p * 3)
    more = {
      "pixel_attention_mask": torch.ones(b, g * g, dtype=torch.int64),
      "spatial_shapes": torch.full((b, 2), g),
    }
  with torch.no_grad():
    out = model(
      pixel_values=torch.from_numpy(pixels.copy()),
      input_ids=torch.from_numpy(tokens),
      **more,
    )
  found = out.image_embeds, out.text_embeds, out.logits_per_image
  return tuple(x.numpy() for x in found)


def edit(directory, name="config.json", **changes):
  """Changes fields of a JSON file; a dict changes fields of a part."""
  path = directory / name
  data = json.loads(path.read_text()) if path.exists() else {}
  for field, value in changes.items():
    if isinstance(value, dict) and isinstance(data.get(field), dict):
      data[field] |= value
    else:
      data[field] = value
  path.write_text(json.dumps(data))
