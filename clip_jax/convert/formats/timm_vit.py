"""timm's plain Vision Transformers: the meaning of their names, and tensors.

A timm checkpoint names its architecture; activation, epsilon, pooling and heads
follow from this name and are not stored otherwise. The table,
`assets/timm_vit.json`, was compared with timm 1.0.31, name by name.
"""

import importlib.resources
import json
from collections.abc import Iterable
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine.names import Names

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

_ASSET = importlib.resources.files("clip_jax") / "assets/timm_vit.json"
_PUBLISHED = json.loads(_ASSET.read_text("utf-8"))
# Width, depth, heads and MLP width, by the word for a size in a name.
SIZES: dict[str, dict[str, int]] = _PUBLISHED["sizes"]
# The meaning of other words. All SigLIP models were trained with the tanh GELU,
# but timm uses it only for some of their names.
FAMILIES: dict[str, dict[str, Any]] = {
  family: {**_PUBLISHED["families"]["plain"], **facts}
  for family, facts in _PUBLISHED["families"].items()
}
# The description of the image tower by timm's name.
MODELS: dict[str, dict[str, Any]] = {
  name: {
    "kind": "vit",
    "image_size": image_size,
    "patch_size": patch_size,
    **SIZES[size],
    "drop_edge": image_size % patch_size != 0,
    **FAMILIES[family],
  }
  for name, (family, size, patch_size, image_size) in (
    _PUBLISHED["models"].items()
  )
}


def describe(name: str) -> dict[str, Any]:
  """Returns the image tower that timm makes by default under `name`.

  Raises:
    UserError: `name` is not one of `MODELS`.
  """
  if name not in MODELS:
    raise errors.UserError(
      f"timm's architecture {name!r} is not among the plain Vision "
      "Transformers that are supported: models with LayerScale, relative "
      "positions, convolutional stems or other blocks are not. Nearest of "
      f"{len(MODELS)} names: {', '.join(errors.nearest(name, MODELS))}."
    )
  return dict(MODELS[name])


# timm's `global_pool` -> our pooling.
_POOLS = {"map": "map", "token": "class", "avg": "gap"}


def pooled(
  tower: dict[str, Any], pool: str, *, at_creation: bool, name: str
) -> dict[str, Any]:
  """Returns `tower` with another of timm's poolings.

  Args:
    tower: the result of `describe`.
    pool: timm's `global_pool`.
    at_creation: whether timm creates the model with this pooling, which moves
      the last norm after a mean and can add attention; False if it is set
      later.
    name: timm's name, for messages.

  Raises:
    UserError: timm does not support it, or it gives no single vector.
  """
  if pool not in _POOLS:
    raise errors.UserError(
      f"timm's pooling {pool!r} of {name} is not supported; known: "
      f"{', '.join(_POOLS)}."
    )
  kind = _POOLS[pool]
  if kind == "class" and not tower["class_token"]:
    raise errors.UserError(f"{name} has no class token to pool (got 'token').")
  if kind == "map" and tower["pooling"] != "map" and not at_creation:
    raise errors.UserError(f"{name} has no attention pooling (got 'map').")
  after = tower["norm_after_pool"]
  if at_creation:
    # Where the name itself fixes the norm's place, timm leaves it.
    after = kind == "gap" and (after or tower["pooling"] != "gap")
  if kind != "gap" and after:
    raise errors.UserError(
      f"{name} has its norm after the mean; the pooling {pool!r} is not "
      "supported."
    )
  return {**tower, "pooling": kind, "norm_after_pool": after}


def _named(tower: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a tower that timm's names determine."""
  return {
    **tower,
    "mlp_dim": tower["mlp_dim"] or 4 * tower["width"],
    "class_position": tower["class_token"] and tower["class_position"],
  }


def nearest(tower: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
  """Returns the name of a tower of the same sizes, and its differences.

  Returns:
    The name, and {field: its value there} for fields that differ; None if no
    tower has the same sizes.
  """
  wanted = _named(tower)
  sizes = ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim")
  found = [
    (name, {k: v for k, v in facts.items() if v != wanted[k]})
    for name, facts in MODELS.items()
    if all(facts[field] == wanted[field] for field in sizes)
  ]
  return min(found, key=lambda one: (len(one[1]), one[0]), default=None)


def find(tower: dict[str, Any], *, at_creation: bool) -> tuple[str, str] | None:
  """Returns timm's name and pooling for a tower, None if it has none.

  Args:
    tower: an image tower's description.
    at_creation: as in `pooled`.
  """
  wanted = _named(tower)
  same = [name for name, facts in MODELS.items() if facts == wanted]
  for name in (*same, *MODELS):
    for pool in _POOLS:
      try:
        found = pooled(MODELS[name], pool, at_creation=at_creation, name=name)
      except errors.UserError:
        continue
      if found == wanted:
        return name, pool
  return None


# Parts of tensors' names for layers that are not supported.
_OTHER_BLOCKS = {
  ".ls1.": "LayerScale",
  ".ls2.": "LayerScale",
  ".q_norm.": "norms of queries",
  ".k_norm.": "norms of keys",
}


def refuse_other_blocks(names: Iterable[str], source: str) -> None:
  """Raises UserError if tensors belong to layers that are not supported."""
  for name in names:
    for part, what in _OTHER_BLOCKS.items():
      if part in name:
        raise errors.UserError(
          f"{source} has {what} ({name}), which is not supported."
        )
