"""What is said about a MODEL that is not there, or that says too little."""

import re

import pytest
from PIL import Image

from clip_jax import errors
from clip_jax.cli import run
from clip_jax.convert import opening
from clip_jax.convert.formats import timm_vit
from clip_jax.models import variants


@pytest.mark.parametrize(
  ("name", "parts"),
  [
    ("openai/clip-vit-base-patch32", ["hf-hub:openai/clip-vit-base-patch32"]),
    ("org/name@v1.0", ["give hf-hub:org/name@v1.0"]),
    ("ViT-B-32", ["clip_jax.create_model('ViT-B-32')", "has no weights"]),
    ("ViT-B/32", ["clip_jax.create_model('ViT-B-32')"]),
    ("vit-l/14@336px", ["clip_jax.create_model('ViT-L-14-336')"]),
    ("ViT-B32", ["ViT-B-32, ", "`clip-jax models`"]),
    ("runs/demo", ["does not exist"]),
  ],
)
def test_a_name_that_is_no_path_suggests_what_it_may_be(name, parts):
  with pytest.raises(errors.UserError, match="does not exist") as raised:
    opening.open_model(name)
  message = str(raised.value)
  assert all(part in message for part in parts), message
  assert len(message) < 600


def test_a_mistyped_path_names_what_is_near_it(tmp_path):
  for name in ("model.pt", "models", "notes"):
    (tmp_path / name).write_text("")
  with pytest.raises(errors.UserError, match=r"Near it are model.*models"):
    opening.open_model(tmp_path / "modle.pt")


def test_a_refusal_names_the_three_nearest_and_no_list():
  with pytest.raises(errors.UserError) as raised:
    timm_vit.describe("vit_base_patch16_dinov2_224")
  message = str(raised.value)
  nearest = re.search(r"Nearest of \d+ names: (.*)\.$", message)[1].split(", ")
  assert len(nearest) == 3 and "vit_base_patch16_224" in nearest
  with pytest.raises(errors.UserError, match=r"Did you mean 'ViT-B-32'\?"):
    variants.spec("ViT-B32")
  with pytest.raises(errors.UserError) as raised:
    variants.spec("nothing of the kind")
  assert len(str(raised.value)) < 300


def test_each_verb_advises_flags_that_it_knows(tmp_path, capsys):
  import torch

  path, picture = str(tmp_path / "a.pt"), str(tmp_path / "a.png")
  Image.new("RGB", (9, 9)).save(picture)
  marks = ("visual.conv1.weight", "text_projection")
  torch.save({name: torch.zeros(1, 1) for name in marks}, path)
  out = str(tmp_path / "out")
  for command, here in (
    (["classify", path, picture, "--labels=a,b"], False),
    (["eval", path, "--task=zero_shot", "--data=builtin:digits/test"], False),
    (["convert", path, out, "--to=clip-jax"], True),
    (["verify", path, out], True),
  ):
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "--activation quick_gelu or --activation gelu" in error
    assert ("to `clip-jax convert`" in error) != here
