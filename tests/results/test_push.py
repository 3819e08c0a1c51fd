import json
import os
import pathlib
import signal
import tempfile
import time

import huggingface_hub
import jax
import numpy as np
import pytest

import clip_jax
import hub_stand_in
import model_kinds
from clip_jax import cli, convert, errors
from clip_jax.convert import sameness
from clip_jax.results import card, push, repository

# The hub's library warns of itself where it sends large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:Warning")

_TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """This machine without a hub: no token, nothing in the cache."""
  (tmp_path / "tmp").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
  for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  huggingface_hub.utils.disable_progress_bars()
  yield tmp_path
  huggingface_hub.utils.enable_progress_bars()
  assert not any((tmp_path / "tmp").iterdir())


@pytest.fixture
def online(offline, monkeypatch):
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)


@pytest.fixture
def hub(online, monkeypatch):
  constants = huggingface_hub.constants
  with hub_stand_in.running() as hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield hub


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return model_kinds.clip_directory(tmp_path_factory.mktemp("push") / "model")


@pytest.fixture
def runs(capsys):
  """Runs a command and returns what stdout says."""

  def run(*arguments):
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr().out

  return run


@pytest.fixture
def folder(tmp_path):
  """A small folder, with one file that is large enough for LFS."""
  path = tmp_path / "folder"
  path.mkdir()
  (path / "config.json").write_text("{}")
  (path / "weights.safetensors").write_bytes(bytes(5000))
  (path / "extras.safetensors").write_bytes(b"1" * 6000)
  return path


def same_arrays(a, b):
  jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


@pytest.mark.parametrize(
  "target",
  [
    "clip-jax",
    "open-clip",
    pytest.param("huggingface", marks=pytest.mark.slow),
  ],
)
def test_a_model_comes_back_from_the_hub_bit_by_bit(hub, model, target):
  pushed = push.push(model, "me/mine", to=target, license="mit")
  assert pushed.url == f"{hub.url}/me/mine" and not pushed.private
  assert {file.name for file in pushed.files} == (
    hub.files("me/mine").keys() - {".gitattributes"}
  )
  readme = hub.files("me/mine")["README.md"].decode()
  assert "license: mit" in readme and card.MARK in readme
  assert 'clip_jax.load("hf-hub:me/mine")' in readme
  library = {"huggingface": "transformers", "open-clip": "open_clip"}
  assert f"library_name: {library.get(target, 'clip_jax')}\n" in readme
  ours, theirs = clip_jax.load(model), clip_jax.load(pushed.address)
  assert theirs.path == f"hf-hub:me/mine@{pushed.commit}"
  same_arrays(ours, theirs)
  sameness.check_described(ours.spec, theirs.spec, target)
  texts = ["a cat", "two  dogs!"]  # HuggingFace pads otherwise after them.
  ids = ours.tokenizer(texts)[:, :4]
  np.testing.assert_array_equal(ids, theirs.tokenizer(texts)[:, :4])


def test_a_single_file_of_weights_comes_back_too(hub, model, runs):
  words = ("push", model, "lab/one", "--to", "openai", "--private", "--json")
  pushed = json.loads(runs(*words, "--message", "the first"))
  assert pushed["private"] and pushed["format"] == "openai"
  assert hub.repositories["lab/one"]["message"] == "the first"
  (warning,) = pushed["warnings"]
  assert warning.startswith("model.pt does not say which activation")
  told = convert.Options(activation="quick_gelu", heads=(1, 1))
  again = convert.open_model("hf-hub:lab/one", options=told)
  jax.tree.map(
    np.testing.assert_array_equal,
    convert.open_model(model).variables(),
    again.variables(),
  )


def test_a_dry_run_makes_everything_and_asks_nobody(offline, model, runs):
  said = runs("push", model, "me/mine", "--to=open-clip", "--dry-run")
  for words in ("open_clip_model.safetensors  12.5", "README.md", "--dry-run"):
    assert words in said
  assert "hf-hub:" not in said  # Nothing is there to load.
  assert not (offline / "cache").exists()


def test_somebodys_page_and_other_weights_stay(hub, model):
  hub.repositories["me/mine"] = {
    "private": True,
    "commits": [{"README.md": b"by hand", "old.bin": b"", "a.txt": b""}],
  }
  pushed = push.push(model, "me/mine", private=True)
  assert pushed.private and [x.name for x in pushed.files] == [
    "clip_jax.json",
    "weights.safetensors",
  ]
  assert hub.files("me/mine")["README.md"] == b"by hand"
  page, weights = pushed.warnings
  assert "stays as it is" in page and "old.bin" in weights


def test_what_is_public_is_not_pushed_as_private(hub, model, fails):
  hub.repositories["me/mine"] = {"private": False, "commits": [{}]}
  assert "would hide nothing" in fails("push", model, "me/mine", "--private")
  assert len(hub.repositories["me/mine"]["commits"]) == 1


def test_what_the_format_cannot_hold_makes_no_repository(hub, model, fails):
  error = fails("push", model, "me/mine", "--to", "big-vision")
  assert "cannot hold this model" in error
  assert not hub.repositories


@pytest.mark.parametrize(
  "name", ["mine", "hf-hub:me/mine", "me/a/b", "/x", "me/", "me/a--b", "me/a b"]
)
def test_a_name_has_two_parts(fails, name):
  assert "is called ORG/NAME" in fails("push", "no-model", name)


@pytest.mark.parametrize("to", ["clip-jax", "huggingface"])
def test_without_the_network_or_a_token_nothing_is_begun(
  offline, monkeypatch, fails, to
):
  words = ("push", "no-model", "me/mine", "--to", to)
  assert "HF_HUB_OFFLINE" in fails(*words)
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  assert "hf auth login" in fails(*words)


@pytest.mark.parametrize(
  "endpoint", ["http://127.0.0.1:1", "no-scheme", "http://no host"]
)
def test_an_unreachable_hub_is_told(online, monkeypatch, endpoint):
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
  with pytest.raises(errors.UserError, match="cannot be reached at"):
    repository.Repository("me/mine")


@pytest.mark.parametrize("token, words", [("x", "does not know this token")])
def test_a_wrong_token_is_told(hub, monkeypatch, token, words):
  monkeypatch.setenv("HF_TOKEN", token)
  with pytest.raises(errors.UserError, match=words):
    repository.Repository("me/mine")


def test_a_token_that_only_reads_is_told(hub):
  hub.account["auth"]["accessToken"]["role"] = "read"
  with pytest.raises(errors.UserError, match="may only read"):
    repository.Repository("me/mine")


def test_a_page_that_is_no_hub_is_told(hub):
  hub.account = []
  with pytest.raises(errors.UserError, match="cannot be reached at"):
    repository.Repository("me/mine")


def test_a_name_of_somebody_else_is_told(hub, folder):
  there = repository.Repository("you/new")
  with pytest.raises(errors.UserError, match="me, of lab may not write"):
    there.create(private=False)
  hub.repositories["you/old"] = {"private": False, "commits": [{}]}
  there = repository.Repository("you/old")
  there.create(private=False)
  with pytest.raises(errors.UserError, match=r"This model is not yours"):
    there.upload(folder, message="m")


@pytest.mark.parametrize(
  "request_, fault, words",
  [
    (
      ("POST", "batch"),
      (403, "Storage limit reached."),
      "has no room .*No file",
    ),
    (("POST", "commit"), (413, ""), "has no room .*No file"),
    (("POST", "commit"), (402, "Payment required."), "has no room .*No file"),
    (("POST", "commit"), (401, "Expired."), "may not write"),
    (("POST", "commit"), (409, "Conflict."), "changed by somebody else"),
    (
      ("POST", "commit"),
      (400, "Too \x1b[31mred."),
      "refuses me/mine .*Too red",
    ),
    (("POST", "preupload"), (503, "Down."), "cannot answer now .503: Down"),
    (("POST", "preupload"), (429, "Slower."), "cannot answer now .429"),
    (("POST", "preupload"), (408, ""), "cannot answer now .408.*Run the same"),
    (("PUT", "lfs"), None, "broke off .* Run the same command again"),
    (("POST", "commit"), None, "broke off .* Run the same command again"),
  ],
)
def test_an_upload_that_fails_is_told_and_finished_by_the_next(
  hub, folder, monkeypatch, request_, fault, words
):
  monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Between attempts.
  there = repository.Repository("me/mine")
  there.create(private=False)
  hub.faults[request_] = fault
  with pytest.raises(errors.UserError, match=words) as caught:
    there.upload(folder, message="m")
  assert "Traceback" not in str(caught.value)
  assert hub.files("me/mine").keys() == {".gitattributes"}
  hub.faults.clear()
  hub.asked.clear()
  arrived = len(hub.stored)
  there.upload(folder, message="m")
  assert hub.puts() == 2 - arrived  # The large ones that were missing.
  names = {"config.json", "weights.safetensors", "extras.safetensors"}
  assert hub.files("me/mine").keys() == names | {".gitattributes"}


def test_ctrl_c_during_an_upload_leaves_nothing_behind(hub, model, fails):
  # Two files are sent at once; a second signal would strike pytest itself.
  signals = iter([signal.SIGINT])
  hub.faults["PUT", "lfs"] = lambda: [os.kill(os.getpid(), n) for n in signals]
  said = fails("push", model, "me/mine", code=130)
  assert said.splitlines()[-1] == "Interrupted." and "Traceback" not in said
  assert hub.files("me/mine").keys() == {".gitattributes"}


def test_reports_are_read_before_the_model_is(offline, model, monkeypatch):
  def never(*_, **__):
    raise AssertionError("The reports come first.")

  monkeypatch.setattr(card.loading, "load", never)
  monkeypatch.setattr(convert, "convert", never)
  with pytest.raises(errors.UserError, match="none is not there"):
    push.push(model, "me/mine", reports=[offline / "none"], dry_run=True)
