"""Every verb on every kind of MODEL."""

import contextlib
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from clip_jax import cli


def _load(name):
  path = pathlib.Path(__file__).with_name(f"{name}.py")
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


KINDS = _load("model_kinds")

# Kinds with one tower, or that must be told something, by the flag.
TOWERS = {
  "clip-jax of an image tower": {"image"},
  "clip-jax of a text tower": {"text"},
  "timm": {"image"},
  "sentence-transformers": {"text"},
}
TOLD = {
  "big-vision, unknown vocabulary": ["--tokenizer=c4_en", "--pooling=last"],
  "timm, bare file": [
    "--from=timm",
    "--heads=2,2",
    "--activation=gelu",
    "--preprocess=inception:0.9",
  ],
  "bert": ["--pooling=mean"],
}
SIGMOID = {
  "workdir, sigmoid",
  "clip-jax, SigLIP",
  "huggingface, SigLIP",
  "open-clip, with a bias",
  "big-vision",
}
# What a verb needs of a model.
VERBS = {
  "load": set(),
  "classify": {"image", "text"},
  "zero_shot": {"image", "text"},
  "retrieval": {"image", "text"},
  "embed": {"image"},
  "search by text": {"image", "text"},
  "search by image": {"image"},
}
QUICK = {"workdir, sigmoid", "huggingface, SigLIP", "timm", "bert"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  made = {}

  def make(kind):
    if kind not in made:
      directory = tmp_path_factory.mktemp("kind") / "it"
      made[kind] = KINDS.MAKERS[kind](directory)
    return made[kind]

  return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Pairs of two classes: a folder of class folders, and a table."""
  root = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  lines = ["filepath,title"]
  for i, name in enumerate(("cat", "cat", "dog", "dog")):
    path = root / "pets" / name / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    lines.append(f"pets/{name}/{i}.png,a photo of the {name}")
  (root / "pairs.csv").write_text("\n".join(lines))
  return root


def run(*words):
  """Returns exit code, JSON and the lines on stderr of a command."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      cli.main([*map(str, words), "--json"])
      code = 0
    except SystemExit as stop:
      code = stop.code
  text = out.getvalue()
  return code, json.loads(text) if text else None, err.getvalue()


def _load_model(model, data, here):
  from clip_jax import errors, load

  try:
    clip = load(model)
  except errors.AmbiguousError as error:
    return 2, None, f"Error: {error}"
  towers = {
    name
    for name, there in (("image", clip.preprocess), ("text", clip.tokenizer))
    if there is not None
  }
  return 0, {"towers": towers, "probabilities": clip.probabilities}, ""


def _classify(model, data, here):
  image = data / "pets/cat/0.png"
  return run("classify", model, image, "--labels", "cat,dog")


def _eval(task, address):
  def evaluate(model, data, here):
    where = address.format(data)
    return run("eval", model, "--task", task, "--data", where)

  return evaluate


def _embed(model, data, here):
  pairs = f"csv:{data}/pairs.csv"
  return run("embed", model, "--data", pairs, "--out", here / "index")


def _search(*words):
  def search(model, data, here):
    code, answer, error = _embed(model, data, here)
    if code:
      return code, answer, error
    query = [word.format(data) for word in words]
    return run("search", here / "index", *query, "-k", 2)

  return search


RUN = {
  "load": _load_model,
  "classify": _classify,
  "zero_shot": _eval("zero_shot", "folder:{}/pets"),
  "retrieval": _eval("retrieval", "csv:{}/pairs.csv"),
  "embed": _embed,
  "search by text": _search("the cat"),
  "search by image": _search("--image", "{}/pets/cat/0.png"),
}


def check_answer(verb, kind, answer):
  wanted = "sigmoid" if kind in SIGMOID else "softmax"
  if verb == "load":
    assert answer["towers"] == TOWERS.get(kind, {"image", "text"})
    assert answer["probabilities"] == wanted
  elif verb == "classify":
    (entry,) = answer
    assert entry["kind"] == wanted
    total = sum(entry["probabilities"].values())
    assert (abs(total - 1) < 1e-5) == (wanted == "softmax")
  elif verb == "zero_shot":
    assert (answer["examples"], answer["classes"]) == (4, 2)
  elif verb == "retrieval":
    assert (answer["images"], answer["texts"]) == (4, 4)
  elif verb == "embed":
    assert answer["count"] == 4
  else:
    assert len(answer["results"]) == 2
  if verb == "search by image":  # The image itself is in the data.
    best = answer["results"][0]
    assert best["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
  "kind",
  [
    kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow)
    for kind in KINDS.MAKERS
  ],
)
def test_every_verb_takes_every_kind_of_model(
  models, data, tmp_path, kind, verb
):
  code, answer, error = RUN[verb](models(kind), data, tmp_path)
  assert "Traceback" not in error
  lacking = VERBS[verb] - TOWERS.get(kind, {"image", "text"})
  if kind in TOLD:
    assert code == (1 if kind == "timm, bare file" else 2), error
    assert "clip-jax convert" in error or "no known format" in error
  elif lacking:
    assert code == 1, error
    assert "tower alone" in error
    assert f"needs the {lacking.pop()} tower" in error
    assert not (tmp_path / "index").exists() or verb == "search by text"
  else:
    assert code == 0, error
    check_answer(verb, kind, answer)


@pytest.mark.parametrize(
  "kind",
  [
    kind if kind in TOLD else pytest.param(kind, marks=pytest.mark.slow)
    for kind in KINDS.MAKERS
  ],
)
def test_every_kind_converts_to_a_directory_that_needs_no_flags(
  models, data, tmp_path, kind
):
  flags = TOLD.get(kind, ())
  ours = tmp_path / "ours"
  code, _, error = run("convert", models(kind), ours, "--to=clip-jax", *flags)
  assert code == 0, error
  code, found, error = _load_model(ours, data, tmp_path)
  assert code == 0, error
  wanted = (
    "sigmoid"
    if kind in SIGMOID | {"big-vision, unknown vocabulary"}
    else "softmax"
  )
  assert found["probabilities"] == wanted


# By the library that reads the kind.
VERIFIED = {
  "huggingface, CLIP": "transformers",
  "huggingface, SigLIP": "transformers",
  "bert": "transformers",
  "sentence-transformers": "transformers",
  "open-clip": "open_clip",
  "openai": "clip",
  "timm": "timm",
  "timm, bare file": "timm",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VERIFIED)
def test_what_another_library_reads_is_verified(models, tmp_path, kind):
  pytest.importorskip("torch")
  if importlib.util.find_spec(VERIFIED[kind]) is None:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")
  flags = TOLD.get(kind, ())
  ours = tmp_path / "ours"
  code, _, error = run("convert", models(kind), ours, "--to=clip-jax", *flags)
  assert code == 0, error
  code, answer, error = run("verify", models(kind), ours, *flags, "--float64")
  assert code == 0, error or [s for s in answer["stages"] if not s["passed"]]


@pytest.mark.parametrize("kind", ["workdir", "clip-jax", "big-vision"])
def test_what_no_library_reads_is_not_verified(models, kind):
  code, _, error = run("verify", models(kind), models(kind))
  assert code == 1
  assert "No other library here reads the format" in error
