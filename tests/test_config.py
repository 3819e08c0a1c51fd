"""The schema checks every field, and JSON keeps every field."""

import ast
import dataclasses
import pathlib
import re
import textwrap

import pytest

from clip_jax import config as config_lib
from clip_jax import errors, names
from clip_jax.evals import probabilities
from clip_jax.models import layers
from clip_jax.train import optim

PACKAGE = pathlib.Path(config_lib.__file__).parents[1]
CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def _valid():
  config = config_lib.default_config()
  config.data.train = "builtin:digits/train"
  config.steps = 7
  config.evals.seen = {"data": "builtin:digits/test"}
  config.model_overrides.image = {"depth": 3}
  return config


def _write(tmp_path, body):
  path = tmp_path / "a config.py"
  path.write_text(textwrap.dedent(body))
  return path


HEAD = """
from clip_jax import config as config_lib
def get_config():
  config = config_lib.default_config()
  config.data.train = "builtin:digits/train"
  config.steps = 7
"""


def test_the_length_that_is_typed_last_decides():
  config = _valid()
  config_lib.apply_override(config, "epochs=2")
  assert config_lib.check(config).epochs == 2 and config.steps is None
  config_lib.apply_override(config, "steps=3")
  assert config_lib.check(config).steps == 3 and config.epochs is None


def test_json_keeps_every_field():
  config = _valid()
  config.optim.beta2 = 0.75
  text = config_lib.to_json(config)
  again = config_lib.from_json(text)
  assert config_lib.to_json(again) == text
  assert not config_lib.differences(config, again)


def test_a_checked_config_is_typed_and_frozen():
  config = config_lib.check(_valid())
  assert config_lib.check(config) == config
  assert config.optim == config_lib.Optim()
  assert config.model_overrides == {"image": {"depth": 3}}
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.loss.kind = "sigmoid"


def test_differences_name_the_field_and_both_values():
  other = _valid()
  other.optim.peak_lr = 0.25
  assert config_lib.differences(_valid(), other) == {
    "optim.peak_lr": (5e-4, 0.25)
  }


@pytest.mark.parametrize(
  ("override", "path", "value"),
  [
    ("optim.peak_lr=1e-3", ("optim", "peak_lr"), 1e-3),
    ("batch_size=1e3", ("batch_size",), 1000),
    ("evals.seen.task=retrieval", ("evals", "seen", "task"), "retrieval"),
    ("evals.new.data=folder:a=b", ("evals", "new", "data"), "folder:a=b"),
    ("model_overrides.text.depth=5", ("model_overrides", "text", "depth"), 5),
    (
      "model_overrides.image.scan=False",
      ("model_overrides", "image", "scan"),
      False,
    ),
    ("steps=9", ("steps",), 9),
  ],
)
def test_an_override_sets_the_field_with_its_type(override, path, value):
  config = _valid()
  config_lib.apply_override(config, override)
  for name in path:
    config = config[name]
  assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("optim.peek_lr=1", "Did you mean 'optim.peak_lr'"),
    ("batch_size=1.5", "batch_size takes int, got '1.5'"),
    ("batch_size=many", "batch_size takes int, got 'many'"),
    ("augment.scale=(0.4,1.0)", "It is one number .below 1: the least share"),
    ("augment.ratio=[0.75, 1.33]", "It is one number .largest ratio"),
    ("augment.hue=-0.1,0.1", "It is one number .most that it turns"),
    ("augment.flip=true", "It is one number .probability that an image is"),
    ("data.max_pixels=None", "takes int, got 'None'. Leave it out"),
    (
      "model_overrides.image_mean=(0.5, 0.5, 0.5)",
      r"takes JSON: write \[0.5, 0.5, 0.5\] in place of",
    ),
    ("model_overrides.init_logit_scale=.5", "takes JSON: write 0.5 in"),
    ("batch_size=0", "batch_size=0 is not allowed"),
    ("steps", "has no value"),
    ("steps=1e400", "steps takes int, got '1e400'"),
    ("precision=fp16", "one of bfloat16, float32, float64"),
    ("loss.kind=sofmax", "must be one of auto, sigmoid, softmax"),
    ("mesh.data=0", "mesh.data=0 is not allowed"),
    ("optim.beta2=1.0", "at least 0 and less than 1"),
    ("optim.ema_decay=1.0", "at least 0 and less than 1"),
    ("optim.beta1=1.5", "at least 0 and less than 1"),
    ("evals.seen.tsk=zero_shot", "Did you mean 'task'"),
    ("evals.seen.task=zeroshot", "one of zero_shot, retrieval"),
    ("evals.new.task=retrieval", "evals.new.data=''"),
    ("data.train=", "data.train=''"),
    ("evals.seen.data.x=1", "data holds 'builtin:digits/test', and no fields"),
    ("evals.seen.data.x.y=1", "x.y cannot be set: data holds 'builtin"),
    ("model_overrides.image.depth.x=1", "depth holds 3, and no fields"),
    ("evals..data=builtin:digits/test", "dicts whose keys are names; got"),
    ("model_overrides.__class__=1", "dicts whose keys are names; got"),
    ("model_overrides.init_logit_scale=NaN", "takes what JSON .*; got nan"),
  ],
)
def test_a_wrong_override_is_named(override, message):
  config = _valid()
  with pytest.raises(errors.UserError, match=message):
    config_lib.apply_override(config, override)
    config_lib.check(config)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (HEAD + "  config.stepz = 3\n  return config", "line 7.*'steps'"),
    (HEAD + "  config.optim.peak_lr = 'a'\n  return config", "TypeError"),
    (HEAD + "  return config.to_dict()", "returned dict"),
    (HEAD + "  return confg", "line 7: NameError"),
    ("x = = 1", "line 1: SyntaxError"),
    ("x = 1", "defines no get_config"),
    (HEAD + "  config.evals.seen = 3\n  return config", "evals.seen must be"),
    (HEAD + "  config.steps = True\n  return config", "steps takes int|bool"),
    (HEAD + "  raise SystemExit(0)", "line 7: SystemExit: 0"),
    (HEAD + "  raise KeyError", "line 7: KeyError: $"),
    (HEAD + "  return {}['get_config']", "line 7: KeyError: 'get_config'"),
    (HEAD + "  return type(config)()", "config has no field 'model'; start"),
    (
      HEAD + "  config.evals[1] = {}\n  return config",
      "config.evals takes what",
    ),
    (
      "import numpy" + HEAD + "  config.model_overrides.image_mean = "
      "[numpy.float32(0.5)]\n  return config",
      r"config.model_overrides.image_mean takes what JSON .*; got np.float32",
    ),
  ],
)
@pytest.mark.parametrize("changes", [(), ("optim.peak_lr=1", "evals.a.data=b")])
def test_a_wrong_file_says_where_and_what(tmp_path, body, message, changes):
  path = _write(tmp_path, body)
  with pytest.raises(errors.UserError, match=message) as caught:
    config_lib.load(path, changes)
  assert "a config.py" in str(caught.value) or "config." in str(caught.value)


def test_a_number_is_no_name_of_a_field():
  with pytest.raises(errors.UserError, match="Unknown config field '1'"):
    config_lib.check(type(_valid())({1: 2}))


def test_a_tuple_in_a_file_is_no_change_when_the_run_resumes(tmp_path):
  body = "  config.model_overrides.image_mean = (0.5, 0.25, 0.5)\n"
  config = config_lib.load(_write(tmp_path, f"{HEAD}{body}  return config"))
  again = config_lib.from_json(config_lib.to_json(config))
  assert not config_lib.differences(again, config)


def test_a_frozen_config_takes_changes(tmp_path):
  body = (
    "  import ml_collections\n  return ml_collections.FrozenConfigDict(config)"
  )
  changes = ("optim.peak_lr=0.5", "evals.new.data=a:b", "model_overrides.a=[1]")
  config = config_lib.load(_write(tmp_path, HEAD + body), changes)
  assert config.optim.peak_lr == 0.5 and config.evals["new"] == {"data": "a:b"}


def test_a_missing_file_is_named():
  with pytest.raises(errors.UserError, match=r"'no/such.py' does not exist"):
    config_lib.load("no/such.py")


def test_a_file_may_be_in_the_home_directory(tmp_path, monkeypatch):
  _write(tmp_path, HEAD + "  return config")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert config_lib.load("~/a config.py").steps == 7


def test_a_directory_is_no_config_file(tmp_path):
  with pytest.raises(errors.UserError, match="is not a file"):
    config_lib.load(tmp_path)


@pytest.mark.parametrize(
  "text",
  [
    *("", "[]", '{"stepz": 3}', '{"steps": "x"}', '{"evals": {"a.b": {}}}'),
    '{"model_overrides": {"image": {"__class__": 1}}}',
  ],
)
def test_damaged_json_is_refused(text):
  with pytest.raises(errors.UserError):
    config_lib.from_json(text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
  config = config_lib.load(path, ["data.train=mine:here"])
  assert config.data.train == "mine:here"


@pytest.mark.parametrize("name", ["rn50", "vit_b32"])
def test_a_recipe_for_ones_own_data_asks_for_them(name):
  path = next(path for path in CONFIGS if path.stem == name)
  assert "--config.data.train=" in path.read_text()
  with pytest.raises(errors.UserError, match=r"--config\.data\.train=ADDRESS"):
    config_lib.load(path)


def test_every_field_is_read_somewhere():
  read = set()
  for path in PACKAGE.rglob("*.py"):
    if path.parent.name != "config":
      tree = ast.parse(path.read_text())
      read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
      # optim.beta2 and epsilon are read by name, as optim[name].
      read |= {
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
      }
  unread = [p for p in config_lib.SCHEMA if p.split(".")[-1] not in read]
  unread += [name for name in config_lib.EVAL_SCHEMA if name not in read]
  assert not unread


def test_evaluations_are_removed_all_or_one():
  config = _valid()
  config.evals.other = {"data": "builtin:digits/train"}
  config_lib.apply_override(config, "evals.seen=")
  assert list(config_lib.check(config).evals) == ["other"]
  with pytest.raises(errors.UserError, match="Unknown evaluation 'seen'"):
    config_lib.apply_override(config, "evals.seen=")
  config_lib.apply_override(config, "evals=")
  assert not config_lib.check(config).evals
  config_lib.apply_override(config, "evals.new.data=builtin:digits/test")
  assert list(config_lib.check(config).evals) == ["new"]


@pytest.mark.parametrize(
  ("given", "meant"),
  [("eval.NAME=1", "evals.NAME.*"), ("model_override=1", "model_overrides.*")],
)
def test_an_unknown_field_may_be_meant_for_an_open_one(given, meant):
  with pytest.raises(errors.UserError, match=re.escape(meant)):
    config_lib.apply_override(_valid(), given)


@pytest.mark.parametrize(
  "listed, table",
  [
    (names.ACTIVATIONS, layers.ACTIVATIONS),
    (names.OPTIMIZERS, optim.DIRECTIONS),
    (names.PROBABILITIES, probabilities.KINDS),
  ],
)
def test_the_names_to_choose_from_are_those_of_the_functions(listed, table):
  assert set(listed) == set(table)
