import contextlib
import dataclasses
import io
import json
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, errors, loading
from clip_jax.cli import parser, verb, verbs
from clip_jax.cli.arguments import conversion, use
from clip_jax.convert import conversion as convert_lib
from clip_jax.evals import linear_probe, tasks
from clip_jax.train import peers

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


def fails(capsys, *arguments, code=1):
  """Runs a command that must fail and returns what stderr says."""
  with pytest.raises(SystemExit) as caught:
    cli.main([str(argument) for argument in arguments])
  assert caught.value.code == code
  captured = capsys.readouterr()
  assert captured.out == ""
  assert "Traceback" not in captured.err
  return captured.err


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
  assert set(summary["evals"]) == {"digits", "pairs"}
  assert pathlib.Path(summary["report"]) == workdir / "report.png"
  with Image.open(workdir / "report.png") as report:
    assert report.format == "PNG"
  assert json.loads((workdir / "config.json").read_text())["seed"] == 3


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
  for key in ("top1", "top5", "mean_per_class"):
    assert 0 <= result[key] <= 1
    # Training's mesh may round otherwise, and one of 364 images may flip.
    assert result[key] == pytest.approx(
      summary["evals"]["digits"][key], abs=0.01
    )
  assert (result["examples"], result["classes"]) == (364, 10)


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
  assert (result["train_examples"], result["examples"]) == (1433, 364)
  assert result["data"] == "builtin:digits/test"
  assert result["top1"] > 0.5  # Of ten classes.
  assert (task == "linear_probe") == ("regularisation" in result)


@pytest.mark.parametrize(
  ("task", "arguments"),
  [
    ("zero_shot", ["--features", "embedding"]),
    ("retrieval", ["--train-data", "builtin:digits/train"]),
    ("knn", ["--labels", "a,b"]),
    ("linear_probe", ["--neighbours", "3"]),
  ],
)
def test_eval_refuses_flags_of_other_tasks(capsys, task, arguments):
  with pytest.raises(SystemExit) as exit:
    cli.main(["eval", "m", "--task", task, "--data", "d", *arguments])
  assert exit.value.code == 2
  assert arguments[0] in capsys.readouterr().err


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
def test_eval_says_what_does_not_fit(workdir, capsys, arguments, message):
  data = [] if "--data" in arguments else ["--data", "builtin:digits/test"]
  assert message in fails(capsys, "eval", workdir, *arguments, *data)


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
  assert set(use.TASKS) == {*tasks.TASKS, *linear_probe.TASKS}
  assert use.FEATURES == linear_probe.FEATURES
  assert set(conversion.TARGETS) == set(convert_lib.targets())


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
  workdir, image, tmp_path, capsys
):
  (tmp_path / "broken.png").write_bytes(image.read_bytes()[:200])
  words = ["classify", workdir, tmp_path / "broken.png", "--labels", "a,b"]
  assert "broken.png" in fails(capsys, *words)


def test_images_are_looked_for_before_the_model(capsys):
  error = fails(capsys, "classify", "nowhere", "gone.png", "--labels", "a,b")
  assert "No such file or directory: gone.png" in error
  error = fails(capsys, "search", "nowhere", "--image", "gone.png")
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


def test_search_finds_by_image_the_image_itself(index, tmp_path):
  from clip_jax.data import sources

  record = sources.open_source("builtin:digits/test")[17]
  (tmp_path / "digit.png").write_bytes(record.image)
  found = call("search", index, "--image", tmp_path / "digit.png", "-k", 1)
  assert found["results"][0]["key"] == record.key
  assert found["results"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_search_takes_a_moved_model_but_no_other(
  index, workdir, tmp_path, capsys, monkeypatch
):
  from clip_jax.search import layout

  meta = json.loads((index / "meta.json").read_text())
  moved = tmp_path / "index"
  moved.mkdir()
  for entry in index.iterdir():
    (moved / entry.name).write_bytes(entry.read_bytes())
  gone = meta | {"model": "/gone"}
  (moved / layout.META).write_text(json.dumps(gone))
  assert "--model" in fails(capsys, "search", moved, "three")
  assert call("search", moved, "three", "--model", workdir)["results"]
  other = gone | {"fingerprint": "0" * 64}
  (moved / layout.META).write_text(json.dumps(other))
  error = fails(capsys, "search", moved, "three", "--model", workdir)
  assert "not the one that made index" in error
  later = gone | {"step": 7}
  (moved / layout.META).write_text(json.dumps(later))
  error = fails(capsys, "search", moved, "three", "--model", workdir)
  assert "no checkpoint of step 7" in error


def test_embed_leaves_another_directory_alone(workdir, capsys):
  data = ["--data", "builtin:digits/test"]
  error = fails(capsys, "embed", workdir, *data, "--out", workdir)
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
  assert call("models") == runpy.run_path(str(tool))["count"]()
  capsys.readouterr()
  cli.main(["models"])
  row = capsys.readouterr().out.splitlines()[2]
  assert row.split()[:4] == ["RN50", "102", "M", "224"]


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
  told = "Wrote 1 records, 1 bad ones left out (1 truncated);"
  assert told in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "required: VERB"),
    (["trian"], "Did you mean train?"),
    (["models", "--jsn"], "Did you mean --json?"),
    (["models", "extra"], "unrecognized arguments: extra"),
    (["eval", "m", "--task", "zero_shot"], "required: --data"),
    (["eval", "m", "--task=zero_sot", "--data=d"], "Did you mean 'zero_shot'?"),
    (["convert", "a", "b", "--to=opneai"], "Did you mean 'openai'?"),
    (["embed", "m", "--dtype=float8"], "Known: float16, float32"),
    (["data", "inspct", "builtin:digits"], "Did you mean inspect?"),
    (["classify", "m", "--labels", "a"], "required: IMAGE"),
    (["search", "index"], "give a text"),
    (["search", "index", " "], "is empty"),
    (["search", "index", __file__], f"search with --image {__file__}"),
    (["search", "index", "text", "--image", "file"], "give a text"),
    (
      ["search", "index", "text", "-k", "0"],
      "-k: must be a whole number, at least 1; got '0'",
    ),
    (["search", "index", "text", "-k", "x"], "whole number, at least 1"),
    (["train", "--steps=5"], "Did you mean --config.steps=5?"),
    (["train", "--batch-size", "5"], "--config.batch_size=VALUE?"),
    (["train", "--config.steps=7", "--config.epochs=1"], "not both"),
    (["data", "inspect", "builtin:digits", "--drop"], "--drop-bad"),
    (["train", "--config", "c"], "required: --workdir"),
    (["train", "--confg=c"], "Did you mean --config?"),
    (["train", "--config.steps"], "--config.steps=VALUE"),
    (["convert", "a", "b", "--preprocess", "0.9"], "like inception:0.9"),
    (["convert", "a", "b", "--preprocess", "half:1"], "like inception:0.9"),
    (["convert", "a", "b", "--preprocess", "openai:x"], "like inception:0.9"),
    (
      ["train", "--config=c", "--workdir=d", "--processes", "2"],
      "go together",
    ),
    (
      [
        *("train", "--config=c", "--workdir=d", "--coordinator=host:1"),
        *("--processes=2", "--process-id=2"),
      ],
      "from 0 to 1",
    ),
  ],
)
def test_wrong_usage_exits_with_2(capsys, arguments, message):
  error = fails(capsys, *arguments, code=2)
  assert message in error
  assert error.startswith("usage: clip-jax")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_is_no_error(capsys, arguments):
  with pytest.raises(SystemExit) as caught:
    cli.main(arguments)
  assert caught.value.code == 0
  assert capsys.readouterr().out.startswith("usage: clip-jax")


@pytest.mark.parametrize(
  "address", ["foo", "127.0.0.1:abc", ":1", "host:99999"]
)
def test_a_coordinator_has_host_and_port(capsys, address):
  run = ["train", "--config=c", "--workdir=d", "--processes=2"]
  run += ["--process-id=0", "--coordinator", address]
  assert "must be HOST:PORT" in fails(capsys, *run, code=2)


@pytest.mark.parametrize(
  "words",
  [
    "search index -k 5 --json text",
    "search -k 5 index text --json",
    "search --json index text -k 5",
    "search index -k 5 --json -- text",
  ],
)
def test_options_stand_anywhere(words):
  arguments = parser.parse(words.split())
  assert (arguments.index, arguments.query) == ("index", "text")
  assert arguments.k == 5 and arguments.json


def test_images_stand_anywhere():
  arguments = parser.parse(
    ["classify", "--labels", "a,b", "m", "1.png", "--json", "2.png"]
  )
  assert arguments.model == "m" and arguments.images == ["1.png", "2.png"]


def test_wrong_usage_shows_the_usage_of_the_verb(capsys):
  error = fails(capsys, "search", "index", "two", "seven", code=2)
  assert error.startswith("usage: clip-jax search")
  assert "unrecognized arguments: seven" in error


def test_overrides_come_in_both_forms_and_in_order():
  arguments = parser.parse(
    [
      *("train", "--config.a.b=1=2", "--config", "file", "--workdir=dir"),
      *("--config.mesh.data", "-1", "--config.a.b=", "--json"),
    ]
  )
  assert arguments.overrides == ["a.b=1=2", "mesh.data=-1", "a.b="]
  assert (arguments.config, arguments.workdir) == ("file", "dir")
  assert arguments.json


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
  capsys, tmp_path, override, message
):
  (tmp_path / "tiny.py").write_text(CONFIG)
  error = fails(
    capsys,
    *("train", "--config", tmp_path / "tiny.py"),
    *("--workdir", tmp_path / "run", override),
  )
  assert message in error
  assert not (tmp_path / "run").exists()


class Watch:
  """Stands for the connections to the other processes."""

  coordinator = "127.0.0.1:9"

  def __init__(self):
    self.failures = []

  def fail(self, error):
    self.failures.append(str(error))


@pytest.mark.parametrize(
  "flags, expected",
  [
    ([], []),
    (["--distributed"], [{"heartbeat_timeout_seconds": 90}]),
    (
      ["--coordinator=host:12", "--processes=3", "--process-id=2"],
      [
        {
          "coordinator_address": Watch.coordinator,
          "coordinator_bind_address": Watch.coordinator,
          "num_processes": 3,
          "process_id": 2,
          "heartbeat_timeout_seconds": 90,
        }
      ],
    ),
  ],
)
def test_processes_are_joined_before_anything_else(
  monkeypatch, tmp_path, capsys, flags, expected
):
  watch, connected, joined = Watch(), [], []

  def connect(address, *, process, processes, join_seconds, heartbeat_seconds):
    assert join_seconds == (60 if "--distributed" in flags else 300)
    assert heartbeat_seconds == 30
    connected.append((address, process, processes))
    return watch

  def initialize(*, initialization_timeout, **options):
    assert initialization_timeout == 300
    joined.append(options)

  monkeypatch.setattr(peers, "connect", connect)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  # The missing file shows that joining came first.
  path = tmp_path / "none.py"
  said = fails(capsys, "train", "--config", path, "--workdir", tmp_path, *flags)
  assert joined == expected
  named = "--coordinator=host:12" in flags
  if named:
    assert connected == [("host:12", 2, 3)]
  elif flags:
    ((address, process, processes),) = connected
    assert (process, processes) == (0, 1) and address.rpartition(":")[2] > "0"
  assert ("Waiting for process 0 at host:12 (up to 300 s)" in said) == named
  # The others are told.
  assert len(watch.failures) == bool(flags)
  assert all("none.py" in failure for failure in watch.failures)


def test_processes_that_cannot_watch_each_other_run_all_the_same(
  monkeypatch, tmp_path, capsys
):
  def connect(address, **_):
    raise errors.UserError(f"Process 0 cannot be reached at {address}.")

  monkeypatch.setattr(peers, "connect", connect)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
  path = tmp_path / "none.py"
  words = ("--config", path, "--workdir", tmp_path, "--distributed")
  said = fails(capsys, "train", *words)
  assert "cannot watch each other: Process 0 cannot be reached at" in said
  assert "none.py" in said


@pytest.mark.parametrize(
  "error, code",
  [
    (errors.UserError("No."), 1),
    (KeyError("x"), 1),
    (KeyboardInterrupt(), 130),
  ],
)
def test_one_of_several_processes_does_not_wait_for_the_others_when_it_fails(
  monkeypatch, error, code
):
  stub(monkeypatch, raiser(error))
  left = []

  def leave(code):
    left.append(code)
    raise SystemExit

  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(os, "_exit", leave)
  with pytest.raises(SystemExit):
    cli.main(["models"])
  assert left == [code]


def stub(monkeypatch, action):
  def models(arguments):
    del arguments
    return action()

  stubbed = dataclasses.replace(verbs.VERBS["models"], run=models)
  monkeypatch.setitem(verbs.VERBS, "models", stubbed)


def raiser(error):
  def action():
    raise error

  return action


@pytest.mark.parametrize(
  "error, code, message",
  [
    (errors.UserError("what to do"), 1, "Error: what to do\n"),
    (errors.UserError("bad \x1b[31mname"), 1, "Error: bad name\n"),
    (OSError(28, "No space left", "file"), 1, "Error: No space left: file\n"),
    (OSError(28, "No space left"), 1, "Error: No space left\n"),
    (TimeoutError(), 1, "Error: TimeoutError\n"),
    (KeyboardInterrupt(), 130, "Interrupted.\n"),
    (SystemExit(143), 143, ""),
    (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "smaller batch"),
  ],
)
def test_each_kind_of_failure_has_its_exit_code(
  monkeypatch, capsys, error, code, message
):
  stub(monkeypatch, raiser(error))
  said = fails(capsys, "models", "--json", code=code)
  assert message in said
  assert len(said.splitlines()) == bool(message)


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
  stub(monkeypatch, raiser(RuntimeError("ours")))
  with pytest.raises(RuntimeError, match="ours"):
    cli.main(["models"])


def test_json_is_alone_on_stdout_and_strict(monkeypatch, capsys):
  def noisy():
    print("a library's chatter")
    payload = {
      "array": [np.float32(0.5), np.int64(3), float("nan"), np.inf],
      "path": pathlib.Path("p"),
      "text": "\x1b\u202e é",
      "none": None,
    }
    return verb.Answer(payload, "text")

  stub(monkeypatch, noisy)
  cli.main(["models", "--json"])
  captured = capsys.readouterr()
  assert json.loads(captured.out) == {
    "array": [0.5, 3, None, None],
    "path": "p",
    "text": "\x1b\u202e é",
    "none": None,
  }
  assert captured.out.isascii() and "\x1b" not in captured.out
  assert captured.err == "a library's chatter\n"


def test_logs_go_to_stderr_and_libraries_are_kept_quiet(monkeypatch, capsys):
  def log():
    logging.info("step 1")
    logging.getLogger("clip_jax.data").info("data")
    logging.getLogger("absl").warning("absl noise")
    logging.getLogger("absl").error("absl error")
    logging.getLogger("jax._src").info("jax noise")
    logging.getLogger("jax._src").warning("jax warning")
    warnings.warn("noise", DeprecationWarning, stacklevel=1)
    return verb.Answer(None, "done")

  stub(monkeypatch, log)
  root = logging.getLogger()
  before = root.level, list(root.handlers)
  cli.main(["models"])
  captured = capsys.readouterr()
  assert captured.out == "done\n"
  assert captured.err.splitlines() == [
    "step 1",
    "data",
    "absl error",
    "jax warning",
  ]
  assert (root.level, root.handlers) == before


def shell(command, **options):
  environment = os.environ | {
    "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[2]),
    "CLIP_JAX": f"{sys.executable} -m clip_jax",
  }
  return subprocess.run(
    ["bash", "-c", command],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
    **options,
  )


def test_the_module_is_the_command_and_passes_its_exit_code_on():
  done = shell("$CLIP_JAX eval nowhere --task zero_shot --data x:y --json")
  assert done.returncode == 1
  assert done.stdout == ""
  assert done.stderr.startswith("Error: Model 'nowhere' does not exist")
  assert len(done.stderr.splitlines()) == 1


# A command whose verb answers at once, in a process of its own.
QUICK = """
import os, sys
from clip_jax import cli, terminal
from clip_jax.cli import flags, verb, verbs
def models(arguments):
  os.write(1, b"native chatter" if arguments.json else b"")
  return verb.Answer([1], terminal.table(("a", "b"), [("c", "d")]))
verbs.VERBS["models"] = verb.Verb("a", flags.add_json, models)
cli.main(sys.argv[1:])
print("after")
"""


@pytest.fixture
def quick(tmp_path):
  (tmp_path / "quick.py").write_text(QUICK)
  return f"{sys.executable} {tmp_path / 'quick.py'} models"


def test_a_full_disk_behind_stdout_is_a_clear_error(quick):
  done = shell(f"{quick} > /dev/full")
  assert (done.returncode, done.stderr) == (
    1,
    "Error: No space left on device\n",
  )


def test_a_reader_that_goes_away_is_no_fuss(quick):
  # The reader is gone for certain when the process begins.
  done = shell(f"{{ sleep 0.2; {quick}; }} | true; echo ${{PIPESTATUS[0]}}")
  assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_a_table_all_the_same(quick, encoding):
  done = shell(f"PYTHONIOENCODING={encoding} {quick}")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == "a  b\n-  -\nc  d\nafter\n"


def test_what_native_code_prints_does_not_mix_with_json(quick):
  done = shell(f"{quick} --json")
  assert (done.stdout, done.stderr) == ("[\n  1\n]\nafter\n", "native chatter")


def test_help_and_usage_errors_import_nothing_heavy():
  heavy = ("jax", "flax", "numpy", "grain", "PIL", "transformers")
  code = (
    "import sys; from clip_jax import cli\n"
    "try: cli.main(['models', '--jsn'])\n"
    "except SystemExit: pass\n"
    f"assert not set({heavy!r}) & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(cli.__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr
