"""What a config and the checkpoints of its parts agree on, without arrays."""

import logging

import beginnings
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.checkpoints import state as state_lib
from clip_jax.config import schema
from clip_jax.convert.portable import Portable
from clip_jax.convert.report import Report
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants
from clip_jax.train import origins as origins_lib


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
  config = _small_config(**{"init.model": "runs/a small"})
  origins = _origins(config, "model")
  config.model_overrides.update(fields)
  with pytest.raises(
    errors.UserError, match="`clip-jax convert 'runs/a small' DEST"
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
  ("bias", "objective", "kind"),
  [
    (None, "contrastive", "softmax"),
    (-10.0, "contrastive", "sigmoid"),
    (-10.0, "bow", "softmax"),  # It compares no pairs.
  ],
)
def test_the_loss_is_the_models_own_where_it_is_left_open(
  bias, objective, kind
):
  config = _small_config(**{"loss.kind": "auto", "objective.kind": objective})
  config.model_overrides.init_logit_bias = bias
  assert _settle(config, None, {}).loss.kind == kind


def test_a_workdir_keeps_where_its_origin_is(tmp_path, monkeypatch):
  fields = {"data.train": "builtin:digits/train", "steps": 1}
  config = _small_config(**fields, **{"init.model": "runs/small"})
  opened = _origins(config, "model")
  config = config_lib.check(config)
  monkeypatch.setattr(origins_lib, "open_sources", lambda *_, **__: opened)
  (tmp_path / "runs" / "small").mkdir(parents=True)
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path)
  begun = beginnings.begin(config, tmp_path / "run")[0]
  assert begun.init.model == str(tmp_path / "runs" / "small")
  # A resume, from wherever, needs it no more.
  monkeypatch.setattr(
    origins_lib.workdir_lib, "holds_checkpoint", lambda _: True
  )
  monkeypatch.setattr(origins_lib.workdir_lib, "load_config", lambda _: begun)
  monkeypatch.setattr(origins_lib, "open_sources", None)
  for folder, given in (
    (".", "runs/small"),
    ("elsewhere", "runs/small"),
    ("elsewhere", "../runs/small"),
    ("elsewhere", str(tmp_path / "runs" / "small")),
  ):
    monkeypatch.chdir(tmp_path / folder)
    again = _small_config(**fields, **{"init.model": given})
    again = config_lib.check(again)
    assert beginnings.begin(again, tmp_path / "run")[0] == begun
  other = origins_lib.origin_paths
  assert not other.is_same(begun.init, config_lib.Init(model="/runs/small"))
  hub = config_lib.Init(text="hf-hub:a/b")
  assert other.whole(hub) == hub
  assert not other.is_same(begun.init, config_lib.Init(model="small2"))
