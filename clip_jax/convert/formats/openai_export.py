"""What OpenAI's format cannot say: refused, or told as a warning.

`clip.load` takes weights alone. Images are prepared and texts are cut as
OpenAI's code does it, whatever the model was trained with.
"""

from typing import Any

from clip_jax import tokenizer
from clip_jax.convert import axes, portable
from clip_jax.models import resnet, variants

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


# Of `clip.load`'s transform and of `clip.tokenize`.
_PREPROCESSING = (
  "image_mean",
  "image_std",
  "interpolation",
  "resize",
  "crop_fraction",
)
_TOKENIZER = {
  "kind": "clip_bpe",
  "start_id": tokenizer.START_ID,
  "end_id": tokenizer.END_ID,
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
  return problems + _head_refusals(spec) + _use_refusals(spec)


def _head_refusals(spec: dict[str, Any]) -> list[str]:
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


def _use_refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what `clip.load` and `clip.tokenize` would do otherwise."""
  problems = []
  for field in _PREPROCESSING:
    want, got = variants.DEFAULTS[field], spec[field]
    if _plain(got) != _plain(want):
      problems.append(f"{field}={got!r} (it has {want!r})")
  for field, want in _TOKENIZER.items():
    got = spec["tokenizer"].get(field, want)
    if got != want:
      problems.append(f"tokenizer.{field}={got!r} (it has {want!r})")
  pad_id = spec["tokenizer"].get("pad_id", 0)
  if pad_id and not _unseen_padding(spec["text"]):
    problems.append(f"tokenizer.pad_id={pad_id} (it has 0)")
  return problems


def _unseen_padding(text: dict[str, Any]) -> bool:
  """Whether nothing after the end token reaches the embedding."""
  return text.get("causal", False) and text["pooling"] in ("argmax", "eos")


def told(spec: dict[str, Any]) -> portable.Options:
  """Returns what a reader must be told of a state dict that was written."""
  image, text = spec["image"], spec["text"]
  image_heads = image.get("heads")
  if image["kind"] == "resnet":
    image_heads = resnet.pool_heads(image["width"], len(image["depths"]))
  return portable.Options(
    activation=text["activation"], heads=(image_heads, text["heads"])
  )


def _plain(value: Any) -> Any:
  return [float(x) for x in value] if isinstance(value, list | tuple) else value


def deviations(spec: dict[str, Any]) -> list[str]:
  """Returns where OpenAI's code does nearly the same, by our fields."""
  warnings = [
    f"{field}={spec[field]!r} is {variants.DEFAULTS[field]!r} in OpenAI's "
    "code, which differs slightly; the weights are the same."
    for field in ("antialias", "crop_rounding", "convert_rgb")
    if spec[field] != variants.DEFAULTS[field]
  ]
  cleaning = spec["tokenizer"].get("cleaning", "clip")
  if cleaning != "clip":
    warnings.append(
      f"tokenizer.cleaning={cleaning!r} is 'clip' in OpenAI's code: some texts "
      "get other ids."
    )
  if pad_id := spec["tokenizer"].get("pad_id", 0):
    warnings.append(
      f"tokenizer.pad_id={pad_id} is 0 in OpenAI's code; no embedding depends "
      "on what follows the end token."
    )
  return warnings
