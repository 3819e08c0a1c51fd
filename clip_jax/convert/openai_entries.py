"""Where each tensor under OpenAI's names goes.

OpenCLIP has the same names, with prefixes, and timm some of their parts.
"""

from typing import Any

from clip_jax.convert import engine, transforms
from clip_jax.convert.engine import Entry, Slot
from clip_jax.models import paths, resnet


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
      path = paths.block(stage, block + 1)
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
