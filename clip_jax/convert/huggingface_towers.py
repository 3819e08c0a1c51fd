"""What HuggingFace's CLIP and SigLIP towers share: blocks and activations."""

from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, huggingface_config, transforms
from clip_jax.convert.engine import Entry, Slot

# `hidden_act` -> our activation; the first of several is the one to write.
ACTIVATIONS = {
  "quick_gelu": "quick_gelu",
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}
HIDDEN_ACTS = {ours: act for act, ours in reversed(ACTIVATIONS.items())}


def describe(
  section: huggingface_config.Section,
  tower: str,
  *,
  activation: str | None,
  report: Any,
) -> dict[str, Any]:
  """Returns the fields that both kinds of towers have.

  Args:
    section: of the config.
    tower: "image" or "text".
    activation: that a flag demands instead of the config's, or None.
    report: takes what the weights do not hold.
  """
  width = section.integer("hidden_size")
  heads = section.integer("num_attention_heads", f"{tower}.heads")
  if width % heads:
    raise errors.UserError(
      f"{section.where}: num_attention_heads={heads} must divide "
      f"hidden_size={width}."
    )
  epsilon = section.number("layer_norm_eps", f"{tower}.norm_epsilon")
  if not 0 <= epsilon < 1:
    raise section.wrong("layer_norm_eps", epsilon, "from 0 to 1")
  name = section.get("hidden_act")
  if not isinstance(name, str) or name not in ACTIVATIONS:
    raise section.wrong(
      "hidden_act", name, f"one of {', '.join(sorted(ACTIVATIONS))}"
    )
  field = f"{tower}.activation"
  section.get("hidden_act", field)
  report.inferred[field]["value"] = ACTIVATIONS[name]
  if activation not in (None, ACTIVATIONS[name]):
    report.infer(field, activation, "flag")
    report.warnings.append(
      f"--activation {activation} is not what {section.where} says: {name}."
    )
  return {
    "width": width,
    "depth": section.integer("num_hidden_layers"),
    "heads": heads,
    "mlp_dim": section.integer("intermediate_size"),
    "activation": activation or ACTIVATIONS[name],
    "norm_epsilon": epsilon,
  }


def describe_grid(
  section: huggingface_config.Section, report: Any
) -> dict[str, Any]:
  """Returns the sizes of an image tower with a strided convolution."""
  image_size = section.side("image_size", "image.image_size")
  patch_size = section.side("patch_size")
  if section.integer("num_channels") != 3:
    raise section.wrong("num_channels", section.get("num_channels"), "3")
  if image_size < patch_size:
    raise errors.UserError(
      f"{section.where}: image_size={image_size} is below "
      f"patch_size={patch_size}."
    )
  edge = image_size % patch_size
  if edge:
    report.warnings.append(
      f"image_size={image_size} is no multiple of patch_size={patch_size}: "
      f"the last {edge} rows and columns of pixels are not seen, as in the "
      "source."
    )
  return {
    "kind": "vit",
    "image_size": image_size,
    "patch_size": patch_size,
    "drop_edge": report.infer("image.drop_edge", edge > 0, "format"),
  }


def describe_image(
  section: huggingface_config.Section,
  grid: dict[str, Any],
  *,
  pooling: str,
  clip: bool,
  activation: str | None,
  report: Any,
) -> dict[str, Any]:
  """Returns an image tower: CLIP's with a class token, or SigLIP's without.

  Args:
    section: of the config.
    grid: its patches, as `describe_grid` returns them.
    pooling: of `models.layers`.
    clip: whether there are a class token and a norm before the blocks; else
      there is a bias of the patches.
    activation: that a flag demands instead of the config's, or None.
    report: takes what the weights do not hold.
  """
  return {
    **grid,
    **describe(section, "image", activation=activation, report=report),
    "pooling": report.infer("image.pooling", pooling, "format"),
    "norm_after_pool": False,
    "class_token": clip,
    "class_position": clip,
    "registers": 0,
    "pre_norm": clip,
    "patch_bias": not clip,
  }


def config(description: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a tower's config that both kinds have."""
  return {
    "hidden_size": description["width"],
    "intermediate_size": mlp_dim(description),
    "num_hidden_layers": description["depth"],
    "num_attention_heads": description["heads"],
    "hidden_act": HIDDEN_ACTS[description["activation"]],
    "layer_norm_eps": description["norm_epsilon"],
    "attention_dropout": 0.0,
  }


def mlp_dim(description: dict[str, Any]) -> int:
  """Returns the hidden width of a tower's MLPs."""
  return description["mlp_dim"] or 4 * description["width"]


def refusals(
  spec: dict[str, Any], fixed: dict[str, dict[str, Any]]
) -> list[str]:
  """Returns the fields of `spec` that are not as a format has them.

  Args:
    spec: of both towers.
    fixed: field -> value, "" for the whole model's and by tower; a tuple holds
      several allowed values.
  """
  problems = []
  kinds = {tower: fixed[tower]["kind"] for tower in ("image", "text")}
  for part, fields in fixed.items():
    described = spec[part] if part else spec
    if part and described["kind"] != kinds[part]:
      problems.append(
        f"{part}.kind={described['kind']!r} (it has {kinds[part]!r})"
      )
      continue
    for field, want in fields.items():
      allowed = want if isinstance(want, tuple) else (want,)
      if described[field] not in allowed:
        name = f"{part}.{field}" if part else field
        shown = " or ".join(map(repr, allowed))
        problems.append(f"{name}={described[field]!r} (it has {shown})")
  return problems


def linear(
  name: str, path: str, transform: transforms.Transform = transforms.LINEAR
) -> list[Entry]:
  """Returns weight and bias of a linear layer that lies outside the blocks."""
  return [
    Entry(f"{name}.weight", (Slot(f"{path}/kernel"),), transform),
    Entry(f"{name}.bias", (Slot(f"{path}/bias"),)),
  ]


def norm(name: str, path: str) -> list[Entry]:
  """Returns weight and bias of a norm that lies outside the blocks."""
  return [
    Entry(f"{name}.weight", (Slot(f"{path}/scale"),)),
    Entry(f"{name}.bias", (Slot(f"{path}/bias"),)),
  ]


def block_entries(
  prefix: str, tower: str, description: dict[str, Any]
) -> list[Entry]:
  """Returns the entries of a tower's residual attention blocks."""
  heads = description["heads"]
  to_heads = transforms.linear_to_heads(heads)
  bias_to_heads = transforms.bias_to_heads(heads)
  from_heads = transforms.heads_to_linear(heads)
  # theirs, ours, the transforms of weight and bias
  layers = (
    ("self_attn.q_proj", "attention/query", to_heads, bias_to_heads),
    ("self_attn.k_proj", "attention/key", to_heads, bias_to_heads),
    ("self_attn.v_proj", "attention/value", to_heads, bias_to_heads),
    ("self_attn.out_proj", "attention/out", from_heads, transforms.IDENTITY),
    ("mlp.fc1", "mlp/fc_in", transforms.LINEAR, transforms.IDENTITY),
    ("mlp.fc2", "mlp/fc_out", transforms.LINEAR, transforms.IDENTITY),
  )
  found = []
  for i in range(description["depth"]):
    name = f"{prefix}{i}."

    def entry(theirs, ours, transform=transforms.IDENTITY, name=name, i=i):
      slot = engine.block_slot(tower, ours, i)
      return Entry(f"{name}{theirs}", (slot,), transform)

    for theirs, ours in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
      found.append(entry(f"{theirs}.weight", f"{ours}/scale"))
      found.append(entry(f"{theirs}.bias", f"{ours}/bias"))
    for theirs, ours, weight, bias in layers:
      found.append(entry(f"{theirs}.weight", f"{ours}/kernel", weight))
      found.append(entry(f"{theirs}.bias", f"{ours}/bias", bias))
  return found


def text_entries(prefix: str, description: dict[str, Any]) -> list[Entry]:
  """Returns the entries of a text tower without its projection."""
  text = "params/text"
  return [
    Entry(
      f"{prefix}embeddings.token_embedding.weight",
      (Slot(f"{text}/token_embedding/embedding"),),
    ),
    Entry(
      f"{prefix}embeddings.position_embedding.weight",
      (Slot(f"{text}/position_embedding"),),
    ),
    *block_entries(f"{prefix}encoder.layers.", "text", description),
    *norm(f"{prefix}final_layer_norm", f"{text}/ln_final"),
  ]
