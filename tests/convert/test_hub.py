import pathlib

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import hub, opening


@pytest.fixture
def served(monkeypatch, tmp_path):
  """A Hub that serves one directory and notes what it was asked for."""
  asked = []

  def download(name, *, revision, allow_patterns):
    asked.append((name, revision, tuple(allow_patterns)))
    return str(tmp_path / "snapshots" / "0123abc")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  (tmp_path / "snapshots" / "0123abc").mkdir(parents=True)
  return tmp_path / "snapshots" / "0123abc", asked


@pytest.mark.parametrize(
  ("address", "name", "revision"),
  [
    ("hf-hub:org/model", "org/model", None),
    ("hf-hub:org/model-B.16@v1.0", "org/model-B.16", "v1.0"),
    ("hf-hub:o/m@refs/pr/3", "o/m", "refs/pr/3"),
  ],
)
def test_an_address_names_a_model_and_a_revision(
  served, address, name, revision
):
  path, asked = served
  (path / "model.safetensors").write_bytes(b"")
  assert hub.download(address) == path
  assert [(a[0], a[1]) for a in asked] == [(name, revision)]


def test_pickles_are_asked_for_only_without_anything_better(served):
  _, asked = served
  hub.download("hf-hub:org/model")
  first, second = (patterns for _, _, patterns in asked)
  assert not any(p.endswith((".bin", ".pt")) for p in first)
  assert "*.bin" in second
  assert not any(p.endswith((".py", ".pkl")) for p in (*first, *second))


@pytest.mark.parametrize(
  "address",
  [
    "hf-hub:",
    "hf-hub:model",
    "hf-hub:../../etc",
    "hf-hub:a/b/c",
    "hf-hub:a/b@",
  ],
)
def test_no_address_is_an_error(address):
  with pytest.raises(errors.UserError, match="not a valid address"):
    hub.download(address)


def test_offline_the_error_says_what_to_do(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(
    huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache")
  )
  with pytest.raises(errors.UserError, match="not in the local cache"):
    convert.open_model("hf-hub:no-such-org/no-such-model")
  out = tmp_path / "out"
  code = run(["convert", "hf-hub:no/model", str(out), "--to", "clip-jax"])
  captured = capsys.readouterr()
  assert code == 1 and "cannot be reached" in captured.err
  assert "Traceback" not in captured.err and not out.exists()


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (hub_errors.RevisionNotFoundError, "no revision 'v9'"),
    (hub_errors.RepositoryNotFoundError, "no model 'org/model'"),
    (hub_errors.GatedRepoError, "hf auth login"),
  ],
)
def test_what_the_hub_refuses_is_said_plainly(monkeypatch, error, message):
  def download(*names, **options):
    raise error.__new__(error)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(errors.UserError, match=message):
    hub.download("hf-hub:org/model@v9")


def test_the_commit_is_part_of_the_provenance(served, monkeypatch):
  path, _ = served
  (path / "model.safetensors").write_bytes(b"")
  portable = convert.Portable({}, {}, convert.Report("x"))
  monkeypatch.setattr(opening, "recognise", lambda *_: "huggingface")
  monkeypatch.setattr(
    opening,
    "find_format",
    lambda name: type("Format", (), {"read": lambda path, options: portable}),
  )
  model = convert.open_model("hf-hub:org/model@main")
  assert model.source["address"] == "hf-hub:org/model@0123abc"
  assert isinstance(path, pathlib.Path)
