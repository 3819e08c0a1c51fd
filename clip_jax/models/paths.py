"""The names of the tree of parameters: the one module that knows them.

    image/encoder/blocks/ln_1/scale     all layers of an encoder, stacked
    image/stage_1_block_2/conv_1/norm   a block of a ResNet
    image/patch_kernel                  anything else of a tower
    image_projection/kernel             what maps a tower's output to `embed`
    log_scale                           of no tower
    head/encoder/blocks/ln_1/scale      of what predicts captions

Paths are names joined by "/". Where a stack is looked for, other names may
stand before the tower's: "params/…", or an optimizer's "opt_state/0/mu/…".
"""

import re
from collections.abc import Mapping
from typing import Any

TOWERS = ("image", "text")
# What predicts captions, of models that are trained to do so.
HEAD = "head"
# A stack of layers: in the module `BLOCKS` of a tower's module `ENCODER`.
ENCODER = "encoder"
BLOCKS = "blocks"
# The modules of a layer that read its input in its attention.
QUERY_KEY_VALUE = ("attention/query", "attention/key", "attention/value")

_STACK = f"/{ENCODER}/{BLOCKS}/"
_BLOCK = re.compile(r"stage_(\d+)_block_(\d+)")
_INPUT = re.compile(r"(\w*embedding|patch_\w+|registers|ln_pre|ln_embed)(/|$)")


def tower(path: str) -> str | None:
  """Returns the tower, "image" or "text", that has `path`; None for others."""
  first = path.partition("/")[0]
  return first if first in TOWERS else None


def is_input(path: str) -> bool:
  """Whether `path` is what a tower has before its first layer."""
  name, _, rest = path.partition("/")
  return name in TOWERS and _INPUT.match(rest) is not None


def projection(tower: str) -> str:
  """Returns the name of what maps a tower's output to the shared space."""
  return f"{tower}_projection"


def stack(tower: str) -> str:
  """Returns the path of the stacked layers of a tower's encoder."""
  return f"{tower}/{ENCODER}/{BLOCKS}"


def within_layer(path: str) -> str | None:
  """Returns what follows the stack's path, "ln_1/scale"; None outside of it."""
  _, found, rest = f"/{path}".partition(_STACK)
  return rest if found else None


def is_stacked(path: str) -> bool:
  """Whether the array at `path` has all layers along its first axis."""
  return within_layer(path) is not None


def names(path: str, shape: tuple[int, ...]) -> list[str]:
  """Returns the name of an array, or those of its layers where it is stacked.

  Those of layers have the layer's number: "image/encoder/blocks/11/ln_1/scale".

  Args:
    path: below "params".
    shape: of the whole array.
  """
  rest = within_layer(path)
  if rest is None:
    return [path]
  before = path.removesuffix(rest)
  return [f"{before}{layer}/{rest}" for layer in range(shape[0])]


def layers_in(tower: Mapping[str, Any]) -> Any | None:
  """Returns the stacked layers in the tree of a tower; None without any."""
  return tower.get(ENCODER, {}).get(BLOCKS)


def block(stage: int, number: int) -> str:
  """Returns the name of a ResNet's block; both numbers count from 1."""
  return f"stage_{stage}_block_{number}"


def block_numbers(name: str) -> tuple[int, int] | None:
  """Returns the stage and the number of a ResNet's block; None for others."""
  found = _BLOCK.fullmatch(name)
  return (int(found[1]), int(found[2])) if found else None


def is_in_block(path: str) -> bool:
  """Whether `path` is of a block of a ResNet."""
  return any(map(block_numbers, path.split("/")))
