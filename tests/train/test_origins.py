"""A dual encoder from two towers that were trained apart."""

import json
import pathlib
import shutil

import beginnings
import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import numpy as safetensors_numpy

from clip_jax import config as config_lib
from clip_jax import convert, errors, loading
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import sources
from clip_jax.doctor import learning
from clip_jax.models import variants
from clip_jax.plan import jobs, topology
from clip_jax.train import loop
from clip_jax.train import origins as origins_lib
from clip_jax.train import program as program_lib

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


@pytest.mark.slow
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
  begun = _config(room, **{"optim.frozen": ""})
  config, origins = beginnings.begin(begun, tmp_path / "run")
  program = program_lib.make_program(config, devices=jax.devices()[:1])
  state = origins_lib.load(
    program.init_state(),
    origins,
    init=config.init,
    max_logit_scale=None,
    frozen="",
  )
  params = state.params
  for part in ("image", "text"):
    want = convert.open_model(room / part).variables()["params"][part]
    got = params[part]["encoder"]["blocks"]["ln_1"]["scale"]
    np.testing.assert_array_equal(
      got, want["encoder"]["blocks"]["ln_1"]["scale"]
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
  told = r"init\.text: .*has the text tower alone\. Give --pooling"
  with pytest.raises(errors.AmbiguousError, match=told):
    loop.train(config, tmp_path / "run")


def test_a_tower_in_the_wrong_place_is_named(room, tmp_path):
  with pytest.raises(errors.UserError, match="holds the text tower alone"):
    loop.train(
      _config(room, **{"init.image": str(room / "text")}), tmp_path / "run"
    )


@pytest.mark.parametrize("part", ["image", "model"])
def test_what_lacks_the_tower_is_not_asked_what_it_means(room, tmp_path, part):
  plain = tmp_path / "plain"
  shutil.copytree(room / "text", plain)
  (plain / "modules.json").unlink()  # A BERT, and no sentence-transformer.
  fields = {"init.image": "", "init.text": "", f"init.{part}": str(plain)}
  if part == "image":
    fields["init.text"] = str(room / "text")
  with pytest.raises(errors.UserError, match="holds the text tower") as caught:
    loop.train(_config(room, **fields), tmp_path / "run")
  assert not isinstance(caught.value, errors.AmbiguousError)


@pytest.mark.slow
def test_a_whole_model_begins_where_another_run_ended(room, locked, tmp_path):
  fields = {"init.image": "", "init.text": "", "init.model": str(locked)}
  fields |= {"steps": 1, "optim.peak_lr": 1e-12, "optim.frozen": ""}
  loop.train(_config(room, **fields), tmp_path / "run")
  got, want = _params(tmp_path / "run"), _params(locked)
  for part in ("image_projection", "text_projection"):
    np.testing.assert_allclose(
      got[part]["kernel"], want[part]["kernel"], atol=1e-9
    )


TINY = {"batch_size": 8, "steps": 1, "optim.frozen": "", "model": "tiny-vit"}


@pytest.mark.slow
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
  settled, origins = beginnings.begin(config, tmp_path / "run")
  spec = variants.spec(settled.model, settled.model_overrides)
  assert spec["tokenizer"]["kind"] == "clip_bpe"
  assert (spec["image"]["depth"], spec["image"]["image_size"]) == (DEPTH, SIZE)
  assert list(spec["image_mean"]) == [0.5] * 3  # As the tower was trained.
  assert spec["embed_dim"] == 20  # Typed in model_overrides.
  assert list(origins) == ["image"]


def test_a_mixed_model_can_be_planned_and_examined(room):
  where = topology.make_topology("local")
  fields = {**TINY, "init.image": "", "optim.frozen": "^text/"}
  job = jobs.make_job(_config(room, **fields), where, caption_tokens=9)
  assert job.model.text.depth == 2
  setup = learning.prepare(_config(room, **fields))
  assert setup.run.tokenizer.kind == "wordpiece"
