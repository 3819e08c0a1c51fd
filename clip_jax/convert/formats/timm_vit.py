"""timm's plain Vision Transformers: what their names mean, and their tensors.

A timm checkpoint says its architecture by name; activation, epsilon, pooling
and heads follow from it and from nothing else. The table was compared with
timm 1.0.31, name by name.
"""

from typing import Any

from clip_jax import errors
from clip_jax.convert.engine.names import Names

# Width, depth, heads, MLP; "plus" is `vit_base_patch16_plus_clip_240`'s.
SIZES = {
  "tiny": (192, 12, 3, 768),
  "xsmall": (256, 10, 4, 1024),
  "small": (384, 12, 6, 1536),
  "medium": (512, 12, 8, 2048),
  "betwixt": (640, 12, 10, 2560),
  "base": (768, 12, 12, 3072),
  "plus": (896, 12, 14, 3584),
  "large": (1024, 24, 16, 4096),
  "so400m": (1152, 27, 16, 4304),
  "huge": (1280, 32, 16, 5120),
  "giant": (1408, 40, 16, 6144),
  "giantopt": (1536, 40, 16, 6144),
  "gigantic": (1664, 48, 16, 8192),
}

TOWER = """
box2    cls_token                 class_embedding  if class_token
box     reg_token                 registers  if registers
box     pos_embed                 position_embedding
conv    patch_embed.proj.weight   patch_kernel
-       patch_embed.proj.bias     patch_bias  if patch_bias
norm    norm_pre                  ln_pre  if pre_norm
stack   blocks.{i}.               blocks  timm_block
norm    norm                      ln_post  if not norm_after_pool
norm    fc_norm                   ln_post  if norm_after_pool
part    attn_pool.                map_head  timm_pool  if pooling=map
"""
BLOCK = """
norm    norm1      ln_1
qkv     attn.qkv   attention/query,key,value
out     attn.proj  attention/out
norm    norm2      ln_2
linear  mlp.fc1    mlp/fc_in
linear  mlp.fc2    mlp/fc_out
"""
POOL = """
-       latent   probe
heads   q        attention/query
kv      kv       attention/key,value
out     proj     attention/out
norm    norm     ln
linear  mlp.fc1  mlp/fc_in
linear  mlp.fc2  mlp/fc_out
"""
TABLES = {"timm": TOWER, "timm_block": BLOCK, "timm_pool": POOL}
NAMES = Names({"whole": "part  .  image  timm", **TABLES})

_PLAIN = {
  "norm_epsilon": 1e-6,
  "activation": "gelu",
  "pooling": "class",
  "norm_after_pool": False,
  "class_token": True,
  "class_position": True,
  "registers": 0,
  "pre_norm": False,
  "patch_bias": True,
}
_CLIP = {"norm_epsilon": 1e-5, "pre_norm": True, "patch_bias": False}
_NO_CLASS = {"class_token": False, "class_position": False}
# What the words after the patch size stand for.
FAMILIES = {
  "": {},
  "clip": _CLIP,
  "clip_quickgelu": _CLIP | {"activation": "quick_gelu"},
  "siglip": _NO_CLASS | {"pooling": "map"},
  "siglip_gap": _NO_CLASS | {"pooling": "gap"},
  "reg4_gap": _NO_CLASS
  | {"pooling": "gap", "norm_after_pool": True, "registers": 4},
}
# SigLIP was trained with the tanh GELU throughout; timm has it in these only.
_SIGLIP_TANH = {
  ("base", 32, 256),
  ("large", 16, 512),
  ("so400m", 16, 256),
  ("so400m", 16, 384),
  ("so400m", 16, 512),
  ("giantopt", 16, 256),
  ("giantopt", 16, 384),
}
# Family, size, patch size and image sizes.
_MODELS = (
  ("", "tiny", 16, (224, 384)),
  ("", "small", 32, (224, 384)),
  ("", "small", 16, (224, 384)),
  ("", "small", 8, (224,)),
  ("", "base", 32, (224, 384)),
  ("", "base", 16, (224, 384)),
  ("", "base", 8, (224,)),
  ("", "large", 32, (224, 384)),
  ("", "large", 16, (224, 384)),
  ("", "large", 14, (224,)),
  ("", "huge", 14, (224,)),
  ("", "giant", 14, (224,)),
  ("", "gigantic", 14, (224,)),
  ("clip", "xsmall", 16, (224,)),
  ("clip", "medium", 32, (224,)),
  ("clip", "medium", 16, (224,)),
  ("clip", "betwixt", 32, (224,)),
  ("clip", "base", 32, (224, 256, 384, 448)),
  ("clip", "base", 16, (224, 384)),
  ("clip", "large", 14, (224, 336)),
  ("clip", "huge", 14, (224, 336, 378)),
  ("clip", "giant", 14, (224,)),
  ("clip", "gigantic", 14, (224, 378)),
  ("clip_quickgelu", "base", 32, (224,)),
  ("clip_quickgelu", "base", 16, (224,)),
  ("clip_quickgelu", "large", 14, (224, 336)),
  ("clip_quickgelu", "huge", 14, (224, 378)),
  ("clip_quickgelu", "gigantic", 14, (224,)),
  *(
    (family, size, patch_size, image_sizes + more)
    for family, extra in (("siglip", ()), ("siglip_gap", (448, 896)))
    for size, patch_size, image_sizes, more in (
      ("base", 32, (256,), ()),
      ("base", 16, (224, 256, 384, 512), ()),
      ("large", 16, (256, 384, 512), ()),
      ("so400m", 14, (224, 378, 384), extra),
      ("so400m", 16, (256, 384, 512), ()),
      ("giantopt", 16, (256, 384), ()),
    )
  ),
  ("reg4_gap", "base", 16, (256,)),
)


def _tower(size, patch_size, image_size, **facts) -> dict[str, Any]:
  width, depth, heads, mlp_dim = SIZES[size]
  return {
    "kind": "vit",
    "image_size": image_size,
    "patch_size": patch_size,
    "width": width,
    "depth": depth,
    "heads": heads,
    "mlp_dim": mlp_dim,
    "drop_edge": image_size % patch_size != 0,
    **_PLAIN,
    **facts,
  }


def _models() -> dict[str, dict[str, Any]]:
  found = {}
  for family, size, patch_size, image_sizes in _MODELS:
    for image_size in image_sizes:
      words = ("vit", size, f"patch{patch_size}", family, str(image_size))
      name = "_".join(word for word in words if word)
      facts = dict(FAMILIES[family])
      known = (size, patch_size, image_size)
      if family.startswith("siglip") and known in _SIGLIP_TANH:
        facts["activation"] = "gelu_tanh"
      found[name] = _tower(*known, **facts)
  found["vit_base_patch16_plus_clip_240"] = _tower("plus", 16, 240, **_CLIP)
  for size in ("small", "base", "large"):
    found[f"flexivit_{size}"] = _tower(size, 16, 240, class_position=False)
  return found


# The image tower's description by timm's name.
MODELS = _models()


def describe(name: str) -> dict[str, Any]:
  """Returns the image tower that timm makes by default under `name`.

  Raises:
    UserError: it is none of `MODELS`.
  """
  if name not in MODELS:
    raise errors.UserError(
      f"timm's architecture {name!r} is not among the plain Vision "
      "Transformers that are held exactly: models with LayerScale, relative "
      "positions, convolutional stems or other blocks are not. Nearest of "
      f"{len(MODELS)} names: {', '.join(errors.nearest(name, MODELS))}."
    )
  return dict(MODELS[name])


def pooled(
  tower: dict[str, Any], pool: str, *, made_so: bool, name: str
) -> dict[str, Any]:
  """Returns `tower` with another of timm's poolings.

  Args:
    tower: as `describe` returns it.
    pool: timm's `global_pool`.
    made_so: whether timm makes the model with it, which moves the last norm
      behind a mean, and can add attention; or sets it afterwards.
    name: timm's, for messages.

  Raises:
    UserError: timm cannot do that, or it gives no single vector.
  """
  kinds = {"token": "class", "avg": "gap", "map": "map"}
  if pool not in kinds:
    raise errors.UserError(
      f"timm's pooling {pool!r} of {name} is not held; known: "
      f"{', '.join(kinds)}."
    )
  kind = kinds[pool]
  if kind == "class" and not tower["class_token"]:
    raise errors.UserError(f"{name} has no class token to pool (got 'token').")
  if kind == "map" and tower["pooling"] != "map" and not made_so:
    raise errors.UserError(f"{name} has no attention pooling (got 'map').")
  after = tower["norm_after_pool"]
  if made_so:
    # Where the name itself fixes the norm's place, timm leaves it.
    fixed = tower["pooling"] == "gap"
    after = kind == "gap" and (after or not fixed)
  if kind != "gap" and after:
    raise errors.UserError(
      f"{name} has its norm behind the mean; the pooling {pool!r} is not held."
    )
  return {**tower, "pooling": kind, "norm_after_pool": after}


_POOLS = ("map", "token", "avg")


def _named(tower: dict[str, Any]) -> dict[str, Any]:
  """Returns a tower's fields as a name of timm's decides them."""
  return {
    **tower,
    "mlp_dim": tower["mlp_dim"] or 4 * tower["width"],
    "class_position": tower["class_token"] and tower["class_position"],
  }


def nearest(tower: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
  """Returns the name of a tower of the same sizes, and what it has otherwise.

  Returns:
    The name, and field -> its value there; None if no sizes are the same.
  """
  wanted = _named(tower)
  sizes = ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim")
  found = []
  for name, facts in MODELS.items():
    if all(facts[field] == wanted[field] for field in sizes):
      other = {k: v for k, v in facts.items() if v != wanted[k]}
      found.append((len(other), name, other))
  if not found:
    return None
  _, name, other = min(found, key=lambda one: one[:2])
  return name, other


def find(tower: dict[str, Any], *, made_so: bool) -> tuple[str, str] | None:
  """Returns timm's name and pooling for a tower, None if it has none.

  Args:
    tower: an image tower's description.
    made_so: as in `pooled`.
  """
  wanted = _named(tower)
  same = [name for name, facts in MODELS.items() if facts == wanted]
  for name in (*same, *MODELS):
    for pool in _POOLS:
      try:
        found = pooled(MODELS[name], pool, made_so=made_so, name=name)
      except errors.UserError:
        continue
      if found == wanted:
        return name, pool
  return None


def refuse_other_blocks(names, source: str) -> None:
  """Raises UserError where tensors belong to parts that are not held."""
  others = {
    ".ls1.": "LayerScale",
    ".ls2.": "LayerScale",
    ".q_norm.": "norms of queries",
    ".k_norm.": "norms of keys",
  }
  for name in names:
    for part, what in others.items():
      if part in name:
        raise errors.UserError(
          f"{source} has {what} ({name}), which no tower here has."
        )
