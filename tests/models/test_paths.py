"""One module knows how stacks and blocks are named."""

import pathlib
import re

import pytest

import clip_jax
from clip_jax.models import paths

PACKAGE = pathlib.Path(clip_jax.__file__).parent
NAMES = re.compile(r"encoder/blocks|/blocks/|stage_")


def test_no_other_module_names_stacks_or_blocks():
  found = {
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if NAMES.search(path.read_text())
  }
  assert found == {"models/paths.py"}


@pytest.mark.parametrize(
  ("path", "rest"),
  [
    ("image/encoder/blocks/ln_1/scale", "ln_1/scale"),
    ("params/text/encoder/blocks/mlp/fc_in/kernel", "mlp/fc_in/kernel"),
    ("opt_state/0/mu/text/encoder/blocks/ln_2/bias", "ln_2/bias"),
    ("encoder/blocks/ln_1/scale", "ln_1/scale"),
    ("image/stage_1_block_2/conv_1/conv/kernel", None),
    ("image/my_encoder/blocks_2/scale", None),
  ],
)
def test_a_stack_is_found_under_any_names(path, rest):
  assert paths.within_layer(path) == rest
  assert paths.is_stacked(path) == (rest is not None)


def test_layers_have_names_of_their_own():
  path = f"{paths.stack('image')}/ln_1/scale"
  assert paths.names(path, (2, 7)) == [
    "image/encoder/blocks/0/ln_1/scale",
    "image/encoder/blocks/1/ln_1/scale",
  ]
  assert paths.names("image/class_embedding", (7,)) == ["image/class_embedding"]


def test_the_name_of_a_block_gives_its_block_numbers_back():
  assert paths.block_numbers(paths.block(3, 12)) == (3, 12)
  assert paths.is_in_block(f"params/image/{paths.block(1, 2)}/conv_1/kernel")
  for name in ("stem_1", "stage_1", "stage_1_block_2x", "attention_pool"):
    assert paths.block_numbers(name) is None
    assert not paths.is_in_block(name)


@pytest.mark.parametrize(
  ("path", "tower", "first"),
  [
    ("image/patch_kernel", "image", True),
    ("text/token_embedding/embedding", "text", True),
    ("image/ln_pre/scale", "image", True),
    ("image/ln_post/scale", "image", False),
    ("image_projection/kernel", None, False),
    ("log_scale", None, False),
  ],
)
def test_towers_and_their_inputs_are_known(path, tower, first):
  assert paths.tower(path) == tower
  assert paths.is_input(path) == first
