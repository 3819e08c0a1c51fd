"""A dual encoder from two towers that were trained apart."""

import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import numpy as safetensors_numpy

from clip_jax import config as config_lib
from clip_jax import convert, errors, loading
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.config import schema
from clip_jax.convert.portable import Portable
from clip_jax.convert.report import Report
from clip_jax.convert.tensor import Tensor
from clip_jax.data import sources
from clip_jax.doctor import learning
from clip_jax.models import variants
from clip_jax.plan import jobs, topology
from clip_jax.train import loop
from clip_jax.train import origins as origins_lib

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "vit_bert.py"
WORDS = (
  "a photo of the number zero one two three four five six seven eight nine"
)
WIDTH, PATCH, SIZE, DEPTH = 64, 8, 16, 3


def _timm_tensors():
  """A Vision Transformer under timm's names, as timm initialises none."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(0, 0.1, shape).astype(np.float32)

  tensors = {
    "cls_token": normal(1, 1, WIDTH),
    "pos_embed": normal(1, (SIZE // PATCH) ** 2 + 1, WIDTH),
    "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": normal(WIDTH),
    "norm.weight": 1 + normal(WIDTH),
    "norm.bias": normal(WIDTH),
  }
  for i in range(DEPTH):
    for name, (out, inside) in {
      "attn.qkv": (3 * WIDTH, WIDTH),
      "attn.proj": (WIDTH, WIDTH),
      "mlp.fc1": (4 * WIDTH, WIDTH),
      "mlp.fc2": (WIDTH, 4 * WIDTH),
    }.items():
      tensors[f"blocks.{i}.{name}.weight"] = normal(out, inside)
      tensors[f"blocks.{i}.{name}.bias"] = normal(out)
    for name in ("norm1", "norm2"):
      tensors[f"blocks.{i}.{name}.weight"] = 1 + normal(WIDTH)
      tensors[f"blocks.{i}.{name}.bias"] = normal(WIDTH)
  return tensors


def _write_text_tower(path):
  """A BERT as sentence-transformers keeps it."""
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS.split()]
  torch.manual_seed(0)
  bert = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=len(words),
      hidden_size=24,
      num_hidden_layers=2,
      num_attention_heads=3,
      intermediate_size=40,
      max_position_embeddings=20,
    )
  )
  bert.save_pretrained(path)
  (path / "vocab.txt").write_text("\n".join(words) + "\n")
  (path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
  modules = [
    {"idx": 0, "name": "0", "path": "", "type": "st.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "st.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_N", "type": "st.models.Normalize"},
  ]
  (path / "modules.json").write_text(json.dumps(modules))
  (path / "1_Pooling").mkdir()
  pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
  (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
  settings = {"max_seq_length": 14, "do_lower_case": False}
  (path / "sentence_bert_config.json").write_text(json.dumps(settings))


def _write_flickr(path):
  """Real scans in Flickr8k's layout: captions.txt beside Images/."""
  (path / "Images").mkdir(parents=True)
  source = sources.open_source("builtin:two_digits/train")
  lines = ["image,caption"]
  for i in range(40):
    record = source[i]
    (path / "Images" / f"{i}.png").write_bytes(record.image)
    lines += [f"{i}.png,{text}" for text in record.texts[:2]]
  (path / "captions.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  room = tmp_path_factory.mktemp("towers with a space")
  _write_flickr(room / "flickr")
  (room / "text").mkdir()
  _write_text_tower(room / "text")
  (room / "image").mkdir()
  safetensors_numpy.save_file(
    _timm_tensors(), room / "image" / "model.safetensors"
  )
  sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH}
  sizes |= {"depth": DEPTH, "num_heads": 4}
  config = {"architecture": "vit_base_patch16_224", "model_args": sizes}
  config["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
  (room / "image" / "config.json").write_text(json.dumps(config))
  return room


def _config(room, **fields):
  changes = {
    "data.train": f"csv:{room / 'flickr' / 'captions.txt'}",
    "init.image": str(room / "image"),
    "init.text": str(room / "text"),
    "model_overrides.embed_dim": 20,
    "batch_size": 8,
    "steps": 4,
    "precision": "float32",
    "optim.peak_lr": 1e-2,
    "optim.warmup_steps": 1,
    "checkpoint.every_steps": 2,
    "log_every_steps": 1,
  }
  changes |= fields
  return config_lib.load(CONFIG, [f"{k}={v}" for k, v in changes.items()])


def _params(workdir, step=None):
  return workdir_lib.load_model(workdir, step=step).variables["params"]


@pytest.fixture(scope="module")
def locked(room):
  loop.train(_config(room), room / "locked run")
  return room / "locked run"


def test_a_locked_tower_stays_bit_for_bit_and_the_other_learns(room, locked):
  params = _params(locked)
  image = convert.open_model(room / "image").variables()["params"]["image"]
  text = convert.open_model(room / "text").variables()["params"]["text"]
  np.testing.assert_array_equal(
    params["image"]["patch_kernel"], image["patch_kernel"]
  )
  blocks = (tree["encoder"]["blocks"] for tree in (params["image"], image))
  got, want = (tree["attention"]["query"]["kernel"] for tree in blocks)
  np.testing.assert_array_equal(got, want)
  moved = params["text"]["token_embedding"]["embedding"]
  began = text["token_embedding"]["embedding"]
  # Near, for it began there; not equal, for it learns.
  assert 0 < np.abs(np.asarray(moved) - began).max() < 0.2


def test_the_last_layers_alone_can_be_free(room, tmp_path):
  frozen = r"^image/(?!encoder/blocks/2/)"
  loop.train(_config(room, **{"optim.frozen": frozen}), tmp_path / "run")
  got = _params(tmp_path / "run")["image"]
  want = convert.open_model(room / "image").variables()["params"]["image"]
  got, want = (
    np.asarray(x["encoder"]["blocks"]["mlp"]["fc_in"]["kernel"])
    for x in (got, want)
  )
  np.testing.assert_array_equal(got[:2], want[:2])
  assert np.abs(got[2] - want[2]).max() > 1e-4


def test_free_towers_begin_at_their_checkpoints(room, tmp_path):
  fields = {"optim.frozen": "", "optim.peak_lr": 1e-12, "steps": 1}
  loop.train(_config(room, **fields), tmp_path / "run")
  params = _params(tmp_path / "run")
  for part in ("image", "text"):
    want = convert.open_model(room / part).variables()["params"][part]
    got = params[part]["encoder"]["blocks"]["ln_1"]["scale"]
    np.testing.assert_allclose(
      got, want["encoder"]["blocks"]["ln_1"]["scale"], atol=1e-9
    )


def test_the_workdir_needs_no_origin_any_more(room, locked, tmp_path):
  """It loads, resumes and converts with the towers' directories gone."""
  clip = loading.load(locked)
  want = clip.encode_text(["a photo of the number two"])
  for part in ("image", "text"):
    (room / part).rename(tmp_path / part)
  try:
    again = loading.load(locked)
    got = again.encode_text(["a photo of the number two"])
    np.testing.assert_array_equal(got, want)
    summary = loop.train(_config(room), locked)
    assert summary.steps == 4
    convert.convert(locked, tmp_path / "model", to="clip-jax")
    exported = loading.load(tmp_path / "model")
    got = exported.encode_text(["a photo of the number two"])
    np.testing.assert_allclose(got, want, atol=1e-6)
    image = Image.open(room / "flickr" / "Images" / "0.png")
    np.testing.assert_allclose(
      exported.encode_image(image), clip.encode_image(image), atol=1e-6
    )
  finally:
    for part in ("image", "text"):
      (tmp_path / part).rename(room / part)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"init.image": "nowhere"}, "init.image: .*does not exist"),
    ({"init.image": ""}, "give init.model, or both"),
    ({"init.model": "runs/x"}, "not both"),
    ({"optim.frozen": "^imge/"}, "freezes no parameter"),
    ({"model": "ViT-B-32"}, "does not fit the config.s model: .*image.depth=3"),
  ],
)
def test_what_cannot_begin_says_why_and_claims_nothing(
  room, tmp_path, fields, message
):
  with pytest.raises(errors.UserError, match=message):
    loop.train(_config(room, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_tower_that_does_not_say_what_it_is_stays_ambiguous(room, tmp_path):
  plain = tmp_path / "plain"
  shutil.copytree(room / "text", plain)
  (plain / "modules.json").unlink()  # A BERT, and no sentence-transformer.
  config = _config(room, **{"init.text": str(plain)})
  with pytest.raises(errors.AmbiguousError, match=r"init\.text: .*--pooling"):
    loop.train(config, tmp_path / "run")


def test_a_tower_in_the_wrong_place_is_named(room, tmp_path):
  with pytest.raises(errors.UserError, match="holds the text tower alone"):
    loop.train(
      _config(room, **{"init.image": str(room / "text")}), tmp_path / "run"
    )


def test_a_whole_model_begins_where_another_run_ended(room, locked, tmp_path):
  fields = {"init.image": "", "init.text": "", "init.model": str(locked)}
  fields |= {"steps": 1, "optim.peak_lr": 1e-12, "optim.frozen": ""}
  loop.train(_config(room, **fields), tmp_path / "run")
  got, want = _params(tmp_path / "run"), _params(locked)
  for part in ("image_projection", "text_projection"):
    np.testing.assert_allclose(
      got[part]["kernel"], want[part]["kernel"], atol=1e-9
    )


def _small_config(**fields):
  """A config with a small model, of which nothing is made here."""
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides = {"embed_dim": 12, "text": {"width": 16}}
  config.update_from_flattened_dict(fields)
  return config


def _settle(config, stored, origins):
  """Settles a config that tests go on changing."""
  frozen = schema.freeze(config.to_dict())
  return origins_lib.settle(frozen, stored, origins)


def _origins(config, *parts, leaves=None):
  """What `open_sources` gives for the config's own model, without arrays."""
  spec = variants.spec(config.model, config.model_overrides.to_dict())
  report = Report("a test")
  return {part: Portable(spec, leaves or {}, report) for part in parts}


@pytest.mark.parametrize(
  ("fields", "flags"),
  [
    ({"image": {"image_size": 96}}, "--image-size 96 --resize-method"),
    ({"text": {"context_length": 99}}, "--context-length 99"),
  ],
)
def test_another_size_names_what_makes_a_checkpoint_of_it(fields, flags):
  config = _small_config(**{"init.model": "runs/small"})
  origins = _origins(config, "model")
  config.model_overrides.update(fields)
  with pytest.raises(
    errors.UserError, match="`clip-jax convert runs/small"
  ) as raised:
    _settle(config, None, origins)
  assert flags in str(raised.value)
  config.model_overrides.update({"text": {"depth": 3}})  # No flag changes it.
  with pytest.raises(errors.UserError, match=r"text.depth=") as raised:
    _settle(config, None, origins)
  assert "clip-jax convert" not in str(raised.value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"embed_dim": 24}, r"embed_dim=12 \(not 24\)"),
    ({"init_logit_bias": -10.0}, r"init_logit_bias=None \(not -10.0\)"),
    ({"text_projection": "linear_bias"}, "text_projection='linear'"),
    ({"embed_norm": "l2_plus_1e-8"}, "embed_norm='l2'"),
    ({"image_mean": (0.5, 0.5, 0.5)}, r"image_mean=\[0.48"),
    ({"crop_rounding": "floor"}, "crop_rounding='round'"),
    (
      {"tokenizer": {"cleaning": "canonicalize"}},
      r"tokenizer.cleaning='clip' \(not 'canonicalize'\)",
    ),
  ],
)
def test_what_a_whole_model_rests_on_must_agree(fields, message):
  """Nothing crashes later, and nothing is prepared otherwise in silence."""
  config = _small_config()
  origins = _origins(config, "model")
  _settle(config, None, origins)
  config.model_overrides.update(fields)
  with pytest.raises(errors.UserError, match=message) as raised:
    _settle(config, None, origins)
  assert "Set these in model_overrides" in str(raised.value)


@pytest.mark.parametrize(
  ("part", "mean", "cleaning"),
  [("image", 0.5, "clip"), ("text", 0.25, "canonicalize")],
)
def test_a_tower_brings_what_feeds_it_and_no_more(part, mean, cleaning):
  source = _small_config()
  source.model_overrides.update(
    {"image_mean": (0.5, 0.5, 0.5), "tokenizer": {"cleaning": "canonicalize"}}
  )
  config = _small_config(**{f"init.{part}": "a checkpoint"})
  if part == "text":
    config.model_overrides.image_mean = (0.25, 0.25, 0.25)
  settled = _settle(config, None, _origins(source, part))
  got = variants.spec(settled.model, settled.model_overrides)
  assert list(got["image_mean"]) == [mean] * 3
  assert got["tokenizer"]["cleaning"] == cleaning


def test_tokenizers_are_compared_with_their_defaults_filled_in():
  config = _small_config()
  origins = _origins(config, "model")
  config.model_overrides.tokenizer = {"kind": "clip_bpe", "pad_id": 0}
  _settle(config, None, origins)


def test_from_init_may_be_prepared_for_otherwise_but_not_shaped():
  origins = _origins(_small_config(), "model")
  config = _small_config(model="from_init")
  config.model_overrides = {"image_mean": (0.5, 0.5, 0.5)}
  settled = _settle(config, None, origins)
  assert list(settled.model_overrides["image_mean"]) == [0.5] * 3
  config.model_overrides = {"embed_dim": 24}
  with pytest.raises(errors.UserError, match="Take these out of model_over"):
    _settle(config, None, origins)


def test_a_resnet_from_init_ends_in_its_own_space():
  origins = _origins(_small_config(), "image", "text")
  config = _small_config(model="from_init")
  config.model_overrides = {}
  settled = _settle(config, None, origins)
  assert settled.model_overrides["embed_dim"] == 12


@pytest.mark.parametrize(
  ("scale", "frozen", "warned"),
  [
    (150.0, "", True),
    (150.0, "^log_scale$", False),
    (100.0, "", False),
  ],
)
def test_a_temperature_that_will_be_clipped_is_announced(
  caplog, scale, frozen, warned
):
  config = _small_config(**{"optim.frozen": frozen})
  array = np.float16(np.log(scale))  # Half precision rounds log(100) up.
  leaf = Tensor.from_array(np.asarray(array))
  origins = _origins(config, "model", leaves={"params/log_scale": leaf})
  state = state_lib.TrainState(
    step=0,
    params={"log_scale": jnp.zeros(()), "text": jnp.ones(3)},
    batch_stats={},
    opt_state=(),
    skipped=0,
  )
  with caplog.at_level(logging.WARNING):
    state = origins_lib.load(
      state,
      origins,
      init=config.init,
      max_logit_scale=100.0,
      frozen=frozen,
    )
  assert ("first step clips it" in caplog.text) == warned
  assert float(state.params["log_scale"]) == float(array)


def test_a_run_cannot_go_on_with_other_parameters_frozen(tmp_path):
  origins_lib.check_goes_on(
    tmp_path, _small_config().optim
  )  # Nothing is there.
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  fields = {"optim.frozen": "^image/", "data.train": "builtin:two_digits/train"}
  fields["steps"] = 2
  before = _small_config(**fields)
  (tmp_path / "config.json").write_text(config_lib.to_json(before))
  origins_lib.check_goes_on(tmp_path, before.optim)
  message = r"optim.frozen='\^image/', and its.*new workdir; init.model="
  with pytest.raises(errors.UserError, match=message):
    origins_lib.check_goes_on(tmp_path, _small_config().optim)


TINY = {"batch_size": 8, "steps": 1, "optim.frozen": "", "model": "tiny-vit"}


def test_a_pretrained_text_tower_stands_beside_a_variants_image_tower(
  room, tmp_path
):
  """Nothing of text or tokenizer is typed; the run goes on without origin."""
  kept, run = tmp_path / "kept", tmp_path / "run"
  shutil.copytree(room / "text", kept)
  fields = {**TINY, "init.image": "", "init.text": str(kept)}
  fields["optim.frozen"] = "^text/"
  loop.train(_config(room, **fields), run)
  clip = loading.load(run)
  assert clip.tokenizer.kind == "wordpiece"
  assert clip.module.text.depth == 2
  assert clip.module.image.patch_size == 8  # Of tiny-vit.
  got = _params(run)["text"]["token_embedding"]["embedding"]
  want = convert.open_model(kept).variables()["params"]["text"]
  np.testing.assert_array_equal(got, want["token_embedding"]["embedding"])
  shutil.rmtree(kept)
  assert loop.train(_config(room, **fields), run).steps_now == 0
  other = _config(room, **{**fields, "model": "tiny-rn"})
  with pytest.raises(errors.UserError, match="model: 'tiny-vit' -> 'tiny-rn'"):
    loop.train(other, run)


def test_a_pretrained_image_tower_stands_beside_a_variants_text_tower(
  room, tmp_path
):
  config = _config(room, **{**TINY, "init.text": ""})
  settled, origins = origins_lib.begin(config, tmp_path / "run")
  spec = variants.spec(settled.model, settled.model_overrides)
  assert spec["tokenizer"]["kind"] == "clip_bpe"
  assert (spec["image"]["depth"], spec["image"]["image_size"]) == (DEPTH, SIZE)
  assert list(spec["image_mean"]) == [0.5] * 3  # As the tower was trained.
  assert spec["embed_dim"] == 20  # Typed in model_overrides.
  assert list(origins) == ["image"]


def test_one_tower_keeps_nothing_of_the_one_whose_place_it_takes():
  """Not a field of the tokenizer, and no projection that fitted that one."""
  bert = _small_config()
  bert.model_overrides = {
    "text": {"kind": "bert", "width": 24},
    "tokenizer": {
      "kind": "wordpiece",
      **{"cleaning": "none", "lowercase": True, "file": "vocab.txt"},
      **{"pad_id": 0, "start_id": 1, "end_id": 2},
    },
  }
  config = _small_config(
    **{"model": "ViT-B-16-SigLIP", "init.text": "a checkpoint"}
  )
  config.model_overrides = {}
  settled = _settle(config, None, _origins(bert, "text"))
  spec = variants.spec(settled.model, settled.model_overrides)
  assert spec["text"]["kind"] == "bert"
  assert spec["tokenizer"]["kind"] == "wordpiece"
  assert spec["tokenizer"]["cleaning"] == "none"
  assert (spec["image_projection"], spec["text_projection"]) == (
    "none",
    "linear",
  )
  assert (spec["init_logit_bias"], settled.loss.kind) == (-10.0, "softmax")


@pytest.mark.parametrize(
  ("bias", "kind"), [(None, "softmax"), (-10.0, "sigmoid")]
)
def test_the_loss_is_the_models_own_where_it_is_left_open(bias, kind):
  config = _small_config(**{"loss.kind": "auto"})
  config.model_overrides.init_logit_bias = bias
  assert _settle(config, None, {}).loss.kind == kind


def test_a_mixed_model_can_be_planned_and_examined(room):
  where = topology.make_topology("local")
  fields = {**TINY, "init.image": "", "optim.frozen": "^text/"}
  job = jobs.make_job(_config(room, **fields), where, caption_tokens=9)
  assert job.model.text.depth == 2
  setup = learning.prepare(_config(room, **fields))
  assert setup.run.tokenizer.kind == "wordpiece"
