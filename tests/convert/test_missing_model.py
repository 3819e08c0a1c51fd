"""What is said about a MODEL that is not there, or that says too little."""

import re

import pytest
from PIL import Image

from clip_jax import cli, convert, errors, loading
from clip_jax.cli import run
from clip_jax.convert import hub, missing_model, opening
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
    ("ViT-B32", ["clip_jax.create_model('ViT-B-32')", "hf-hub:openai/clip-"]),
    ("vit_b_32", ["clip_jax.create_model('ViT-B-32')"]),
    ("ViT-B-32/openai", ["clip_jax.create_model('ViT-B-32')"]),
    ("ViT-B-33", ["ViT-B-32, ", "`clip-jax models`", "create_model"]),
    ("clip-vit-base-patch32", ["hf-hub:openai/clip-vit-base-patch32. Give"]),
    ("siglip", ["hf-hub:google/siglip-base-patch16-224", "ViT-B-16-SigLIP"]),
    ("laion2b", ["hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]),
    ("runs/demo", ["does not exist"]),
    ("~no-such-user/model", ["hf-hub:ORG/NAME"]),
    ("m" * 300, ["hf-hub:ORG/NAME"]),
  ],
)
def test_a_name_that_is_no_path_suggests_what_it_may_be(name, parts):
  with pytest.raises(errors.UserError, match="does not exist") as raised:
    convert.open_model(name)
  message = str(raised.value)
  assert all(part in message for part in parts), message
  assert len(message.partition(" Give a workdir")[0]) < 400
  with pytest.raises(errors.UserError, match="does not exist"):
    loading.load(name)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("https://huggingface.co/a/b/tree/main", r"give it as hf-hub:a/b\."),
    ("hf://a/b", r"give it as hf-hub:a/b\."),
    ("hf://datasets/a/b", "is remote"),
    ("file:///a%20b/c.pt", "'/a b/c.pt'"),
    ("https://example.org/a.pt", "download it"),
    ("", "MODEL is empty"),
  ],
)
def test_a_url_is_answered_by_what_to_give_instead(name, said, capsys):
  with pytest.raises(errors.UserError, match=said):
    convert.open_model(name)
  with pytest.raises(errors.UserError, match=said):
    loading.load(name, source_format="openai")
  with pytest.raises(SystemExit):
    cli.main(["classify", name, "a.png", "--labels=a,b"])
  assert name == "" or re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["huggingface.co/a/b", "hf:a/b", "hub:a/b"])
def test_a_directory_that_is_there_is_a_model_whatever_its_name(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).mkdir(parents=True)
  assert opening.find(name).is_dir()


def test_a_folder_of_too_long_a_name_does_not_exist():
  with pytest.raises(errors.UserError, match="does not exist"):
    opening.find("m" * 300 + "/x")


def test_the_repositories_that_are_suggested_are_of_named_models():
  assert missing_model.REPOSITORIES.keys() <= variants.VARIANTS.keys()
  assert all(map(hub.is_name, missing_model.REPOSITORIES.values()))


def test_a_mistyped_path_names_what_is_near_it(tmp_path):
  for name in ("model.pt", "models", "notes"):
    (tmp_path / name).write_text("")
  with pytest.raises(errors.UserError, match=r"Did you mean '.*/model\.pt'"):
    convert.open_model(tmp_path / "modle.pt")


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


def test_a_link_that_leads_nowhere_is_told(tmp_path):
  (tmp_path / "model").symlink_to("gone/model")
  (tmp_path / "circle").symlink_to("circle")
  for name, target in (("model", "gone/model"), ("circle", "circle")):
    with pytest.raises(errors.UserError) as raised:
      convert.open_model(str(tmp_path / name))
    told = f"It is a link to '{target}', which is not there."
    assert told in str(raised.value) and "Did you mean" not in str(raised.value)
