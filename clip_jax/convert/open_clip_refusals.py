"""What OpenCLIP cannot be told of a model."""

from typing import Any

from clip_jax.convert import open_clip_berts, open_clip_towers, timm_vit

TIMM_PROJECTIONS = {
  "linear": {"timm_proj": "linear"},
  "linear_bias": {"timm_proj": "linear", "timm_proj_bias": True},
  "none": {"timm_proj": "none"},
}
# Differences below what float32 can show.
_NORMS = ("l2", "l2_plus_1e-8")


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description OpenCLIP cannot be told."""
  image, text = spec["image"], spec["text"]
  problems = []
  native = image_problems(spec)
  timm = find_timm(spec)
  if native and timm is None:
    problems += native + _timm_problems(spec)
  problems += _text_problems(spec)
  acts = [] if native else [image.get("activation")]
  acts += [text.get("activation")] if text["kind"] == "transformer" else []
  acts = [act for act in acts if act is not None]
  if "quick_gelu" in acts and set(acts) != {"quick_gelu"}:
    problems.append(
      f"image.activation={image['activation']!r} with text.activation="
      f"{text['activation']!r} (quick_gelu is of both towers or of none)"
    )
  problems += _tokenizer_problems(spec)
  if spec["embed_norm"] not in _NORMS:
    problems.append(f"embed_norm={spec['embed_norm']!r} (it has 'l2')")
  if spec["crop_fraction"] != 1:
    problems.append(f"crop_fraction={spec['crop_fraction']} (it has 1)")
  return problems


def image_problems(spec) -> list[str]:
  """Returns what OpenCLIP's own image towers lack."""
  image = spec["image"]
  if image["kind"] == "resnet":
    wanted = {}
    problems = []
    if len(image["depths"]) != 4:
      problems.append(
        f"image.depths={list(image['depths'])} (it has four stages)"
      )
    if image["image_size"] % 32:
      problems.append(f"image.image_size={image['image_size']} (of 32 times)")
    projection = "none"
  else:
    wanted = {
      "class_token": True,
      "class_position": True,
      "registers": 0,
      "patch_bias": False,
    }
    problems = [] if image["pooling"] != "map" else ["image.pooling='map'"]
    projection = "linear"
  problems += [
    f"image.{field}={image[field]!r} (it has {want!r})"
    for field, want in wanted.items()
    if image[field] != want
  ]
  if spec["image_projection"] != projection:
    problems.append(f"image_projection={spec['image_projection']!r}")
  return problems


def _timm_problems(spec) -> list[str]:
  """Returns what keeps an image tower from being one of timm's."""
  if spec["image"]["kind"] != "vit":
    return []
  near = timm_vit.nearest(spec["image"])
  if near is None:
    return ["timm has no image tower of these sizes either"]
  name, other = near
  return [
    f"image.{field}={spec['image'][field]!r} (timm's {name} has {value!r})"
    for field, value in other.items()
  ]


def find_timm(spec) -> tuple[str, str] | None:
  """Returns the name and the pooling of timm's tower that the image's is."""
  projection = spec["image_projection"]
  if spec["image"]["kind"] != "vit" or projection not in TIMM_PROJECTIONS:
    return None
  return timm_vit.find(spec["image"], made_so=projection == "none")


def _text_problems(spec) -> list[str]:
  text, projection = spec["text"], spec["text_projection"]
  if text["kind"] == "transformer":
    problems = []
    if text["pooling"] not in open_clip_towers.TEXT_POOLINGS.values():
      problems.append(f"text.pooling={text['pooling']!r}")
    allowed = ("linear", "linear_bias", "none")
  elif text["kind"] == "bert":
    problems, allowed = _bert_problems(text), ("linear", "mlp", "none")
    # Without a bias, the norm after the projection undoes what it does.
    if text["normalize"] and projection == "mlp":
      problems.append("text.normalize=True before text_projection='mlp'")
  else:
    return [f"text.kind={text['kind']!r}"]
  if projection not in allowed:
    problems.append(
      f"text_projection={projection!r} (a {text['kind']} has one of "
      f"{', '.join(allowed)})"
    )
  return problems


def _bert_problems(text) -> list[str]:
  """Returns why a BERT is none that open_clip can fetch by its name."""
  if open_clip_berts.find(text):
    return []
  wanted = []
  for name in open_clip_berts.BERTS:
    other = {
      field: value
      for field, value in open_clip_berts.published(name).items()
      if text[field] != value
    }
    wanted.append((len(other), name, other))
  _, name, other = min(wanted, key=lambda one: one[:2])
  sizes = ", ".join(
    f"text.{field}={text[field]!r} (not {value!r})"
    for field, value in other.items()
  )
  return [
    f"{sizes}: a BERT there is one of {len(open_clip_berts.BERTS)} published "
    f"ones, of which {name} is the nearest"
  ]


def _tokenizer_problems(spec) -> list[str]:
  cuts, text = spec["tokenizer"], spec["text"]
  if cuts["kind"] != "clip_bpe":
    return []
  pad_id = cuts.get("pad_id", 0)
  unseen = text["kind"] == "transformer" and text["causal"]
  if pad_id and not (unseen and text["pooling"] in ("argmax", "eos")):
    return [f"tokenizer.pad_id={pad_id} (it has 0)"]
  return []
