"""Messages name addresses in buckets, not where their copies lie."""

import json
import logging

import pytest

import model_kinds
from clip_jax import cli, errors, kept_files, loading, mirrors
from clip_jax.cli import output
from clip_jax.mirrors import translation

DATA = ("--data", "builtin:digits/test")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A workdir, and what it is converted to."""
  root = tmp_path_factory.mktemp("models")
  model_kinds.workdir(root / "run")
  cli.main(["convert", str(root / "run"), str(root / "own"), "--to=clip-jax"])
  return root


def _said(capsys, *words):
  """What a command that fails says, which names no copy."""
  capsys.readouterr()
  assert cli.run([str(word) for word in words])
  said = "".join(capsys.readouterr())
  assert str(kept_files.folder(translation.FOLDER)) not in said
  assert "Traceback" not in said
  return said


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize(
  ("spoiled", "content", "words", "named"),
  [
    ("run/config.json", b"{", ("eval", "{}/run"), "{}/run/config.json"),
    ("run/config.json", b"{", ("card", "{}/run"), "{}/run/config.json"),
    ("own/*.json", b"{", ("eval", "{}/own"), "{}/own/"),
    ("own/*.safetensors", b"x", ("convert", "{}/own", "out"), "{}/own/"),
    ("other/a.txt", b"x", ("eval", "{}/other"), "{}/other"),
    ("a.safetensors", b"x", ("eval", "{}/a.safetensors"), "{}/a.safetensors"),
  ],
)
def test_what_is_wrong_is_told_of_the_address(
  spoiled, content, words, named, scheme, store, models, capsys
):
  store.upload("data-1", models)
  folder, _, name = spoiled.rpartition("/")
  there = [x for x in store.objects["data-1"] if x.startswith(f"{folder}/")]
  wanted = [x for x in there if x.endswith(name.removeprefix("*"))]
  for each in wanted or [spoiled]:
    store.put("data-1", each, content)
  root = f"{scheme}://data-1"
  more = {
    "eval": ("--task=zero_shot", *DATA),
    "convert": ("--to=huggingface",),
    "card": ("--out=card.md",),
  }[words[0]]
  words = [word.replace("{}", root) for word in (*words, *more)]
  assert named.replace("{}", root) in _said(capsys, *words)


def test_a_damaged_checkpoint_is_told_by_its_address(store, models, capsys):
  store.upload("data-1", models)
  for name in list(store.objects["data-1"]):
    if "/variables/d/" in name:
      store.put("data-1", name, b"x")
  said = _said(capsys, "eval", "gs://data-1/run", "--task=zero_shot", *DATA)
  assert "Checkpoint 3 in gs://data-1/run/checkpoints is damaged" in said
  assert "None of the 1 checkpoints in gs://data-1/run is good" in said


def test_a_model_says_where_it_is_from(store, models):
  store.upload("data-1", models)
  with pytest.raises(errors.UserError, match=r"^gs://data-1/run/.* step 9"):
    loading.load("gs://data-1/run", step=9)
  for name in ("run", "own"):
    assert loading.load(f"s3://data-1/{name}").path == f"s3://data-1/{name}"


def test_a_run_that_cannot_go_on_is_told_by_its_address(
  store, models, tmp_path, capsys
):
  store.upload("data-1", models)
  words = ("train", "--config=tests/configs/tiny_bow.py", "--config.seed=7")
  said = _said(capsys, *words, "--workdir=gs://data-1/run")
  assert "gs://data-1/run" in said


def test_a_message_is_translated_once_and_the_rest_of_it_kept(store, tmp_path):
  store.put("data-1", "a b/c.json", b"{}")
  path = mirrors.fetched("gs://data-1/a b")
  assert mirrors.named(f"'{path}/c.json' is {path}.") == (
    "'gs://data-1/a b/c.json' is gs://data-1/a b."
  )
  store.put("data-1", "top.json", b"{}")
  assert mirrors.named(f"{mirrors.fetched('gs://data-1')}/top.json") == (
    "gs://data-1/top.json"
  )
  text = f"{mirrors.local_path('gs://data-1/new')} and {tmp_path}"
  assert mirrors.named(text) == text  # Nothing is known of it.
  with (
    pytest.raises(translation.OnDiskError, match=str(path)),
    mirrors.in_errors(),
  ):
    raise translation.OnDiskError(f"It lies in {path}.")


def test_json_is_translated_text_by_text(store, tmp_path, monkeypatch):
  """Marks of JSON may stand in an address, and letters in the cache's path."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "jürgen"))
  address = 'gs://data-1/a "b" \\c/d'
  store.put("data-1", f"{address.removeprefix('gs://data-1/')}/e", b"{}")
  path = mirrors.fetched(address)
  said = output.to_json([{"at": f"{path}/e"}])
  assert json.loads(said) == [{"at": f"{address}/e"}]


def test_logs_are_translated_but_for_those_of_copies(store, capsys):
  store.put("data-1", "a/b", b"{}")
  path = mirrors.fetched("gs://data-1/a")
  with output.quiet():
    logging.getLogger("clip_jax.train").warning("Look at %s.", path)
    logging.getLogger("clip_jax.mirrors.x").warning("What is newer: %s", path)
  said = capsys.readouterr().err
  assert "Look at gs://data-1/a." in said and f"newer: {path}" in said
