"""Golden outputs of small timm towers, and what timm's names stand for.

    python tools/golden/timm_models.py

writes tests/golden/timm.npz (pooled features in float64) and
tests/golden/timm_names.json (the parts of each Vision Transformer by name). It
needs what tests/oracles.txt lists.
"""

import importlib.util
import json
import pathlib
import warnings

import numpy as np

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parents[1] / "tests" / "golden"
FEATURES = GOLDEN / "timm.npz"
NAMES = GOLDEN / "timm_names.json"
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}
_ACTIVATIONS |= {"QuickGELU": "quick_gelu"}
_POOLINGS = {"token": "class", "avg": "gap", "map": "map"}


def open_clip_models():
  """Returns the module that makes small models, loaded by its path."""
  path = HERE / "open_clip_models.py"
  spec = importlib.util.spec_from_file_location("open_clip_models", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def images(size: int) -> np.ndarray:
  """Returns normalised images (2, size, size, 3)."""
  return np.random.RandomState(6).standard_normal((2, size, size, 3))


def _features(timm, shared):
  import torch

  found = {}
  for name in shared.TIMM:
    model = timm.create_model(name, num_classes=6)
    state = {
      key: torch.from_numpy(shared.fill(key, tuple(value.shape)))
      for key, value in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True)
    model.reset_classifier(0)
    model = model.double().eval()
    size = model.patch_embed.img_size[0]
    pixels = torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
      found[f"{name}/features"] = model(pixels).numpy()
    shapes = {key: list(value.shape) for key, value in state.items()}
    found[f"{name}/shapes"] = np.array(json.dumps(shapes))
  return found


def _parts(model) -> dict | None:
  """Returns what a tower is made of; None if it has other parts."""
  from torch import nn

  block, patches = model.blocks[0], model.patch_embed
  kinds = (type(model), type(block), type(patches))
  wanted = ("VisionTransformer", "Block", "PatchEmbed")
  if tuple(kind.__name__ for kind in kinds) != wanted:
    return None
  plain = (
    isinstance(block.ls1, nn.Identity)
    and block.attn.qkv.bias is not None
    and isinstance(block.attn.q_norm, nn.Identity)
    and type(block.mlp).__name__ == "Mlp"
    and type(block.norm1).__name__ == "LayerNorm"
    and model.pos_embed is not None
    and not model.pool_include_prefix
  )
  if not plain:
    return None
  after = not isinstance(model.fc_norm, nn.Identity)
  last = model.fc_norm if after else model.norm
  if isinstance(last, nn.Identity) or last.eps != block.norm1.eps:
    return None
  size, patch_size = patches.img_size[0], patches.patch_size[0]
  # Registers with positions are no tower of ours.
  if model.num_reg_tokens and not model.no_embed_class:
    return None
  return {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch_size,
    "width": model.embed_dim,
    "depth": len(model.blocks),
    "heads": block.attn.num_heads,
    "mlp_dim": block.mlp.fc1.out_features,
    "drop_edge": size % patch_size != 0,
    "norm_epsilon": block.norm1.eps,
    "activation": _ACTIVATIONS[type(block.mlp.act).__name__],
    "pooling": _POOLINGS[model.global_pool],
    "norm_after_pool": after,
    "class_token": model.has_class_token,
    "class_position": model.has_class_token and not model.no_embed_class,
    "registers": model.num_reg_tokens,
    "pre_norm": not isinstance(model.norm_pre, nn.Identity),
    "patch_bias": patches.proj.bias is not None,
  }


def _names(timm, shared):
  import torch

  found = {}
  names = timm.list_models("*vit*", module="vision_transformer")
  for name in set(names) - set(shared.TIMM):
    with torch.device("meta"):
      found[name] = _parts(timm.create_model(name, weight_init="skip"))
  return found


def main():
  """Writes both files."""
  shared = open_clip_models()
  _, timm = shared.import_libraries()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    np.savez_compressed(FEATURES, **_features(timm, shared))
    names = _names(timm, shared)
  lines = [f"{json.dumps(k)}: {json.dumps(names[k])}" for k in sorted(names)]
  NAMES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
  for path in (FEATURES, NAMES):
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
