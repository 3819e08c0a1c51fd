"""The names in the tree of parameters; no other module knows them.

    image/encoder/blocks/ln_1/scale     all layers of an encoder, stacked
    image/stage_1_block_2/conv_1/norm   a block of a ResNet
    image/patch_kernel                  anything else of a tower
    image_projection/kernel             the projection to the shared space
    log_scale                           belongs to no tower
    head/encoder/blocks/ln_1/scale      the head, which predicts captions

Paths are names joined by "/". Functions that look for a stack accept other
names before the tower's: "params/…", or an optimizer's "opt_state/0/mu/…".
"""

import re
from collections.abc import Mapping
from typing import Any

TOWERS = ("image", "text")
# The module that predicts captions, in models that are trained to do so.
HEAD = "head"
# The layers of a tower are stacked in the module `BLOCKS` of its `ENCODER`.
ENCODER = "encoder"
BLOCKS = "blocks"
# The modules of a layer's attention that read the layer's input.
QUERY_KEY_VALUE = ("attention/query", "attention/key", "attention/value")

_STACK = f"/{ENCODER}/{BLOCKS}/"
_BLOCK = re.compile(r"stage_(\d+)_block_(\d+)")
_INPUT = re.compile(r"(\w*embedding|patch_\w+|registers|ln_pre|ln_embed)(/|$)")


def tower(path: str) -> str | None:
  """Returns the tower of `path`, "image" or "text"; None if it is in none."""
  first = path.partition("/")[0]
  return first if first in TOWERS else None


def is_input(path: str) -> bool:
  """Whether `path` is a parameter that a tower has before its first layer."""
  name, _, rest = path.partition("/")
  return name in TOWERS and _INPUT.match(rest) is not None


def projection(tower: str) -> str:
  """Returns the name of the projection of a tower's output."""
  return f"{tower}_projection"


def stack(tower: str) -> str:
  """Returns the path of the stacked layers of a tower's encoder."""
  return f"{tower}/{ENCODER}/{BLOCKS}"


def within_layer(path: str) -> str | None:
  """Returns the path within a layer, such as "ln_1/scale"; None outside."""
  _, found, rest = f"/{path}".partition(_STACK)
  return rest if found else None


def is_stacked(path: str) -> bool:
  """Whether the first axis of the array at `path` is that of the layers."""
  return within_layer(path) is not None


def names(path: str, shape: tuple[int, ...]) -> list[str]:
  """Returns the name of an array, or the names of its layers if it is stacked.

  The name of a layer has its number: "image/encoder/blocks/11/ln_1/scale".

  Args:
    path: the path below "params".
    shape: the shape of the whole array.
  """
  rest = within_layer(path)
  if rest is None:
    return [path]
  before = path.removesuffix(rest)
  return [f"{before}{layer}/{rest}" for layer in range(shape[0])]


def layers_in(tower: Mapping[str, Any]) -> Any | None:
  """Returns the stacked layers in a tower's tree; None if it has none."""
  return tower.get(ENCODER, {}).get(BLOCKS)


def block(stage: int, number: int) -> str:
  """Returns the name of a ResNet's block; both numbers start at 1."""
  return f"stage_{stage}_block_{number}"


def block_numbers(name: str) -> tuple[int, int] | None:
  """Returns stage and number of a ResNet's block; None for another name."""
  found = _BLOCK.fullmatch(name)
  return (int(found[1]), int(found[2])) if found else None


def is_in_block(path: str) -> bool:
  """Whether `path` lies in a block of a ResNet."""
  return any(map(block_numbers, path.split("/")))
