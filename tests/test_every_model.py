"""Every verb on every kind of MODEL."""

import contextlib
import importlib.util
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import by_path
import model_kinds
from clip_jax import cli, terminal
from clip_jax.app import answering

HERE = pathlib.Path(__file__).parent
GOLDEN = by_path.load("tools/golden/open_clip_models.py")

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
  "openai": ["--activation=quick_gelu", "--heads=1,1"],
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
  "interpolate": {"image", "text"},
  "embed": {"image"},
  "search by text": {"image", "text"},
  "search by image": {"image"},
  "app": {"image", "text"},
  "card": set(),
  "push": set(),
  "data filter": {"image", "text"},
  "data dedupe": {"image"},
}
QUICK = {"workdir, sigmoid", "huggingface, SigLIP", "timm", "bert"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  return model_kinds.maker(tmp_path_factory)


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
  except errors.UserError as error:
    return 1 + isinstance(error, errors.AmbiguousError), None, str(error)
  towers = {
    name
    for name, there in (("image", clip.preprocess), ("text", clip.tokenizer))
    if there
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


def _interpolate(model, data, here):
  """WiSE-FT between a model and itself, so that nothing may change."""
  return run(
    *("eval", model, "--task=zero_shot", "--data", f"folder:{data}/pets"),
    *("--interpolate=0,0.5,1", "--with", model),
  )


def _search(*words):
  def search(model, data, here):
    code, answer, error = _embed(model, data, here)
    if code:
      return code, answer, error
    query = [word.format(data) for word in words]
    return run("search", here / "index", *query, "-k", 2)

  return search


def _app(model, data, here):
  """What `app` does before it shows the page, which Gradio makes."""
  from clip_jax import errors, load

  try:
    answering.Engine(load(model))
  except errors.UserError as error:
    return 1 + isinstance(error, errors.AmbiguousError), None, str(error)
  return 0, None, ""


def _card(model, data, here):
  code, _, error = run("card", model, "--out", here / "card.md")
  text = "" if code else (here / "card.md").read_text()
  return code, text, error


def _push(model, data, here):
  return run("push", model, "my-name/my-clip", "--dry-run")


def _data(action, *flags):
  def call(model, data, here):
    words = [word.format(model) for word in flags]
    pairs = f"csv:{data}/pairs.csv"
    return run("data", action, pairs, here / "out", *words)

  return call


RUN = {
  "app": _app,
  "card": _card,
  "push": _push,
  "data filter": _data("filter", "--score-model={}", "--keep-share=0.5"),
  "data dedupe": _data("dedupe", "--by=semantic", "--model={}"),
  "load": _load_model,
  "classify": _classify,
  "zero_shot": _eval("zero_shot", "folder:{}/pets"),
  "retrieval": _eval("retrieval", "csv:{}/pairs.csv"),
  "interpolate": _interpolate,
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
  elif verb == "interpolate":
    assert [x["examples"] for x in answer["interpolate"]] == [4] * 3
    assert len({x["top1"] for x in answer["interpolate"]}) == 1
  elif verb == "embed":
    assert answer["count"] == 4
  elif verb == "app":
    assert answer is None
  elif verb == "card":
    lacking = {"image", "text"} - TOWERS.get(kind, {"image", "text"})
    assert "\nlicense: other\n" in answer
    assert not any(f"| {part} tower |" in answer for part in lacking)
  elif verb == "push":
    assert answer["dry_run"] and "weights.safetensors" in {
      file["name"] for file in answer["files"]
    }
  elif verb == "data filter":
    assert (answer["pairs"], answer["kept"]) == (4, 2)
  elif verb == "data dedupe":
    assert answer["pairs"] == 4
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
    for kind in model_kinds.MAKERS
  ],
)
def test_every_verb_takes_every_kind_of_model(
  models, data, tmp_path, kind, verb
):
  code, answer, error = RUN[verb](models(kind), data, tmp_path)
  assert "Traceback" not in error
  lacking = VERBS[verb] - TOWERS.get(kind, {"image", "text"})
  if kind in TOLD:
    assert code == 2, error
    assert "--" in error  # The flag that settles it.
  elif lacking:
    assert code == 1, error
    assert "has only the" in error
    assert f"needs the {lacking.pop()} tower" in error
    assert not (tmp_path / "index").exists() or verb == "search by text"
  else:
    assert code == 0, error
    check_answer(verb, kind, answer)


@pytest.mark.parametrize(
  "kind",
  [
    kind if kind in TOLD else pytest.param(kind, marks=pytest.mark.slow)
    for kind in model_kinds.MAKERS
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
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VERIFIED)
def test_what_another_library_reads_is_verified(models, tmp_path, kind):
  pytest.importorskip("torch")
  if importlib.util.find_spec(VERIFIED[kind]) is None:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")
  if VERIFIED[kind] in ("open_clip", "timm"):
    GOLDEN.import_libraries()  # Without torchvision.
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


def test_classify_says_which_probabilities_it_gives(models, data, capsys):
  model, image = models("huggingface, SigLIP"), data / "pets/cat/0.png"
  words = ["classify", str(model), str(image), "--labels", "cat,dog"]
  cli.main(words)
  assert "probability (sigmoid)" in capsys.readouterr().out
  cli.main([*words, "--probabilities", "softmax"])
  assert "probability (softmax)" in capsys.readouterr().out
  _, (entry,), _ = run(*words, "--probabilities", "softmax")
  assert sum(entry["probabilities"].values()) == pytest.approx(1)
  code, (entry,), error = run(*words[:-1], "cat")
  assert (code, error) == (0, "")  # Of one label a sigmoid says something.
  assert entry["probabilities"]["cat"] < 0.9


def test_a_model_without_a_bias_refuses_a_sigmoid(models, data):
  image = data / "pets/cat/0.png"
  words = ["--labels", "cat,dog", "--probabilities", "sigmoid"]
  code, _, error = run("classify", models("clip-jax"), image, *words)
  assert code == 1
  assert "need a logit bias" in error


def test_a_text_tower_reads_no_images_and_says_so(models, data, tmp_path):
  tower = models("clip-jax of a text tower")
  for verb in ("zero_shot", "retrieval", "embed", "classify"):
    code, _, error = RUN[verb](tower, data, tmp_path)
    assert code == 1
    assert "needs the image tower" in error and "Traceback" not in error


def test_classify_reads_images_of_as_many_pixels_as_it_is_told(models, data):
  image = data / "pets/cat/0.png"  # Of 480.
  words = ["classify", models("clip-jax"), image, "--labels", "cat,dog"]
  assert run(*words, "--max-pixels", 480)[0] == 0
  code, _, error = run(*words, "--max-pixels", 479)
  assert code == 1
  assert "479 are allowed" in error


@pytest.mark.parametrize(
  "fraction, shown",
  [
    (0.802, "80.2 %"),
    (0.1, "10.0 %"),
    (0.0026, "0.26 %"),
    (0.0999, "10 %"),
    (3e-5, "0.003 %"),
    (4e-9, "<0.0001 %"),
    (0, "0 %"),
    (1, "100.0 %"),
  ],
)
def test_small_probabilities_keep_two_digits(fraction, shown):
  assert terminal.percent(fraction) == shown


def test_cut_captions_are_told_once_with_their_number(models, data, tmp_path):
  lines = (data / "pairs.csv").read_text().splitlines()
  lines[1:3] = [f"{line} and so on and so on and so on" for line in lines[1:3]]
  table = data / "long.csv"
  table.write_text("\n".join(lines))
  where = f"csv:{table}"
  code, answer, error = run(
    "eval", models("clip-jax"), "--task=retrieval", "--data", where
  )
  assert (code, answer["texts_cut"]) == (0, 2)
  assert error.count("cut off") == 1
  assert "2 of 4 texts are longer than the 12 tokens" in error
  between = ["--interpolate=0,1", "--with", models("clip-jax")]
  code, answer, error = run(
    "eval", models("clip-jax"), "--task=retrieval", "--data", where, *between
  )
  assert (code, error.count("cut off")) == (0, 1)
  assert [found["texts_cut"] for found in answer["interpolate"]] == [2, 2]
  image = data / "pets/cat/0.png"
  long = "cat," + "a very small " * 9
  _, _, error = run("classify", models("clip-jax"), image, "--labels", long)
  assert error.count("1 of 2 texts is longer") == 1


def test_an_index_is_searched_by_a_model_that_moved(models, data, tmp_path):
  """And is not by another one, nor where none is left."""
  moved = tmp_path / "a" / "model"
  shutil.copytree(models("clip-jax"), moved)
  index = tmp_path / "index"
  pairs = f"csv:{data}/pairs.csv"
  assert run("embed", moved, "--data", pairs, "--out", index)[0] == 0
  moved.parent.rename(tmp_path / "b")
  code, _, error = run("search", index, "cat")
  assert code == 1
  assert "--model" in error and "does not exist" in error
  there = tmp_path / "b" / "model"
  assert run("search", index, "cat", "--model", there)[0] == 0
  other = models("huggingface, SigLIP")
  code, _, error = run("search", index, "cat", "--model", other)
  assert code == 1 and "is not the one that made index" in error
