import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import engine, portable
from clip_jax.convert.formats import openai, openai_names
from clip_jax.convert.portable import Options
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

BAR = 1e-12  # Float64 against float64: a wrong epsilon gives 1e-5.
QUICK = {
  "vit": Options(activation="quick_gelu", heads=(2, 3)),
  "resnet": Options(activation="quick_gelu", heads=(8, 3)),
}
VIT = QUICK["vit"]
TOLD = ["--activation=quick_gelu", "--heads=2,3"]
# Sizes that differ from each other wherever the architecture lets them.
SHARED = {
  "embed_dim": 24,
  "context_length": 11,
  "vocab_size": 50,
  "transformer_width": 192,
  "transformer_heads": 3,
  "transformer_layers": 2,
}
TOWERS = {
  "vit": {
    "image_resolution": 20,
    "vision_layers": 3,
    "vision_width": 128,
    "vision_patch_size": 5,
  },
  "resnet": {
    "image_resolution": 64,
    "vision_layers": (1, 2, 1, 1),
    "vision_width": 16,
    "vision_patch_size": None,
  },
}


@pytest.fixture(scope="module")
def make(openai_model, perturb):
  def build(kind, dtype=torch.float64):
    model = perturb(openai_model.CLIP(**SHARED, **TOWERS[kind]))
    # OpenAI's own computes in float32 whatever comes.
    openai_model.LayerNorm.forward = torch.nn.LayerNorm.forward
    return model.to(dtype).eval()

  return build


def _inputs(kind, seed=0):
  rng = np.random.default_rng(seed)
  size = TOWERS[kind]["image_resolution"]
  images = rng.normal(size=(3, size, size, 3))
  tokens = rng.integers(1, 40, size=(3, SHARED["context_length"]))
  # The end token, the largest id, early, in the middle and last.
  for row, end in enumerate((1, 5, SHARED["context_length"] - 1)):
    tokens[row, end] = 49
    tokens[row, end + 1 :] = 0
  return images, tokens


def _run_theirs(model, images, tokens):
  with torch.no_grad():
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    embeds = (
      model.encode_image(images),
      model.encode_text(torch.from_numpy(tokens)),
    )
    unit = [x / x.norm(dim=-1, keepdim=True) for x in embeds]
    logits = model.logit_scale.exp() * unit[0] @ unit[1].T
  return (*(x.numpy() for x in unit), logits.numpy())


@pytest.mark.parametrize("kind", TOWERS)
def test_a_state_dict_computes_what_openais_model_computes(
  make, outputs, difference, tmp_path, kind
):
  theirs = make(kind)
  torch.save(theirs.state_dict(), tmp_path / "model.pt")
  ours = convert.open_model(tmp_path / "model.pt", options=QUICK[kind])
  inputs = _inputs(kind)
  for got, want in zip(
    outputs(ours, *inputs), _run_theirs(theirs, *inputs), strict=True
  ):
    assert difference(got, want) < BAR


def _swap(path_a, path_b):
  def mutate(model):
    leaves = dict(model.leaves)
    leaves[path_a], leaves[path_b] = leaves[path_b], leaves[path_a]
    return leaves, model.spec

  return mutate


def _describe(tower, **fields):
  def mutate(model):
    spec = {**model.spec, tower: {**model.spec[tower], **fields}}
    return model.leaves, spec

  return mutate


BLOCKS = "params/image/encoder/blocks"
MUTATIONS = {
  "query and key swapped": _swap(
    f"{BLOCKS}/attention/query/kernel", f"{BLOCKS}/attention/key/kernel"
  ),
  "norms swapped": _swap(f"{BLOCKS}/ln_1/scale", f"{BLOCKS}/ln_2/scale"),
  "image epsilon": _describe("image", norm_epsilon=1e-6),
  "text epsilon": _describe("text", norm_epsilon=1e-6),
  "image activation": _describe("image", activation="gelu"),
  "text activation": _describe("text", activation="gelu_tanh"),
  "text pooling": _describe("text", pooling="last"),
  "text mask": _describe("text", causal=False),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_far_above_the_bar(
  make, outputs, difference, tmp_path, name
):
  theirs = make("vit")
  torch.save(theirs.state_dict(), tmp_path / "model.pt")
  ours = convert.open_model(tmp_path / "model.pt", options=VIT)
  leaves, spec = MUTATIONS[name](ours)
  ours = dataclasses.replace(ours, leaves=leaves, spec=spec)
  inputs = _inputs("vit")
  worst = max(
    difference(got, want)
    for got, want in zip(
      outputs(ours, *inputs), _run_theirs(theirs, *inputs), strict=True
    )
  )
  assert worst > 1e4 * BAR, worst


def _assert_same_file(path, wanted):
  got, want = (torch.load(p, weights_only=True) for p in (path, wanted))
  assert got.keys() == want.keys()
  for key, tensor in want.items():
    assert got[key].dtype == tensor.dtype and got[key].shape == tensor.shape
    assert torch.equal(got[key], tensor), key


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(
  "dtype", [torch.float32, torch.float16, torch.bfloat16, "released"]
)
def test_a_round_trip_gives_back_every_bit(
  make, openai_model, tmp_path, kind, dtype
):
  model = make(kind, torch.float32)
  if dtype == "released":  # Half precision but for norms and embeddings.
    openai_model.convert_weights(model)
  else:
    model = model.to(dtype)
  source, ours, back = (tmp_path / name for name in ("a.pt", "ours", "b.pt"))
  torch.save(model.state_dict(), source)
  convert.convert(source, ours, to="clip-jax", options=QUICK[kind])
  convert.convert(ours, back, to="openai", options=QUICK[kind])
  _assert_same_file(back, source)


@pytest.mark.parametrize("kind", TOWERS)
def test_openais_own_loader_takes_what_is_written(
  make, openai_model, tmp_path, kind
):
  model = make(kind, torch.float32)
  torch.save(model.state_dict(), tmp_path / "a.pt")
  convert.convert(
    tmp_path / "a.pt", tmp_path / "b.pt", to="openai", options=QUICK[kind]
  )
  state = torch.load(tmp_path / "b.pt", weights_only=True)
  loaded = openai_model.build_model(state)
  assert loaded.visual.input_resolution == TOWERS[kind]["image_resolution"]


def _archive(model, path, kind):
  """Traces as OpenAI's releases were, with their scalars as buffers."""
  images, tokens = _inputs(kind)
  images = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
  inputs = (images, torch.from_numpy(tokens))
  for name, value in (
    ("input_resolution", TOWERS[kind]["image_resolution"]),
    ("context_length", SHARED["context_length"]),
    ("vocab_size", SHARED["vocab_size"]),
  ):
    if hasattr(model, name):
      delattr(model, name)
    model.register_buffer(name, torch.tensor(value))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), path)


@pytest.mark.filterwarnings("ignore")
def test_an_archive_says_its_activation_and_its_sizes(make, tmp_path):
  model = make("vit", torch.float32)
  _archive(model, tmp_path / "model.pt", "vit")
  # Tracing leaves no number of heads, and these sizes are none of OpenAI's.
  with pytest.raises(errors.AmbiguousError, match="--heads"):
    convert.open_model(tmp_path / "model.pt")
  heads = Options(heads=VIT.heads)
  read = convert.open_model(tmp_path / "model.pt", options=heads)
  assert read.spec["image"]["activation"] == "quick_gelu"
  assert read.report.inferred["activation"]["source"] == "archive"
  assert read.report.ignored == [
    "context_length",
    "input_resolution",
    "vocab_size",
  ]
  assert read.report.inferred["image.heads"] == {"value": 2, "source": "flag"}
  state = model.state_dict()
  for name, leaf in openai.state_dict(read).items():
    assert np.array_equal(leaf.read(), state[name].numpy())
  told = convert.open_model(
    tmp_path / "model.pt",
    options=dataclasses.replace(heads, activation="gelu"),
  )
  assert any("quick_gelu" in warning for warning in told.report.warnings)


@pytest.mark.filterwarnings("ignore")
def test_a_resized_archive_says_its_new_size(make, tmp_path):
  _archive(make("vit", torch.float32), tmp_path / "a.pt", "vit")
  options = dataclasses.replace(VIT, image_size=30, resize_method="bicubic")
  convert.convert(
    tmp_path / "a.pt", tmp_path / "b.pt", to="openai", options=options
  )
  back = torch.load(tmp_path / "b.pt", weights_only=True)
  assert back["input_resolution"].item() == 30


@pytest.mark.filterwarnings("ignore")
def test_an_archive_that_contradicts_itself_is_refused(make, tmp_path):
  model = make("vit", torch.float32)
  _archive(model, tmp_path / "a.pt", "vit")
  traced = torch.jit.load(tmp_path / "a.pt")
  traced.input_resolution.fill_(224)
  torch.jit.save(traced, tmp_path / "b.pt")
  with pytest.raises(errors.UserError, match="input_resolution"):
    convert.open_model(tmp_path / "b.pt", options=VIT)


@pytest.mark.parametrize("size", [math.nan, math.inf, 20.5])
def test_a_size_that_is_no_number_of_pixels_is_damaged(make, tmp_path, size):
  state = make("vit", torch.float32).state_dict()
  state["input_resolution"] = torch.tensor(size)
  torch.save(state, tmp_path / "a.pt")
  words = rf"input_resolution=\[{size}\], but its tensors have 20"
  with pytest.raises(errors.DamagedError, match=words):
    convert.open_model(tmp_path / "a.pt", options=VIT)


def test_a_size_of_few_bits_is_written_in_more_where_it_grows(make, tmp_path):
  state = make("vit", torch.float32).state_dict()
  size = torch.tensor(20, dtype=torch.uint8)
  torch.save({**state, "input_resolution": size}, tmp_path / "a.pt")
  for side, dtype in ((20, torch.uint8), (300, torch.uint16)):
    options = VIT
    if side != 20:
      options = dataclasses.replace(
        VIT, image_size=side, resize_method="bilinear"
      )
    out = tmp_path / f"{side}.pt"
    convert.convert(tmp_path / "a.pt", out, to="openai", options=options)
    back = torch.load(out, weights_only=True)["input_resolution"]
    assert (back.item(), back.dtype) == (side, dtype)


def test_stages_without_end_are_refused(make, tmp_path):
  state = make("resnet", torch.float32).state_dict()
  for stage in range(5, 14):
    state[f"visual.layer{stage}.0.conv1.weight"] = torch.ones(1)
  torch.save(state, tmp_path / "a.pt")
  with pytest.raises(errors.UserError, match="has 13 stages of a ResNet"):
    convert.open_model(tmp_path / "a.pt", options=QUICK["resnet"])


def test_configs_beside_a_file_are_named_only_where_one_is_its_own(
  make, tmp_path
):
  torch.save(make("vit", torch.float32).state_dict(), tmp_path / "model.pt")
  config = json.dumps({"vision_cfg": {}, "text_cfg": {}})
  (tmp_path / "ViT-B-32.json").write_text(config)
  with pytest.raises(errors.AmbiguousError, match="has OpenCLIP's config"):
    convert.open_model(tmp_path / "model.pt")
  (tmp_path / "ViT-B-16.json").write_text(config)
  with pytest.raises(errors.AmbiguousError, match="--activation quick_gelu"):
    convert.open_model(tmp_path / "model.pt")


def test_names_alone_are_ambiguous(make, tmp_path, capsys):
  torch.save(make("vit", torch.float32).state_dict(), tmp_path / "model.pt")
  with pytest.raises(errors.AmbiguousError, match="--activation"):
    convert.open_model(tmp_path / "model.pt")
  code = run(
    ["convert", str(tmp_path / "model.pt"), str(tmp_path / "x"), "--to=openai"]
  )
  assert code == 2 and "--activation" in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_heads_that_nothing_says_are_ambiguous(make, tmp_path, capsys):
  path = tmp_path / "model.pt"
  torch.save(make("vit", torch.float32).state_dict(), path)
  with pytest.raises(errors.AmbiguousError, match="--heads"):
    convert.open_model(path, options=Options(activation="quick_gelu"))
  arguments = ["--to=clip-jax", "--activation=quick_gelu", "--dry-run"]
  assert run(["convert", str(path), str(tmp_path / "x"), *arguments]) == 2
  assert "--heads" in capsys.readouterr().err


def _shapes_alone(spec):
  shapes = engine.leaf_shapes(spec)
  return {
    entry.name: Tensor(
      engine.their_shape(entry, shapes), np.dtype(np.float16), None
    )
    for entry in openai_names.NAMES.entries(spec)
  }


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_heads_of_models_with_openais_names_only_are_told(name):
  spec = engine.resolve(variants.VARIANTS[name])
  tensors = _shapes_alone(spec)

  def describe(heads):
    reading = SourceReading(name, "openai", Options(heads=heads))
    spec = openai.describe(tensors, reading, activation="gelu")
    return spec, reading.report.inferred

  told = (spec["image"]["heads"], spec["text"]["heads"])
  with pytest.raises(errors.AmbiguousError, match=f"{told[0]},{told[1]}"):
    describe(None)
  again, inferred = describe(told)
  assert (again["image"]["heads"], again["text"]["heads"]) == told
  assert inferred["image.heads"] == {"value": 16, "source": "flag"}
  with pytest.raises(errors.UserError, match="heads of the image tower"):
    describe((7, 16))


USES = {
  "image_mean": [0.5, 0.5, 0.5],
  "image_std": [0.5, 0.5, 0.5],
  "interpolation": "bilinear",
  "resize": "squash",
  "crop_fraction": 0.9,
}


@pytest.mark.parametrize("field", USES)
def test_preprocessing_that_openai_lacks_is_refused_by_name(field):
  spec = engine.resolve(variants.VARIANTS["ViT-B-32"])
  assert not openai.refusals(spec)
  (problem,) = openai.refusals({**spec, field: USES[field]})
  assert problem.startswith(f"{field}=")


@pytest.mark.parametrize(
  ("tokenizer", "text", "problems"),
  [
    ({"kind": "hf_json"}, {}, ["tokenizer.kind='hf_json'"]),
    ({"end_id": 7}, {}, ["tokenizer.end_id=7"]),
    ({"pad_id": 49407}, {}, []),
    (
      {"pad_id": 5},
      {"pooling": "last"},
      ["text.pooling='last'", "tokenizer.pad_id=5"],
    ),
  ],
)
def test_a_tokenizer_that_openai_lacks_is_refused(tokenizer, text, problems):
  spec = engine.resolve(variants.VARIANTS["ViT-B-32"])
  spec["tokenizer"] = {**spec["tokenizer"], **tokenizer}
  spec["text"] = {**spec["text"], **text}
  found = [problem.split(" ")[0] for problem in openai.refusals(spec)]
  assert found == problems


def test_what_openai_does_nearly_the_same_is_a_warning():
  spec = engine.resolve(variants.VARIANTS["ViT-B-32"])
  assert not openai.deviations(spec)
  spec |= {"crop_rounding": "floor", "convert_rgb": "before"}
  spec["tokenizer"] = {
    "kind": "clip_bpe",
    "cleaning": "hf_clip",
    "pad_id": 49407,
  }
  assert not openai.refusals(spec)
  found = [warning.split("=")[0] for warning in openai.deviations(spec)]
  assert found == [
    *("crop_rounding", "convert_rgb"),
    *("tokenizer.cleaning", "tokenizer.pad_id"),
  ]


@pytest.fixture
def state(make):
  return dict(make("vit", torch.float32).state_dict())


def test_a_difference_is_reported_with_three_lists(state, tmp_path, capsys):
  path = tmp_path / "model.pt"
  del state["ln_final.bias"]
  state["visual.extra"] = torch.zeros(3)
  state["visual.proj"] = state["visual.proj"][:-1]
  torch.save(state, path)
  arguments = ["--to=clip-jax", *TOLD, "--json"]
  assert run(["convert", str(path), str(tmp_path / "x"), *arguments]) == 1
  captured = capsys.readouterr()
  found = json.loads(captured.out)
  assert found["missing"] == ["ln_final.bias"]
  assert found["unexpected"] == ["visual.extra"]
  assert found["shape_mismatch"] == [
    {"key": "visual.proj", "got": [127, 24], "want": [128, 24]}
  ]
  assert "ln_final.bias" in captured.err and "Traceback" not in captured.err
  assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_stops_the_conversion(state, tmp_path, value):
  state["visual.proj"][3, 4] = value
  torch.save(state, tmp_path / "a.pt")
  with pytest.raises(errors.UserError, match="NaN or infinity"):
    convert.convert(
      tmp_path / "a.pt", tmp_path / "b", to="clip-jax", options=VIT
    )
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
  "name",
  [
    *("RN50", "ViT-B-32"),
    # The others differ from these in numbers alone; `test_variants` has them.
    pytest.param("RN50x64", marks=pytest.mark.slow),
    pytest.param("ViT-L-14-336", marks=pytest.mark.slow),
  ],
)
def test_full_sizes_have_a_place_for_every_tensor(name):
  spec = engine.resolve(variants.VARIANTS[name])
  assert not openai.refusals(spec)
  shapes = engine.leaf_shapes(spec)
  engine.check_cover(openai_names.NAMES.entries(spec), shapes)
  tensors = _shapes_alone(spec)
  reading = SourceReading(name, "openai")
  again = openai.describe(tensors, reading, activation="quick_gelu")
  assert again["image"] == engine.resolve(again)["image"]
  assert engine.leaf_shapes(again) == shapes


def test_a_dry_run_reads_no_data(state, tmp_path, capsys):
  path = tmp_path / "model.pt"
  torch.save(state, path)
  out = tmp_path / "out"
  arguments = ["--to=clip-jax", "--activation=gelu", "--heads=2,3"]
  arguments += ["--dry-run", "--json"]
  assert run(["convert", str(path), str(out), *arguments]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["mapped"] == len(state) and not out.exists()
  assert found["inferred"]["activation"] == {"value": "gelu", "source": "flag"}
  assert found["inferred"]["image.heads"] == {"value": 2, "source": "flag"}


def test_a_dry_run_digests_no_weights(state, tmp_path, monkeypatch):
  torch.save(state, tmp_path / "model.pt")
  monkeypatch.setattr(portable, "digests", lambda files: dict.fromkeys(files))
  options = dataclasses.replace(VIT, headers_only=True)
  read = convert.open_model(tmp_path / "model.pt", options=options)
  assert read.source["files"] == {}


def test_a_model_is_replaced_only_when_told_to(state, tmp_path):
  source, out = tmp_path / "a.pt", tmp_path / "out"
  torch.save(state, source)
  convert.convert(source, out, to="clip-jax", options=VIT)
  with pytest.raises(errors.UserError, match="--overwrite"):
    convert.convert(source, out, to="clip-jax", options=VIT)
  (out / "old.txt").write_text("")
  convert.convert(source, out, to="clip-jax", options=VIT, overwrite=True)
  assert not (out / "old.txt").exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "out"]
