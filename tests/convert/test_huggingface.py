"""HuggingFace's models computed here and by transformers."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from clip_jax import convert, errors, preprocess
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import engine
from clip_jax.convert import tensor as tensor_lib
from clip_jax.models import variants

_SPEC = importlib.util.spec_from_file_location(
  "huggingface_models",
  pathlib.Path(__file__).parent / "huggingface_models.py",
)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

BAR = 1e-12  # Float64 against float64: a wrong epsilon gives 1e-5.


@pytest.fixture(scope="module")
def saved(perturb, tmp_path_factory):
  """A model of `models.MODELS` by name, and the directory it was saved in."""
  made = {}

  def get(name):
    if name not in made:
      directory = tmp_path_factory.mktemp("source")
      model = models.make(name, perturb)
      model.save_pretrained(directory)
      made[name] = model, directory
    return made[name]

  return get


def _worst(difference, got, want):
  return max(difference(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", models.MODELS)
def test_a_directory_computes_what_transformers_computes(
  saved, outputs, difference, name
):
  theirs, directory = saved(name)
  inputs = models.inputs(theirs)
  ours = convert.open_model(directory)
  want = models.run(theirs, *inputs)
  worst = _worst(difference, outputs(ours, *inputs), want)
  print(f"parity in float64, {name}: {worst:.1e}")
  assert worst < BAR


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip gelu, first end id", "siglip"])
def test_float32_is_within_rounding_of_float64(saved, name):
  theirs, directory = saved(name)
  images, tokens = models.inputs(theirs)
  want = models.run(theirs, images, tokens)
  model = convert.open_model(directory)
  module = variants.create_model(model.spec)
  out = jax.jit(module.apply)(
    model.variables(), images.astype(np.float32), tokens
  )
  for got, expected in (
    (out.image_embeds, want[0]),
    (out.text_embeds, want[1]),
  ):
    got = np.asarray(got, np.float64)
    assert np.abs(got - expected).max() < 2e-6
    cosine = (got * expected).sum(axis=-1) / np.linalg.norm(got, axis=-1)
    assert (1 - cosine).max() < 1e-10


BLOCKS = "params/{}/encoder/blocks"


def _swap(path_a, path_b):
  def mutate(model):
    leaves = dict(model.leaves)
    leaves[path_a], leaves[path_b] = leaves[path_b], leaves[path_a]
    return dataclasses.replace(model, leaves=leaves)

  return mutate


def _transpose(path):
  """Transposes the matrix of a kernel whose sides have the same size."""

  def mutate(model):
    leaf = model.leaves[path]
    layers = leaf.shape[0]
    matrices = leaf.read().reshape(layers, leaf.shape[1], -1)
    array = matrices.swapaxes(1, 2).reshape(leaf.shape)
    tensor = tensor_lib.Tensor.from_array(array)
    leaves = {**model.leaves, path: tensor}
    return dataclasses.replace(model, leaves=leaves)

  return mutate


def _describe(tower, **fields):
  def mutate(model):
    part = {**model.spec[tower], **fields}
    return dataclasses.replace(model, spec={**model.spec, tower: part})

  return mutate


CLIP, SIGLIP = "clip gelu, first end id", "siglip"
IMAGE, TEXT = (BLOCKS.format(tower) for tower in ("image", "text"))
HEAD = "params/image/map_head"
MUTATIONS = {
  "query and key swapped": (
    CLIP,
    _swap(f"{IMAGE}/attention/query/kernel", f"{IMAGE}/attention/key/kernel"),
  ),
  "value transposed": (CLIP, _transpose(f"{TEXT}/attention/value/kernel")),
  "norms swapped": (CLIP, _swap(f"{TEXT}/ln_1/bias", f"{TEXT}/ln_2/bias")),
  "image epsilon": (CLIP, _describe("image", norm_epsilon=1e-5)),
  "text epsilon": (CLIP, _describe("text", norm_epsilon=1e-6)),
  "image activation": (CLIP, _describe("image", activation="gelu_tanh")),
  "text activation": (CLIP, _describe("text", activation="quick_gelu")),
  "largest id": (CLIP, _describe("text", pooling="argmax", eos_id=None)),
  "last token": (CLIP, _describe("text", pooling="last", eos_id=None)),
  "no mask": (CLIP, _describe("text", causal=False)),
  "mean patch": (CLIP, _describe("image", pooling="gap")),
  "probe's query and key swapped": (
    SIGLIP,
    _swap(f"{HEAD}/attention/query/kernel", f"{HEAD}/attention/key/kernel"),
  ),
  "SigLIP's activation": (SIGLIP, _describe("image", activation="gelu")),
  "SigLIP's epsilon": (SIGLIP, _describe("text", norm_epsilon=1e-5)),
  "SigLIP causal": (SIGLIP, _describe("text", causal=True)),
  "SigLIP's largest id": (SIGLIP, _describe("text", pooling="argmax")),
}


# These compile what the other tests have compiled, or stand for a kind.
QUICK = (
  "query and key swapped",
  "value transposed",
  "norms swapped",
  "text epsilon",
  "probe's query and key swapped",
)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in MUTATIONS
  ],
)
def test_a_mutation_is_far_above_the_bar(saved, outputs, difference, name):
  model_name, mutate = MUTATIONS[name]
  theirs, directory = saved(model_name)
  inputs = models.inputs(theirs)
  mutated = mutate(convert.open_model(directory))
  got = outputs(mutated, *inputs)
  assert _worst(difference, got, models.run(theirs, *inputs)) > 1e4 * BAR


def test_siglip_sees_its_padding(saved, outputs, difference):
  theirs, directory = saved(SIGLIP)
  images, tokens = models.inputs(theirs)
  padded = tokens.copy()
  padded[0, 2:] = 0
  got = outputs(convert.open_model(directory), images, padded)
  want = models.run(theirs, images, tokens)
  assert difference(got[1], want[1]) > 1e4 * BAR


def _tower(name):
  family, part, kind = name.split()
  source = models.clip if family == "CLIP" else models.siglip
  config = getattr(source().config, f"{part.lower()}_config")
  return getattr(transformers, f"{family}{part}Model{kind.strip('-')}")(config)


TOWERS = (
  "CLIP Text -",
  "CLIP Vision -",
  "CLIP Text WithProjection",
  "CLIP Vision WithProjection",
  "Siglip Text -",
  "Siglip Vision -",
)


def _prefixed(directory, prefix):
  """Gives the names the prefix that transformers 4 saved."""
  import safetensors.torch

  path = directory / "model.safetensors"
  tensors = safetensors.torch.load_file(path)
  tensors = {f"{prefix}{name}": x for name, x in tensors.items()}
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
  ("name", "style"),
  [(name, 5) for name in TOWERS]
  + [(name, 4) for name in TOWERS if name.endswith("-")],
)
def test_a_tower_alone_computes_what_transformers_computes(
  perturb, difference, tmp_path, name, style
):
  model = perturb(_tower(name)).eval()
  model.save_pretrained(tmp_path)
  text = "Text" in name
  if style == 4:
    _prefixed(tmp_path, "text_model." if text else "vision_model.")
  ours = convert.open_model(tmp_path)
  part = "text" if text else "image"
  assert engine.towers(ours.spec) == (part,)
  images, tokens = models.inputs(models.siglip())
  got = _run_tower(ours, part, tokens if text else images)
  want = _run_their_tower(model.double(), name, images, tokens)
  assert difference(got, want) < BAR
  aside = [x for x in ours.extras if "projection" in x or "head" in x]
  assert bool(aside) == (name in (*TOWERS[2:4], "Siglip Text -"))


def _run_tower(model, part, inputs):
  with jax.enable_x64(True):
    stand_ins = {**engine.STAND_INS, **model.spec}
    module = getattr(
      variants.create_model(
        variants.spec({"embed_dim": 1, **stand_ins}),
        dtype=np.float64,
        param_dtype=np.float64,
      ),
      part,
    )
    params = model.variables(np.float64)["params"][part]
    return np.asarray(jax.jit(module.apply)({"params": params}, inputs))


def _run_their_tower(model, name, images, tokens):
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    if "Vision" in name:
      inner = getattr(model, "vision_model", model)
      return inner(pixel_values=pixels).pooler_output.numpy()
    inner = getattr(model, "text_model", model)
    found = inner(input_ids=torch.from_numpy(tokens))
    if "Siglip" in name:  # What its projection is applied to.
      return found.last_hidden_state[:, -1].numpy()
    return found.pooler_output.numpy()


SHAPES = ((31, 47), (47, 31), (20, 23), (23, 20), (7, 90), (64, 64), (25, 26))
PROCESSORS = {
  "clip": (CLIP, "CLIPImageProcessorPil", {"size": {"shortest_edge": 20}}),
  "clip with a margin": (
    CLIP,
    "CLIPImageProcessorPil",
    {"size": {"shortest_edge": 23}, "resample": 2, "image_std": [0.2] * 3},
  ),
  "clip, legacy numbers": (
    CLIP,
    "CLIPFeatureExtractor",
    {"size": 23, "crop_size": 20},
  ),
  "clip squashed": (
    CLIP,
    "CLIPImageProcessorFast",
    {"size": {"height": 20, "width": 20}, "do_center_crop": False},
  ),
  "siglip": (
    SIGLIP,
    "SiglipImageProcessor",
    {"size": {"height": 20, "width": 20}, "do_normalize": False},
  ),
}


def _pictures():
  rng = np.random.default_rng(5)
  for h, w in SHAPES:
    coarse = rng.integers(0, 256, (h // 5 + 2, w // 5 + 2, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((w, h))
    yield from (picture, picture.convert("P", colors=16), picture.convert("L"))


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_transformers_does(saved, tmp_path, name):
  source, kind, settings = PROCESSORS[name]
  _, directory = saved(source)
  crop = {"crop_size": {"height": 20, "width": 20}} if "clip" in name else {}
  models.edit(
    directory,
    "preprocessor_config.json",
    image_processor_type=kind,
    **{**crop, **settings},
  )
  spec = convert.open_model(directory).spec
  base = "Siglip" if "Siglip" in kind else "CLIP"
  theirs = getattr(transformers, f"{base}ImageProcessorPil").from_pretrained(
    directory
  )
  ours = preprocess.Preprocess.from_spec(spec)
  rounded = dataclasses.replace(ours, crop_rounding="round")
  moved = 0
  for picture in _pictures():
    want = theirs(picture, return_tensors="np")["pixel_values"][0]
    want = want.transpose(1, 2, 0)
    got = preprocess.eval_image(picture, ours)
    # A level is 1 / 255 / std, at least 0.0039.
    assert np.abs(preprocess.normalize(got, ours) - want).max() < 1e-5
    moved += (preprocess.eval_image(picture, rounded) != got).any()
  if ours.resize == "shortest":
    assert moved  # The other rounding of the crop does fail.
  (directory / "preprocessor_config.json").unlink()


TEXTS = (
  "A photo of a cat.",
  "naïve  CAFÉ\n\t 12345 don't",
  "&lt;b&gt; <|endoftext|>",
  "\ufb01 \uff26\uff01 \U0001f408",
  "a " * 40,
  "",
)


def test_texts_are_tokenized_as_the_written_tokenizer_does(saved, tmp_path):
  _, directory = saved("clip quick_gelu, largest id")
  convert.convert(directory, tmp_path / "out", to="huggingface")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert type(theirs).__name__.startswith("CLIPTokenizer")
  model = convert.open_model(tmp_path / "out")
  ours = tokenizer_lib.make_tokenizer(
    **model.spec["tokenizer"], context_length=11
  )
  plain = [text for text in TEXTS if "<|" not in text]  # Ours are not forged.
  want = theirs(
    plain,
    padding="max_length",
    truncation=True,
    max_length=11,
    return_tensors="np",
  )["input_ids"]
  np.testing.assert_array_equal(ours(plain), want)


def test_an_unknown_relative_is_named(tmp_path):
  models.edit(tmp_path, model_type="altclip")
  with pytest.raises(errors.UserError, match="model_type='altclip'"):
    convert.open_model(tmp_path)
