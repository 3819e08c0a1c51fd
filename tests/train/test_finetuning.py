"""A pretrained model learns a user's own pictures, as README says it."""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import re
import shlex
import shutil

import beginnings
import numpy as np
import pytest

from clip_jax import cli, convert, errors, loading, report
from clip_jax import config as config_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.config import schema
from clip_jax.convert import interpolation
from clip_jax.data import sources
from clip_jax.models import variants
from clip_jax.train import evaluation, loop
from clip_jax.train import origins as origins_lib
from clip_jax.train import run as run_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "finetune.py"
README = (ROOT / "README.md").read_text()
CLASSES = ("été", "one cat", "two cats")


def _write_pictures(path):
  """Fifteen pictures in folders of classes, and the same in a table."""
  source = sources.open_source("builtin:digits/test")
  lines = ["image,caption"]
  for i in range(15):
    name = CLASSES[i % 3]
    (path / "pets" / name).mkdir(parents=True, exist_ok=True)
    file = path / "pets" / name / f"IMG {i}.png"
    file.write_bytes(source[i].image)
    lines += [f"{file},{name} from the {side}" for side in ("left", "right")]
  (path / "captions.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """A small pretrained workdir, pictures, and the configs, as a user has."""
  room = tmp_path_factory.mktemp("a user's room")
  _write_pictures(room)
  (room / "configs").symlink_to(ROOT / "configs")
  tiny = config_lib.load(ROOT / "tests" / "configs" / "tiny_bow.py")
  loop.train(tiny, room / "runs" / "demo")
  return room


def _config(room, **fields):
  changes = {
    "init.model": str(room / "runs" / "demo"),
    "data.train": f"folder:{room / 'pets'}",
    "min_steps": 3,
    "epochs": 1,
    "report": "",
    "optim.peak_lr": 1e-2,
  }
  changes |= fields
  return config_lib.load(CONFIG, [f"{k}={v}" for k, v in changes.items()])


def _call(*arguments):
  """Runs a command that must succeed and returns its JSON."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    cli.main([*map(str, arguments), "--json"])
  return json.loads(stdout.getvalue())


@pytest.fixture(scope="module")
def tuned(room):
  """A fine-tuned workdir and the summary of its training."""
  other = "builtin:two_digits/unseen"
  fields = {"evals.old.data": other, "steps": 4, "checkpoint.every_steps": 2}
  return room / "tuned", loop.train(_config(room, **fields), room / "tuned")


def _zero_shot(model, room, *more):
  data = f"folder:{room / 'pets'}?split=held_out"
  task = ["--task", "zero_shot", "--template", "a photo of a {}."]
  return _call("eval", model, *task, "--data", data, *more)


@pytest.mark.slow
def test_before_and_after_are_what_eval_measures_on_what_was_held_out(
  room, tuned
):
  workdir, summary = tuned
  assert set(summary.before) == set(summary.evals) == {"own", "old"}
  for model, measured in (
    (room / "runs" / "demo", summary.before["own"]),
    (workdir, summary.evals["own"]),
  ):
    found = _zero_shot(model, room)
    assert (found["examples"], found["classes"]) == (3, 3)
    assert found["top1"] == measured["top1"]
    assert found["mean_per_class"] == measured["mean_per_class"]


@pytest.mark.slow
def test_what_a_user_needs_not_type_comes_from_the_model(room, tuned):
  begun, clip = (loading.load(x) for x in (room / "runs" / "demo", tuned[0]))
  assert clip.tokenizer.fingerprint == begun.tokenizer.fingerprint
  assert clip.preprocess == begun.preprocess
  config = workdir_lib.load_config(tuned[0])
  assert config.loss.kind == "softmax"


@pytest.mark.slow
def test_the_table_shows_before_and_after(room, tuned, capsys):
  changes = {"evals.old.data": "builtin:two_digits/unseen", "steps": 4}
  fixed = {**changes, "checkpoint.every_steps": 2, "epochs": None}
  flags = [
    f"--config.{k}={v}"
    for k, v in {
      "init.model": room / "runs" / "demo",
      "data.train": f"folder:{room / 'pets'}",
      "min_steps": 3,
      "report": "",
      "optim.peak_lr": 1e-2,
      **fixed,
    }.items()
    if v is not None
  ]
  cli.main(
    ["train", "--config", str(CONFIG), "--workdir", str(tuned[0]), *flags]
  )
  out, log = capsys.readouterr()  # Resumed at its end: before is remembered.
  assert "Already trained: all 4 steps are done." in log
  assert "Resumed" not in log and "Compiling" not in log
  assert re.search(r"evaluation +measure +before +after", out)
  before = 100 * tuned[1].before["own"]["top1"]
  after = 100 * tuned[1].evals["own"]["top1"]
  assert re.search(rf"own +top-1 +{before:.2f} % +{after:.2f} %", out)


def _make_run(config, tmp_path):
  settled, origins = beginnings.begin(config, tmp_path / "run")
  files = origins_lib.tokenizer_files(tmp_path / "run", origins)
  return run_lib.make_run(settled, tokenizer_files=files)


def test_the_options_that_the_config_names_are_understood(room, tmp_path):
  named = re.findall(
    r"^  --config\.([\w.]+)='?([^'\s]+)", CONFIG.read_text(), re.M
  )
  assert len(named) == 5
  plain = _make_run(_config(room), tmp_path).program.config
  for field, value in named:
    changed = _make_run(
      _config(room, **{field: value}), tmp_path
    ).program.config
    assert list(config_lib.differences(plain, changed)) == [field]


def test_captions_in_a_table_are_measured_by_retrieval(room, tmp_path):
  fields = {"data.train": f"csv:{room / 'captions.csv'}"}
  run = _make_run(_config(room, **fields), tmp_path)
  own = run.evaluations["own"]
  assert (own.task, len(own.source), len(run.source)) == ("retrieval", 3, 12)
  assert run.source[0].texts[0].endswith("from the left")
  assert run.program.total_steps == 3


def test_pictures_of_a_class_are_no_negatives_of_each_other(
  room, tmp_path, caplog
):
  """Batches of more pictures than there are need no warning either."""
  run = _make_run(_config(room, report="held_out"), tmp_path)
  run.check_data()  # All of the run's data has an address.
  with caplog.at_level(logging.INFO):
    run.announce()
  assert not [x for x in caplog.records if x.levelno >= logging.WARNING]
  assert f"{room / 'runs' / 'demo'}: " in caplog.text  # The model, by its name.
  assert run.program.config.loss.duplicates == "positive"
  assert len(run.source) == 12 < run.program.config.batch_size
  texts = {text for i in range(12) for text in run.source[i].texts}
  assert texts == {f"a photo of a {name}." for name in CLASSES}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"init.model": ""}, "give init.model"),
    ({"data.template": "a photo"}, "exactly one placeholder"),
    ({"data.held_out": 0}, "evals.own: data='held_out' is what data.held_out"),
    ({"data.train": "folder:pets?split=train"}, "names its split already"),
    ({"init.model": "gone"}, "init.model: .*'gone' does not exist"),
  ],
)
def test_what_does_not_fit_is_said_at_the_start(
  room, tmp_path, fields, message
):
  with pytest.raises(errors.UserError, match=message):
    loop.train(_config(room, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_ends_of_the_line_are_both_models_bit_for_bit(room, tuned):
  workdir = tuned[0]
  first, last = (
    convert.open_model(path).variables()
    for path in (room / "runs" / "demo", workdir)
  )
  for share, want in ((0.0, first), (1.0, last)):
    options = convert.Options(interpolate=share)
    got = convert.open_model(workdir, options=options).variables()
    np.testing.assert_array_equal(_flat(got), _flat(want))
  assert np.abs(_flat(last) - _flat(first)).max() > 1e-3
  options = convert.Options(interpolate=0.25)
  got = convert.open_model(workdir, options=options).variables()
  want = 0.75 * _flat(first) + 0.25 * _flat(last)
  np.testing.assert_allclose(_flat(got), want, rtol=1e-6, atol=1e-7)


def _flat(variables):
  flat = convert.engine.flatten(variables)
  return np.concatenate(
    [np.ravel(flat[path]).astype(np.float64) for path in sorted(flat)]
  )


@pytest.mark.slow
def test_a_sweep_measures_the_models_that_convert_writes(room, tuned, tmp_path):
  workdir, summary = tuned
  swept = _zero_shot(workdir, room, "--interpolate", "0,0.5,1")["interpolate"]
  assert [found["share"] for found in swept] == [0, 0.5, 1]
  assert swept[0]["top1"] == summary.before["own"]["top1"]
  assert swept[2]["top1"] == summary.evals["own"]["top1"]
  half = tmp_path / "half"
  to = ["--to", "clip-jax", "--interpolate", "0.5"]
  _call("convert", workdir, half, *to)
  assert _zero_shot(half, room)["top1"] == swept[1]["top1"]


@pytest.mark.slow
def test_a_first_model_that_changed_or_went_is_told(room, tuned, tmp_path):
  workdir, demo, kept = tuned[0], room / "runs" / "demo", tmp_path / "kept"
  options = convert.Options(interpolate=0.5)
  with pytest.raises(errors.UserError, match="does not say which model"):
    convert.open_model(demo, options=options)
  demo.rename(kept)
  try:
    with pytest.raises(errors.UserError, match=r"Cannot open.*--with MODEL"):
      convert.open_model(workdir, options=options)
    moved = convert.Options(interpolate=0.5, interpolate_with=str(kept))
    convert.open_model(workdir, options=moved)
    shutil.copytree(workdir, demo)  # Another model in its place.
    with pytest.raises(errors.UserError, match="has changed since"):
      convert.open_model(workdir, options=options)
  finally:
    shutil.rmtree(demo, ignore_errors=True)
    kept.rename(demo)


def test_models_of_two_architectures_have_nothing_between_them(room):
  model = convert.open_model(room / "runs" / "demo")
  text = {**model.spec["text"], "context_length": 9}
  other = convert.Portable({**model.spec, "text": text}, {}, model.report)
  with pytest.raises(errors.UserError, match=r"text.context_length is 16 in"):
    interpolation.interpolate(model, other, 0.5)


def test_a_size_may_be_left_out_in_one_of_two_descriptions():
  """An MLP that is four times as wide as the tower, told or not."""
  spec = variants.spec("tiny-vit")
  told = {**spec["image"], "mlp_dim": 4 * spec["image"]["width"]}
  models = [
    convert.Portable({**spec, "image": image}, {}, convert.Report("clip-jax"))
    for image in (spec["image"], told)
  ]
  assert models[0].spec["image"]["mlp_dim"] is None
  interpolation.interpolate(*models, 0.5)
  config = config_lib.default_config()
  config.model, config.init.model = "tiny-vit", "m"
  frozen = schema.freeze(config.to_dict())
  origins_lib.settle(frozen, None, {"model": models[1]})


@pytest.mark.parametrize("share", ["1.5", "-0.1", "half", "nan", "0.5,"])
def test_a_share_outside_of_the_line_is_wrong_usage(share, capsys):
  command = ["eval", "x", "--task", "zero_shot", "--data", "y"]
  with pytest.raises(SystemExit) as caught:
    cli.main([*command, f"--interpolate={share}"])
  assert caught.value.code == 2
  assert "must be from 0 to 1" in capsys.readouterr().err


@pytest.mark.slow
def test_readmes_section_runs_as_it_stands(room, monkeypatch, capsys):
  section = README.split("## Fine-tune")[1].split("\n## ")[0]
  block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
  commands = [
    shlex.split(line, comments=True)
    for line in block.replace("\\\n", " ").splitlines()
  ]
  assert len(commands) <= 6
  monkeypatch.chdir(room)
  verbs = []
  for program, verb, *words in commands:
    assert program == "clip-jax"
    if verb == "train":
      # The small model here is no ResNet.
      words = [word.replace("/norm/", "/ln_1/") for word in words]
      words += ["--config.min_steps=2", "--config.epochs=1"]
    cli.main([verb, *words])
    verbs.append(verb)
  assert verbs == ["train", "eval", "convert", "embed", "search"]
  out = capsys.readouterr().out
  assert re.search(r"own +top-1 ", out) and re.search(r"other +top-1 ", out)
  assert re.search(r"share +top-1 ", out)
  assert "calibration is left out: of fewer than 200" in out
  assert "temperature" not in out
  last = out.rpartition("score")[2]
  assert any(name in last for name in CLASSES)
  assert os.path.isfile("runs/pets/report.png")


def test_the_report_has_each_share_before_and_after_with_its_interval():
  def result(data, right, examples, *classes):
    names = ("name", "examples", "right")
    return {
      **{"task": "zero_shot", "data": data, "top1": right / examples},
      "examples": examples,
      "per_class": [dict(zip(names, x, strict=True)) for x in classes],
    }

  old = result("builtin:x", 9, 10, ("zero", 10, 9))
  before = {"a": old, "own": result("mine", 1, 6, ("dog", 2, 0), ("cat", 4, 1))}
  after = {"a": old, "own": result("mine", 5, 6, ("dog", 2, 1), ("cat", 4, 4))}
  recall = {"task": "retrieval", "data": "y", "images": 2, "texts": 8}
  recall |= {"text_to_image": {"r@1": 0.5}, "image_to_text": {"r@1": 1.0}}
  before["pairs"] = after["pairs"] = recall
  after["new"] = old  # Not measured before.
  found = list(evaluation._changes(before, after, shown="mine"))
  assert [
    (x.name, x.before.value, x.after.value, x.after.examples, x.main)
    for x in found
  ] == [
    ("own: top-1", 1 / 6, 5 / 6, 6, True),
    ("dog", 0.0, 0.5, 2, False),
    ("cat", 0.25, 1.0, 4, False),
    ("a: top-1", 0.9, 0.9, 10, True),
    ("pairs: text to image, R@1", 0.5, 0.5, 8, True),
    ("pairs: image to text, R@1", 1.0, 1.0, 2, True),
  ]
  own = found[0].after  # Of 6 are 5 right: what each end makes of that.
  at_least = [
    math.comb(6, k) * own.low**k * (1 - own.low) ** (6 - k) for k in (5, 6)
  ]
  assert sum(at_least) == pytest.approx(0.025)
  assert 1 - own.high**6 == pytest.approx(0.025)
  page = report.draw(report.Rows([], []), title="t", changes=found)
  none = report.draw(report.Rows([], []), title="t")
  assert page.height > none.height + 30 * len(found)
  assert np.asarray(page)[:, -40:].min() == 255  # Nothing runs over the edge.
  assert not list(evaluation._changes({}, after, shown="mine"))
