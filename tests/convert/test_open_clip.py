"""OpenCLIP's dialects against open_clip itself.

Its outputs for small models are in tests/golden/open_clip.npz, made by
tools/golden/open_clip_models.py; where open_clip is installed, it loads what
is written here.
"""

import dataclasses
import importlib.util
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from clip_jax import convert, errors, tokenizer
from clip_jax.convert import (
  engine,
  tokenizer_files,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import (
  open_clip,
  open_clip_config,
  open_clip_files,
  open_clip_named,
  openai_names,
)
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.convert.verify import verification
from clip_jax.models import variants

ROOT = pathlib.Path(__file__).parents[2]
BAR = 1e-12  # Float64 against float64: a wrong epsilon gives 1e-5.


def _load_golden():
  path = ROOT / "tools" / "golden" / "open_clip_models.py"
  spec = importlib.util.spec_from_file_location("open_clip_models", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


GOLDEN = _load_golden()
pytestmark = pytest.mark.usefixtures("nano_towers")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN.OUTPUTS) as data:
    return dict(data)


@pytest.fixture(scope="module")
def library():
  try:
    return GOLDEN.import_libraries()[0]
  except ImportError:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")


@pytest.fixture
def make(golden, tmp_path):
  """Makes the directory of a case."""

  def build(case, dtype=np.float32, name="source"):
    directory = tmp_path / name
    GOLDEN.write_config(GOLDEN.CASES[case], directory)
    shapes = json.loads(str(golden[f"{case}/shapes"]))
    tensors = {}
    for key, shape in shapes.items():
      array = GOLDEN.fill(key, tuple(shape))
      if array.dtype == np.float32:
        array = array.astype(dtype)
      tensors[key] = Tensor.from_array(array)
    safetensors_file.write(directory / open_clip.WEIGHTS, tensors)
    return directory

  return build


def _edit(directory, change):
  path = directory / open_clip.CONFIG
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


def _worst(golden, difference, got, case):
  return max(
    difference(value, golden[f"{case}/{part}"])
    for part, value in zip(("image", "text", "logits"), got, strict=True)
  )


# A case of each combination of names; compiling all of them takes long.
DIALECTS = ("vit_tanh", "resnet", "custom_text", "siglip", "timm_bert_pooler")


def _marked(names, quick):
  return [
    name if name in quick else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]


def test_a_tokenizer_that_the_source_lacks_is_not_written(make, tmp_path):
  model = convert.open_model(make("timm_bert_pooler"))
  bare = dataclasses.replace(model, files={})
  with pytest.raises(errors.UserError, match=r"^The source has no tokenizer"):
    open_clip.write(bare, tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", _marked(GOLDEN.CASES, DIALECTS))
def test_every_dialect_computes_what_open_clip_computes(
  make, golden, outputs, difference, case
):
  model = convert.open_model(make(case))
  assert model.source["format"] == "open-clip"
  got = outputs(model, *GOLDEN.inputs(GOLDEN.CASES[case]))
  assert _worst(golden, difference, got, case) < BAR


def _same_tensors(path, wanted):
  got, want = (safetensors_file.read(p).tensors for p in (path, wanted))
  assert got.keys() == want.keys()
  for key, tensor in want.items():
    assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape), key
    assert got[key].read().tobytes() == tensor.read().tobytes(), key


@pytest.mark.parametrize("case", GOLDEN.CASES)
def test_a_round_trip_gives_back_every_bit_and_the_config(make, case, tmp_path):
  dtypes = (np.float16, ml_dtypes.bfloat16, np.float32)
  dtype = dtypes[list(GOLDEN.CASES).index(case) % len(dtypes)]
  source = make(case, dtype)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "back", to="open-clip")
  _same_tensors(
    tmp_path / "back" / open_clip.WEIGHTS, source / open_clip.WEIGHTS
  )
  got, want = (
    json.loads((path / open_clip.CONFIG).read_text())
    for path in (tmp_path / "back", source)
  )
  assert got == want


@pytest.mark.parametrize("case", GOLDEN.CASES)
def test_a_description_alone_makes_the_same_model(make, case, tmp_path):
  """What came from elsewhere has no config to copy: it is made anew."""
  model = convert.open_model(make(case))
  model = dataclasses.replace(model, source={}, extras={})
  if case.startswith("timm_bert"):
    with pytest.raises(errors.UserError, match=r"text\.width=40"):
      open_clip.write(model, tmp_path / "made")
    return
  open_clip.write(model, tmp_path / "made")
  again = convert.open_model(tmp_path / "made")
  assert open_clip.can_restore(dataclasses.replace(model, source=again.source))
  assert again.leaves.keys() == model.leaves.keys()
  for path, leaf in model.leaves.items():
    assert np.array_equal(again.leaves[path].read(), leaf.read()), path


def _swap(path_a, path_b):
  def mutate(model):
    leaves = dict(model.leaves)
    leaves[path_a], leaves[path_b] = leaves[path_b], leaves[path_a]
    return dataclasses.replace(model, leaves=leaves)

  return mutate


def _say(part, **fields):
  def mutate(model):
    spec = {**model.spec, part: {**model.spec[part], **fields}}
    return dataclasses.replace(model, spec=spec)

  return mutate


BLOCKS = "params/image/encoder/blocks"
MAP_HEAD = "params/image/map_head/attention"
MUTATIONS = {
  "query and key": (
    "vit_tanh",
    _swap(f"{BLOCKS}/attention/query/kernel", f"{BLOCKS}/attention/key/kernel"),
  ),
  "pooled key and value": (
    "siglip",
    _swap(f"{MAP_HEAD}/key/kernel", f"{MAP_HEAD}/value/kernel"),
  ),
  "image activation": ("siglip", _say("image", activation="gelu_tanh")),
  "text activation": ("vit_tanh", _say("text", activation="gelu")),
  "image epsilon": ("siglip", _say("image", norm_epsilon=1e-5)),
  "text pooling": ("custom_text", _say("text", pooling="argmax")),
  "mask": ("vit_tanh", _say("text", causal=False)),
  "norm before the mean": ("clipa", _say("image", norm_after_pool=False)),
  "BERT's epsilon": ("timm_bert_mean", _say("text", norm_epsilon=1e-6)),
  "BERT's padding": ("timm_bert_mean", _say("text", pad_id=3)),
}


QUICK = ("query and key", "image activation", "BERT's epsilon", "text pooling")


@pytest.mark.parametrize("name", _marked(MUTATIONS, QUICK))
def test_a_mutation_is_far_above_the_bar(
  make, golden, outputs, difference, name
):
  case, mutate = MUTATIONS[name]
  model = mutate(convert.open_model(make(case)))
  got = outputs(model, *GOLDEN.inputs(GOLDEN.CASES[case]))
  assert _worst(golden, difference, got, case) > 1e4 * BAR


@pytest.mark.parametrize("case", _marked(DIALECTS, ("siglip",)))
def test_open_clip_loads_what_is_written_strictly(
  make, library, golden, difference, tmp_path, case
):
  convert.convert(make(case), tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "out", to="open-clip")
  model = GOLDEN.load(library, tmp_path / "out")
  got = GOLDEN.outputs(model, *GOLDEN.inputs(GOLDEN.CASES[case]))
  assert _worst(golden, difference, got, case) < BAR


@pytest.mark.parametrize("case", ["vit_quick_gelu", "siglip"])
def test_verification_passes_against_open_clip(library, make, case, tmp_path):
  del library  # Its import is what the oracle finds.
  source = make(case)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  found = verification.verify(source, tmp_path / "ours", double=True)
  assert found.passed and found.library.startswith("open_clip")
  stages = [row.stage for row in found.rows]
  assert "image block 1" in stages and stages[-1] == "logits"


@pytest.mark.parametrize("bare", [False, True])
def test_verification_lays_other_names_out_for_open_clip(
  library, make, bare, tmp_path
):
  source = make("custom_text")
  config = source / "model.json"
  written = json.loads((source / open_clip.CONFIG).read_text())
  config.write_text(json.dumps(written["model_cfg"]))
  (source / open_clip.CONFIG).unlink()
  weights = (source / open_clip.WEIGHTS).rename(source / "mine.safetensors")
  options = Options(config=str(config)) if bare else Options()
  source = weights if bare else source
  convert.convert(source, tmp_path / "ours", to="clip-jax", options=options)
  found = verification.verify(
    source, tmp_path / "ours", double=True, options=options
  )
  assert found.passed and found.library.startswith("open_clip")


def test_the_golden_shapes_are_open_clips(library, golden):
  case = "siglip_tanh"
  shapes = GOLDEN.shapes(library, GOLDEN.CASES[case])
  assert shapes == json.loads(str(golden[f"{case}/shapes"]))


def test_float32_is_as_near_as_float32_can_be(make, golden, difference):
  import jax

  case = "siglip"
  model = convert.open_model(make(case))
  images, tokens = GOLDEN.inputs(GOLDEN.CASES[case])
  module = variants.create_model(model.spec)
  out = jax.jit(module.apply)(
    model.variables(), images.astype(np.float32), tokens.astype(np.int32)
  )
  # Two layers with activations far from 0: a few roundings of 6e-8.
  assert difference(out.image_embeds, golden[f"{case}/image"]) < 5e-6
  assert difference(out.text_embeds, golden[f"{case}/text"]) < 5e-6


def _shipped():
  return json.loads(GOLDEN.SHIPPED.read_text())


def _describe(model_cfg):
  return open_clip_config.describe(
    {"model_cfg": model_cfg},
    SourceReading("x", "open-clip"),
    bert_config=lambda name: open_clip_named.BERTS.get(name) or {}[name],
    name="x",
  )


def _check_shipped(name):
  """Compares names and shapes, both ways, allocating nothing."""
  entry = _shipped()[name]
  described = _describe(entry["model_cfg"])
  spec = variants.spec({**described.spec, "tokenizer": {"kind": "clip_bpe"}})
  entries = open_clip.entries(spec, open_clip._layout(described, {}))
  shapes = engine.leaf_shapes(spec)
  engine.check_cover(entries, shapes)
  theirs = {e.name: list(engine.their_shape(e, shapes)) for e in entries}
  for key in openai_names.running_counts(theirs):
    theirs[key] = []
  assert GOLDEN.digest(theirs) == entry["digest"]
  assert not open_clip_config.refusals(spec)


BIG = (
  "ViT-H-14",
  "ViT-g-14",
  "ViT-bigG-14",
  "ViT-SO400M-14-SigLIP-384",
  "ViT-gopt-16-SigLIP2-384",
)


@pytest.mark.parametrize("name", _marked(BIG, ("ViT-H-14", BIG[-1])))
def test_a_large_models_names_and_shapes_are_open_clips(name):
  _check_shipped(name)


# Shipped models that are not held, and the field that says so.
REFUSED = {
  "multimodal_cfg": ("coca_",),
  "ls_init_value": ("ViT-M-16-alt",),
  "hf_model_name": ("roberta", "xlm", "mt5", "nllb"),
  "timm": (
    "EVA",
    "MobileCLIP-",
    "MobileCLIP2-B",
    "MobileCLIP2-S",
    "PE-",
    "ViTamin",
    "conv",
    "swin",
    "vit_medium",
    "vit_relpos",
  ),
}


def _refused(name):
  for field, starts in REFUSED.items():
    if name.startswith(starts):
      return field
  return None


def test_what_open_clip_ships_is_held_or_refused_by_name():
  held = 0
  for name, entry in _shipped().items():
    field = _refused(name)
    if field is None:
      described = _describe(entry["model_cfg"])
      held += 1
      assert described.spec["embed_dim"] == entry["model_cfg"]["embed_dim"]
    elif field == "hf_model_name":
      with pytest.raises((errors.UserError, KeyError)):
        _describe(entry["model_cfg"])
    else:
      with pytest.raises(errors.UserError, match=field):
        _describe(entry["model_cfg"])
  assert held >= 80


@pytest.mark.slow
def test_every_shipped_model_that_is_held_has_open_clips_names_and_shapes():
  for name in _shipped():
    if _refused(name) is None:
      _check_shipped(name)


def test_an_older_checkpoint_of_a_custom_model_keeps_its_names(
  make, golden, tmp_path
):
  """open_clip moves the text tower's names itself (`text.` was not there)."""
  source = make("custom_text")
  tensors = safetensors_file.read(source / open_clip.WEIGHTS).tensors
  tensors = {key.removeprefix("text."): value for key, value in tensors.items()}
  old = tmp_path / "old"
  GOLDEN.write_config(GOLDEN.CASES["custom_text"], old)
  safetensors_file.write(old / open_clip.WEIGHTS, tensors)
  new, old_model = (convert.open_model(path) for path in (source, old))
  assert old_model.spec == new.spec
  for path, leaf in new.leaves.items():
    assert np.array_equal(old_model.leaves[path].read(), leaf.read()), path
  convert.convert(old, tmp_path / "back", to="open-clip")
  _same_tensors(tmp_path / "back" / open_clip.WEIGHTS, old / open_clip.WEIGHTS)


def test_open_clip_loads_what_was_trained_here(
  library, outputs, difference, tmp_path
):
  spec = variants.spec("tiny-vit", {"image": {"depth": 1}})
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
  tokens = np.array([[49406, 320, 49407, 0], [49406, 49407, 0, 0]])
  tokens = np.pad(tokens, ((0, 0), (0, 12)))
  shapes = engine.leaf_shapes(spec)
  leaves = {
    path: Tensor.from_array(GOLDEN.fill(path, shape))
    for path, shape in shapes.items()
  }
  model = Portable(
    spec=spec, leaves=leaves, report=report_lib.Report("workdir")
  )
  open_clip.write(model, tmp_path / "out")
  theirs = GOLDEN.load(library, tmp_path / "out")
  wanted = GOLDEN.outputs(theirs, images, tokens)
  for got, want in zip(outputs(model, images, tokens), wanted, strict=True):
    assert difference(got, want) < BAR


TEXTS = (
  "A red circle",
  "circles &amp; Dogs!",
  "snow_leopard,  a\tdog",
  "",
  "a " * 30,
)


@pytest.mark.parametrize(
  "arguments",
  [None, {"clean": "canonicalize"}, {"clean": "whitespace"}],
)
def test_clips_tokenizer_gives_open_clips_ids(library, tmp_path, arguments):
  model_cfg = json.loads(json.dumps(GOLDEN.CASES["vit_gelu"]))
  if arguments:
    model_cfg["text_cfg"]["tokenizer_kwargs"] = arguments
  GOLDEN.write_config(model_cfg, tmp_path)
  _check_ids(library, tmp_path, model_cfg)


def _check_ids(library, directory, model_cfg):
  theirs = library.get_tokenizer(f"local-dir:{directory}")
  described = _describe(model_cfg)
  source = open_clip_files.Files({}, "", directory, (), (directory,))
  files, fields = open_clip._tokenizer(described, source, SourceReading("x"))
  length = model_cfg["text_cfg"]["context_length"]
  ours = tokenizer.make_tokenizer(
    **fields, context_length=length, contents=files
  )
  assert ours(TEXTS).tolist() == theirs(list(TEXTS)).tolist()


@pytest.mark.parametrize("strip", [False, True])
def test_berts_tokenizer_gives_open_clips_ids(library, tmp_path, strip):
  model_cfg = json.loads(json.dumps(GOLDEN.CASES["vit_gelu"]))
  model_cfg["text_cfg"] |= {
    "hf_tokenizer_name": "bert-base-uncased",
    "tokenizer_kwargs": {"strip_sep_token": strip},
  }
  GOLDEN.write_config(model_cfg, tmp_path)
  GOLDEN.write_bert(tmp_path)
  _check_ids(library, tmp_path, model_cfg)


@pytest.mark.parametrize("pad_id", [0, 1])
def test_a_tokenizer_json_gives_open_clips_ids(library, tmp_path, pad_id):
  import tokenizers

  words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "dog", "circles"]
  engine_ = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token="<unk>"
    )
  )
  engine_.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  engine_.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  engine_.save(str(tmp_path / "tokenizer.json"))
  # SigLIP pads with its end token, SigLIP 2 with a token of its own.
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "</s>",
    "pad_token": words[pad_id],
    "unk_token": "<unk>",
  }
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  model_cfg = json.loads(json.dumps(GOLDEN.CASES["vit_gelu"]))
  model_cfg["text_cfg"] |= {
    "hf_tokenizer_name": "x/y",
    "tokenizer_kwargs": {"clean": "canonicalize"},
  }
  GOLDEN.write_config(model_cfg, tmp_path)
  _check_ids(library, tmp_path, model_cfg)


@pytest.mark.parametrize("case", ["vit_quick_gelu", "siglip"])
def test_what_goes_by_huggingface_comes_back_with_every_bit(
  make, tmp_path, case, monkeypatch
):
  # These towers know fewer words than CLIP's tokenizer has.
  monkeypatch.setattr(tokenizer_files, "check_ids", lambda *arguments: None)
  source = make(case)
  for step, to in (("a", "huggingface"), ("b", "clip-jax"), ("c", "open-clip")):
    convert.convert(source, tmp_path / step, to=to)
    source = tmp_path / step
  _same_tensors(
    source / open_clip.WEIGHTS, tmp_path / "source" / open_clip.WEIGHTS
  )


def test_another_image_size_makes_another_config(make, tmp_path):
  options = Options(image_size=30, resize_method="bicubic_antialias")
  source = make("vit_tanh")
  convert.convert(source, tmp_path / "out", to="open-clip", options=options)
  config = json.loads((tmp_path / "out" / open_clip.CONFIG).read_text())
  assert config["model_cfg"]["vision_cfg"]["image_size"] == 30
  tensors = safetensors_file.read(tmp_path / "out" / open_clip.WEIGHTS).tensors
  assert tensors["visual.positional_embedding"].shape == (37, 48)


def test_headers_say_all_that_a_dry_run_needs(make):
  source = make("siglip")
  path = source / open_clip.WEIGHTS
  size = path.stat().st_size
  header = int.from_bytes(path.read_bytes()[:8], "little") + 8
  # The data are gone, their room is there.
  with open(path, "r+b") as file:
    file.truncate(header)
    file.truncate(size)
  options = Options(headers_only=True)
  report = convert.convert(source, "unused", to="clip-jax", options=options)
  assert report.mapped == report.tensors
