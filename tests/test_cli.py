import contextlib
import dataclasses
import io
import json
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, loading, names, search
from clip_jax.cli.commands import measures, training
from clip_jax.convert.formats.table import FORMATS
from clip_jax.evals import (
  corruptions,
  few_shot,
  groups,
  linear_probe,
  ridge,
  robustness,
  tasks,
)
from clip_jax.models import variants
from clip_jax.train import loop

CONFIG = """
from clip_jax import config as config_lib

def get_config():
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  config.model_overrides.image = {
    "kind": "vit", "patch_size": 16, "width": 8, "depth": 1, "heads": 2}
  config.model_overrides.text = {"width": 8}
  config.model_overrides.embed_dim = 12
  config.batch_size = 16
  config.steps = 100
  config.precision = "float32"
  config.data.train = "builtin:digits/train"
  config.optim.warmup_steps = 0
  config.evals.digits = {"data": "builtin:digits/test"}
  config.evals.pairs = {"task": "retrieval", "data": "builtin:digits/test"}
  config.evals.few = {"task": "few_shot_lsr", "data": "builtin:digits"}
  config.report = "builtin:digits/test"
  return config
"""
DIGITS = "zero,one,two,three,four,five,six,seven,eight,nine"


def call(*arguments):
  """Runs a command that must succeed and returns its JSON."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    cli.main([str(argument) for argument in [*arguments, "--json"]])
  return json.loads(stdout.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir and the summary of its training, by the command line."""
  directory = tmp_path_factory.mktemp("cli")
  (directory / "tiny.py").write_text(CONFIG)
  workdir = directory / "run"
  summary = call(
    "train",
    "--config",
    directory / "tiny.py",
    "--workdir",
    workdir,
    "--config.steps=2",
    "--config.seed",
    "3",
  )
  return workdir, summary


@pytest.fixture(scope="module")
def workdir(trained):
  return trained[0]


@pytest.fixture
def image(tmp_path):
  path = tmp_path / "image.png"
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(path)
  return path


def test_train_leaves_a_model_and_sums_up(trained):
  workdir, summary = trained
  assert summary["steps"] == 2
  assert set(summary["evals"]) == {"digits", "pairs", "few"}
  assert pathlib.Path(summary["report"]) == workdir / "report.png"
  with Image.open(workdir / "report.png") as report:
    assert report.format == "PNG"
  assert json.loads((workdir / "config.json").read_text())["seed"] == 3


def test_train_says_how_many_steps_changed_nothing(
  tmp_path, monkeypatch, capsys
):
  fields = dataclasses.fields(loop.Summary)
  done = dict.fromkeys((x.name for x in fields), 0) | {"steps": 5, "skipped": 3}
  monkeypatch.setattr(
    training.loop, "train", lambda *_, **__: loop.Summary(**done)
  )
  (tmp_path / "tiny.py").write_text(CONFIG)
  words = ["--config", str(tmp_path / "tiny.py"), "--workdir", str(tmp_path)]
  cli.main(["train", *words])
  assert "3 steps of the run changed nothing" in capsys.readouterr().out


def test_train_prints_its_evaluations_in_a_table(trained, capsys):
  workdir, _ = trained
  config = workdir.parent / "tiny.py"
  arguments = ["train", "--config", config, "--workdir", workdir]
  overrides = ["--config.steps=2", "--config.seed=3"]
  cli.main([str(a) for a in arguments + overrides])  # Nothing is left to do.
  out = capsys.readouterr().out
  assert "Trained 2 steps (0 of them now) in" in out
  assert "digits      top-1 " in out
  assert "pairs       text to image, R@1 " in out
  assert str(workdir / "report.png") in out


def test_eval_zero_shot_measures_what_training_measured(trained):
  workdir, summary = trained
  result = call(
    "eval", workdir, "--task", "zero_shot", "--data", "builtin:digits/test"
  )
  assert result["task"] == "zero_shot"
  assert result["data"] == "builtin:digits/test"
  assert result["fingerprint"] == loading.load(workdir).fingerprint
  for key in ("top1", "top5", "mean_per_class"):
    assert 0 <= result[key] <= 1
    # Training's mesh may round otherwise, and one of 364 images may flip.
    assert result[key] == pytest.approx(
      summary["evals"]["digits"][key], abs=0.01
    )
  assert (result["examples"], result["classes"]) == (364, 10)


def test_report_and_card_tell_what_a_run_has_left(trained, tmp_path):
  workdir, summary = trained
  results = tmp_path / "results"
  results.mkdir()
  measured = {**summary["evals"]["digits"], "model": str(workdir), "step": 2}
  (results / "digits.json").write_text(json.dumps(measured))
  made = call("report", workdir, results, "--out", tmp_path / "page")
  assert made["models"] == ["run"] and made["results"] == 3
  names = [pathlib.Path(path).stem for path in made["pictures"]]
  # One step is logged: no curve.
  assert names == ["accuracy", "confusions", "examples"]
  assert pathlib.Path(made["page"]).read_text().count("<img") == 3
  out = tmp_path / "README.md"
  card = call("card", workdir, "--reports", results, "--out", out)
  text = out.read_text()
  assert card["text"] == text and "- records: 1,433\n" in text
  assert "- devices: 8 x cpu\n" in text
  (entry,) = card["metadata"]["model-index"]
  accuracy = entry["results"][0]["metrics"][0]
  assert accuracy["value"] == pytest.approx(measured["top1"], abs=1e-6)


def test_eval_retrieval_has_the_keys_of_the_contract(workdir):
  result = call(
    "eval", workdir, "--task", "retrieval", "--data", "builtin:digits/test"
  )
  for way in ("text_to_image", "image_to_text"):
    assert set(result[way]) == {"r@1", "r@5", "r@10", "median_rank"}
  assert (result["images"], result["texts"]) == (364, 1092)


@pytest.mark.parametrize(
  ("task", "features"),
  [("linear_probe", "pre_projection"), ("knn", "embedding")],
)
def test_a_probe_has_the_keys_of_the_contract(workdir, task, features):
  result = call(
    "eval", workdir, "--task", task, "--data", "builtin:digits",
    "--features", features,
  )  # fmt: skip
  assert result["features"] == features
  assert result["fingerprint"] == loading.load(workdir).fingerprint
  assert (result["train_examples"], result["examples"]) == (1433, 364)
  assert result["data"] == "builtin:digits/test"
  assert result["top1"] > 0.5  # Of ten classes.
  assert (task == "linear_probe") == ("regularisation" in result)


def test_few_shot_has_the_keys_of_the_contract(workdir, capsys):
  arguments = ["--task", "few_shot", "--data", "builtin:digits"]
  arguments += ["--shots", "2,1", "--seeds", "2"]
  result = call("eval", workdir, *arguments)
  assert [entry["k"] for entry in result["shots"]] == [1, 2]
  assert result["top1"] == result["shots"][-1]["mean"] > 0.2  # Chance: 0.1.
  assert result["regularisation"] > 0
  assert result["features"] == "pre_projection"
  assert (result["zero_shot"]["examples"], result["classes"]) == (364, 10)
  cli.main(["eval", str(workdir), *arguments])
  out = capsys.readouterr().out
  assert f"{100 * result['zero_shot']['top1']:.2f} %" in out
  assert "zero-shot, top-1" in out and "± " in out
  assert "2 shots, top-1" in out and "shots that equal zero-shot" in out


def test_robustness_has_the_keys_of_the_contract(workdir, tmp_path, capsys):
  for label in DIGITS.split(","):
    (tmp_path / label).mkdir()
    Image.new("RGB", (9, 8), (len(label) * 20, 0, 0)).save(
      tmp_path / label / "a.png"
    )
  arguments = ["--task", "robustness", "--data", f"folder:{tmp_path}"]
  result = call("eval", workdir, *arguments)
  assert len(result["corruptions"]) == 25
  assert set(result["mean_by_corruption"]) == set(corruptions.CORRUPTIONS)
  assert result["top1"] == result["clean"]["top1"]
  assert (result["examples"], result["classes"]) == (10, 10)
  cli.main(["eval", str(workdir), *arguments])
  out = capsys.readouterr().out
  assert "clean, top-1" in out and "gaussian noise" in out


@pytest.mark.parametrize(
  ("task", "arguments"),
  [
    ("zero_shot", ["--features", "embedding"]),
    ("zero_shot", ["--shots", "4"]),
    ("robustness", ["--seeds", "4"]),
    ("few_shot", ["--duplicates", "hits"]),
    ("few_shot", ["--shots", "0"]),
    ("retrieval", ["--train-data", "builtin:digits/train"]),
    ("knn", ["--labels", "a,b"]),
    ("linear_probe", ["--neighbours", "3"]),
    ("retrieval", ["--search-templates", "t.txt"]),
    ("linear_probe", ["--search-templates", "t.txt"]),
    ("zero_shot", ["--search-templates", "t.txt", "--template", "{}"]),
    ("zero_shot", ["--train-data", "builtin:digits/train"]),
  ],
)
def test_eval_refuses_flags_of_other_tasks(capsys, task, arguments):
  with pytest.raises(SystemExit) as exit:
    cli.main(["eval", "m", "--task", task, "--data", "d", *arguments])
  assert exit.value.code == 2
  assert arguments[0] in capsys.readouterr().err


def test_eval_says_how_far_its_probabilities_can_be_believed(workdir):
  result = call(
    "eval", workdir, "--task", "zero_shot", "--data", "builtin:digits/test"
  )
  calibration = result["calibration"]
  assert 0 <= calibration["ece"] <= 1 and 0 <= calibration["brier"] <= 2
  assert sum(row["count"] for row in calibration["reliability"]) == 364
  assert result["interval_95"]["top1"] == result["top1_interval_95"]
  assert result["images_per_second"] > 0 < result["seconds"]
  assert len(result["prompts_hash"]) == 64 and "classes" in result["protocol"]


def test_eval_searches_for_templates(workdir, tmp_path, capsys):
  path = tmp_path / "templates.txt"
  path.write_text("a photo of the number {}.\n{}\n")
  arguments = ["--search-templates", path, "--data", "builtin:digits"]
  cli.main(["eval", *map(str, [workdir, "--task", "zero_shot", *arguments])])
  out = capsys.readouterr().out
  assert "of 2" in out and "top-1 on the training data" in out


def test_eval_prints_a_table(workdir, capsys):
  arguments = ["--data", "builtin:digits/test", "--labels", DIGITS]
  arguments += ["--template", "the digit {}"]
  cli.main(["eval", str(workdir), "--task", "zero_shot", *arguments])
  out = capsys.readouterr().out
  assert "zero_shot on builtin:digits/test, step 2" in out
  assert "top-1, 95 % interval" in out
  assert "364" in out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--task", "zero_shot", "--labels", "a,b"], "2 labels are given"),
    (["--task", "zero_shot", "--labels", "x.txt"], "does not exist"),
    (["--task", "zero_shot", "--template", "none"], "one placeholder"),
    (["--task", "retrieval", "--labels", "a,b"], "takes no labels"),
    (["--task", "retrieval", "--data", "builtin:digts"], "digits"),
    (["--task", "retrieval", "--data", "folder:/nowhere"], "/nowhere"),
  ],
)
def test_eval_says_what_does_not_fit(workdir, fails, arguments, message):
  data = [] if "--data" in arguments else ["--data", "builtin:digits/test"]
  assert message in fails("eval", workdir, *arguments, *data)


def test_classify_gives_each_image_the_probability_of_each_label(
  workdir, image, tmp_path
):
  labels = tmp_path / "labels.json"
  labels.write_text(json.dumps(["cat", ["dog", "hound"]]))
  result = call(
    "classify", workdir, image, image, "--labels", labels, "--template", "a {}"
  )
  want = loading.load(workdir).classify(
    str(image), ["cat", ["dog", "hound"]], templates="a {}"
  )
  assert len(result) == 2
  for entry in result:
    assert entry["image"] == str(image)
    got = [entry["probabilities"][name] for name in ("cat", "dog")]
    np.testing.assert_allclose(got, want[0], rtol=1e-5)
    assert sum(got) == pytest.approx(1)


def test_the_values_that_are_offered_are_those_that_there_are():
  assert set(names.TASKS) == set(tasks.TASKS)
  assert set(names.PROBE_TASKS) == set(linear_probe.TASKS)
  further = few_shot.TASK, robustness.TASK, groups.TASK
  assert set(names.FURTHER_TASKS) == set(further)
  assert names.TRAINING_TASKS == (ridge.TASK,)
  assert set(names.TARGETS) == {
    x for x, known in FORMATS.items() if known.write
  }


def test_classify_tells_each_bad_image_and_answers_the_others(
  workdir, image, tmp_path, capsys
):
  (tmp_path / "broken.png").write_bytes(b"no image")
  words = ["classify", workdir, tmp_path / "broken.png", image, "gone.png"]
  with pytest.raises(SystemExit) as caught:
    cli.main([*map(str, words), "--labels=a,b", "--json"])
  assert caught.value.code == 1
  out, err = capsys.readouterr()
  for name in ("broken.png", "gone.png"):
    assert sum(name in line for line in err.splitlines()) == 1, err
  right, *wrong = json.loads(out)
  assert right["image"] == str(image) and len(right["probabilities"]) == 2
  assert [set(entry) for entry in wrong] == [{"image", "error"}] * 2


def test_classify_prints_the_most_probable_label_first(workdir, image, capsys):
  cli.main(["classify", str(workdir), str(image), "--labels", DIGITS])
  lines = capsys.readouterr().out.splitlines()[2:]
  shares = [float(line.split()[-2]) for line in lines]
  assert len(shares) == 5
  assert shares == sorted(shares, reverse=True)


def test_classify_names_the_image_that_cannot_be_read(
  workdir, image, tmp_path, fails
):
  (tmp_path / "broken.png").write_bytes(image.read_bytes()[:200])
  words = ["classify", workdir, tmp_path / "broken.png", "--labels", "a,b"]
  assert "broken.png" in fails(*words)
  (tmp_path / "a b").mkdir()
  error = fails("classify", workdir, tmp_path / "a b", "--labels", "a,b")
  assert f"--task zero_shot --data 'folder:{tmp_path}/a b'`." in error


def test_images_are_looked_for_before_the_model(fails):
  error = fails("classify", "nowhere", "gone.png", "--labels", "a,b")
  assert "No such file or directory: gone.png" in error
  error = fails("search", "nowhere", "--image", "gone.png")
  assert "No such file or directory: gone.png" in error


def test_a_single_label_is_worth_a_warning(workdir, image, capsys):
  cli.main(["classify", str(workdir), str(image), "--labels", "cat"])
  assert "There is one label, 'cat'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def index(workdir):
  """An index of the test digits."""
  path = workdir.parent / "index"
  meta = call("embed", workdir, "--data", "builtin:digits/test", "--out", path)
  assert (meta["count"], meta["bad_records"]) == (364, {})
  return path


def test_search_finds_by_text_what_is_nearest(index, workdir):
  found = call("search", index, "the number three", "-k", "4")["results"]
  clip = loading.load(workdir)
  query = clip.encode_text("the number three")[0]
  from clip_jax import search

  hits = search.Index(index).search(query, k=4)
  assert [hit["key"] for hit in found] == [hit.key for hit in hits]
  for got, want in zip(found, hits, strict=True):
    assert got["score"] == pytest.approx(want.score)
    assert got["caption"] == want.captions[0]


def test_embed_tells_why_records_are_left_out(workdir, image, tmp_path, capsys):
  folder = tmp_path / "pictures" / "a"
  folder.mkdir(parents=True)
  (folder / "0.png").write_bytes(image.read_bytes())
  (folder / "1.png").write_bytes(image.read_bytes()[:200])
  data, out = f"folder:{folder.parent}", str(tmp_path / "index")
  cli.main(["embed", str(workdir), "--data", data, "--out", out])
  assert (
    f"Embedded 1 image into {out}, 1 bad record left out (1 truncated); "
    f"`clip-jax data inspect {data}` names them."
  ) in capsys.readouterr().out


def test_a_text_that_looks_like_a_lost_image_is_told(index, capsys):
  found = call("search", index, "gone.JPG", "-k", 1)["results"]
  assert len(found) == 1
  told = "There is no file 'gone.JPG', so it is searched for as a text"
  assert told in capsys.readouterr().err
  call("search", index, "a dog. And a cat", "-k", 1)
  assert "searched for" not in capsys.readouterr().err


def test_search_finds_by_image_the_image_itself(index, tmp_path):
  from clip_jax.data import sources

  record = sources.open_source("builtin:digits/test")[17]
  (tmp_path / "digit.png").write_bytes(record.image)
  found = call("search", index, "--image", tmp_path / "digit.png", "-k", 1)
  assert found["results"][0]["key"] == record.key
  assert found["results"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_search_takes_a_moved_model_but_no_other(
  index, workdir, tmp_path, fails, monkeypatch
):
  from clip_jax.search import index_files

  meta = json.loads((index / "meta.json").read_text())
  moved = tmp_path / "index"
  moved.mkdir()
  for entry in index.iterdir():
    (moved / entry.name).write_bytes(entry.read_bytes())
  gone = meta | {"model": "/gone"}
  (moved / index_files.META).write_text(json.dumps(gone))
  assert "--model" in fails("search", moved, "three")
  assert call("search", moved, "three", "--model", workdir)["results"]
  other = gone | {"fingerprint": "0" * 64}
  (moved / index_files.META).write_text(json.dumps(other))
  error = fails("search", moved, "three", "--model", workdir)
  assert "not the one that made index" in error
  later = gone | {"step": 7}
  (moved / index_files.META).write_text(json.dumps(later))
  error = fails("search", moved, "three", "--model", workdir)
  assert "no checkpoint of step 7" in error


def test_a_record_without_a_caption_is_found(workdir, tmp_path, capsys):
  clip = loading.load(workdir)
  with search.Builder(
    tmp_path / "index", model=str(workdir), fingerprint=clip.fingerprint
  ) as builder:
    builder.add(clip.encode_text("three"), [search.Entry("k", ())])
  (found,) = call("search", tmp_path / "index", "three")["results"]
  assert (found["key"], found["caption"], found["captions"]) == ("k", "", [])
  cli.main(["search", str(tmp_path / "index"), "three"])
  assert capsys.readouterr().out.splitlines()[2].split() == ["1.0000", "k"]


def test_embed_leaves_another_directory_alone(workdir, fails):
  data = ["--data", "builtin:digits/test"]
  error = fails("embed", workdir, *data, "--out", workdir)
  assert "left alone" in error


def test_hostile_captions_do_not_reach_the_terminal(
  workdir, image, tmp_path, capsys
):
  table = tmp_path / "pairs.csv"
  table.write_text(
    f"image,caption\n{image.name},\x1b[31mred\x1b]0;x\x07 \u202e\n"
  )
  call("embed", workdir, "--data", f"csv:{table}", "--out", tmp_path / "index")
  capsys.readouterr()
  cli.main(["search", str(tmp_path / "index"), "red"])
  cli.main(["data", "inspect", f"csv:{table}"])
  captured = capsys.readouterr()
  assert "red" in captured.out
  assert "\x1b" not in captured.out and "\u202e" not in captured.out


def test_models_are_listed_as_they_are_traced(capsys):
  tool = pathlib.Path(__file__).parents[1] / "tools" / "count_models.py"
  # Where this fails after a change of the variants: run that tool.
  count, listed = runpy.run_path(str(tool))["count"], call("models")
  assert [entry["name"] for entry in listed] == list(variants.VARIANTS)
  for entry in listed[::7]:  # Some of each family; tracing all takes long.
    assert entry == count(entry["name"])
  capsys.readouterr()
  cli.main(["models"])
  row = capsys.readouterr().out.splitlines()[2]
  assert row.split()[:4] == ["RN50", "102", "M", "224"]


@pytest.mark.parametrize(
  "words, names_",
  [
    ("--filter siglip2-256 --max-parameters 400M", {"B-32", "B-16"}),
    ("--filter SigLIP2-256 --format open-clip --max-parameters 1.2G", {"B-32"}),
    ("--filter rn_50 --format openai --max-parameters 0.15b", {"RN50"}),
    ("--filter ViT-B/32-siglip2", {"B-32"}),
  ],
)
def test_models_are_chosen_by_name_size_and_format(words, names_):
  listed = call("models", *words.split())
  found = {entry["name"] for entry in listed}
  wanted = {x if x == "RN50" else f"ViT-{x}-SigLIP2-256" for x in names_}
  assert wanted <= found
  for entry in listed:
    assert "openai" not in words or "openai" in entry["formats"]
    assert set(entry["formats"]) <= set(names.TARGETS)


def test_no_model_of_this_kind_is_told(fails):
  assert "lists them all" in fails("models", "--filter", "RN51")
  said = fails("models", "--max-parameters", "many", code=2)
  assert "such as 150M" in said


def test_models_are_listed_without_importing_jax():
  code = (
    "import sys; from clip_jax import cli; cli.main(['models', '--json'])\n"
    "assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_data_is_inspected_and_prepared(tmp_path, capsys):
  found = call("data", "inspect", "builtin:digits/test")
  assert (found["records"], found["good"], found["bad"]) == (364, 364, {})
  out = tmp_path / "copy"
  made = call("data", "prepare", "builtin:digits/test", out)
  assert (made["records"], made["written"]) == (364, True)
  capsys.readouterr()
  cli.main(["data", "prepare", "builtin:digits/test", str(out)])
  assert "Already there: 364 records" in capsys.readouterr().out
  cli.main(["data", "inspect", f"arrayrecord:{out}"])
  assert "364 records, 364 good" in capsys.readouterr().out


def test_what_is_dropped_is_counted_apart(tmp_path, image, capsys):
  data = tmp_path / "data" / "class"
  data.mkdir(parents=True)
  (data / "good.png").write_bytes(image.read_bytes())
  (data / "bad.png").write_bytes(image.read_bytes()[:99])
  prepare = ["data", "prepare", f"folder:{data.parent}"]
  cli.main([*prepare, str(tmp_path / "dropped"), "--drop-bad"])
  told = "Wrote 1 record, 1 bad one left out (1 truncated);"
  assert told in capsys.readouterr().out


@pytest.mark.parametrize(
  "override, message",
  [
    ("--config.optim.peak_rl=1", "Did you mean 'optim.peak_lr'?"),
    ("--config.steps=many", "takes int"),
    ("--config.batch_size=13", "try 8"),
    ("--config.evals.digits.task=x", "zero_shot"),
  ],
)
def test_what_is_wrong_in_a_config_is_an_error_not_a_usage(
  fails, tmp_path, override, message
):
  (tmp_path / "tiny.py").write_text(CONFIG)
  error = fails(
    *("train", "--config", tmp_path / "tiny.py"),
    *("--workdir", tmp_path / "run", override),
  )
  assert message in error
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("remains", "missing"),
  [
    *((False, "run/x/metrics.jsonl"), (True, "run/x"), (True, "pairs.csv")),
    *((None, "pairs.csv"), (None, "running/x")),
  ],
)
def test_a_workdir_that_goes_during_a_run_is_told(
  fails, tmp_path, monkeypatch, remains, missing
):
  """None is a workdir that was not made yet, and is not what is missed."""
  (tmp_path / "tiny.py").write_text(CONFIG)
  if remains:
    (tmp_path / "run").mkdir()

  def lose(*_, **__):
    (tmp_path / missing).read_text()

  monkeypatch.setattr(training.loop, "train", lose)
  words = ("--config", tmp_path / "tiny.py", "--workdir", tmp_path / "run")
  said = fails("train", *words)
  told = remains is False
  assert ("No such file" in said) == (not told)
  assert (f"{tmp_path / 'run'} is gone" in said) == told


def test_of_five_classes_the_five_nearest_are_not_told():
  found = {"top1": 0.5, "top5": 1.0, "classes": 5}
  rows = measures.to_rows(found)
  assert rows == [("top-1", "50.00 %"), ("classes", "5")]
  rows = measures.to_rows({**found, "top5": 0.75, "classes": 6})
  assert ("top-5", "75.00 %") in rows


def test_what_a_fine_tuning_made_worse_is_said():
  recalls = {"text_to_image": {"r@1": 0.5}, "image_to_text": {"r@1": 0.5}}
  better = {"text_to_image": {"r@1": 0.6}, "image_to_text": {"r@1": 0.1}}
  before = {"own": {"top1": 0.2}, "other": recalls, "third": recalls}
  after = {"own": {"top1": 0.0}, "other": better, "new": {"top1": 0.0}}
  _, sentence = measures.remarks(after, before=before)
  assert sentence.startswith("own: top-1 fell from 20.00 to 0.00 %.")
  assert "--interpolate" in sentence and "of a ResNet locked norms" in sentence
  _, sentence = measures.remarks(after, before=before, frozen="/norm/")
  assert "locked norms" not in sentence
  assert not measures.remarks({"own": {"top1": 0.2}}, before=before)
  assert not measures.remarks(after, before={})


def test_what_a_fine_tuning_did_not_teach_is_said():
  before = {"own": {"top1": 0.2}, "other": {"top1": 0.5}}
  (_, sentence) = measures.remarks(before, before=before, own=["own", "new"])
  assert sentence.startswith("own: top-1 is 20.00 % as before. More steps")
  (_, sentence) = measures.remarks(
    before, before=before, own=["own"], longer="steps"
  )
  assert "More steps (steps)" in sentence
  assert not measures.remarks(before, before={}, own=["own"])
  best = {"own": {"top1": 1.0}}
  assert not measures.remarks(best, before=best, own=["own"])
  better = {"own": {"top1": 0.3}, "new": {"top1": 0.0}}
  assert not measures.remarks(better, before=before, own=["own", "new"])
