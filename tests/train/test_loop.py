"""The whole loop on real scans, with the model that compiles fastest."""

import dataclasses
import json
import logging
import pathlib
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import errors, loading, sharding, terminal
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import sources
from clip_jax.packing import packed_text
from clip_jax.train import journal, loop, profiling
from clip_jax.train import run as run_lib

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny_bow.py"
CHANGES = (
  "data.train=builtin:digits/train",
  "evals.test.data=builtin:digits/test",
  "steps=6",
  "optim.warmup_steps=2",
  "log_every_steps=2",
  "checkpoint.every_steps=3",
)


def _config(**changes):
  config = config_lib.load(CONFIG, CHANGES)
  return config_lib.check(dataclasses.replace(config, **changes))


def _lines(workdir):
  """The log of a run without what a clock measured."""
  text = (workdir / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  timed = ("images_per_second", "data_wait", "mfu")
  return [{k: v for k, v in x.items() if k not in timed} for x in lines]


pytestmark = pytest.mark.usefixtures("all_tracked")


def _whole_config():
  changes = {"report": "builtin:digits/test", "tracker": "wandb"}
  return _config(eval_every_steps=4, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, all_tracked):
  """A finished run: its workdir, summary, opened data, progress, tracker."""
  workdir = tmp_path_factory.mktemp("whole") / "a run"
  opened, shown = [], []
  open_source = sources.open_source
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sources, "open_source", lambda x: opened.append(x) or open_source(x)
    )
    patch.setattr(
      terminal.Progress, "__call__", lambda *args: shown.append(args)
    )
    summary = loop.train(_whole_config(), workdir, profile_step=3)
  tracked = list(all_tracked.calls)
  progress = [(bar.name, done, total) for bar, done, total in shown]
  return types.SimpleNamespace(
    workdir=workdir,
    summary=summary,
    opened=opened,
    progress=progress,
    tracked=tracked,
  )


def test_a_run_leaves_what_its_docstring_says(whole):
  workdir, summary = whole.workdir, whole.summary
  assert summary.steps == 6 and summary.skipped == 0
  assert summary.bad_records == 0
  assert summary.evals["test"]["examples"] == 364
  with Image.open(summary.report) as picture:
    assert picture.format == "PNG"
  saved = workdir_lib.load_config(workdir)
  assert not config_lib.differences(saved, _whole_config())
  text = (workdir / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [x["step"] for x in lines if "loss" in x] == [2, 4, 6]
  evaluations = [x for x in lines if "eval/test/top1" in x]
  assert [x["step"] for x in evaluations] == [4, 6]
  last = summary.evals["test"]
  assert evaluations[-1]["eval/test/top1"] == last["top1"]
  for name in ("learning_rate", "logit_scale", "images_per_second", "mfu"):
    assert lines[-2][name] > 0
  assert 0 <= lines[-2]["data_wait"] < 1
  assert list(workdir.glob("events.out.tfevents.*"))


def test_a_run_is_tracked_with_evaluations_and_config(whole):
  (begun,) = (x for name, x in whole.tracked if name == "init")
  saved = json.loads((whole.workdir / "config.json").read_text("utf-8"))
  assert begun["name"] == "a run"
  assert begun["config"] == {**saved, "total_steps": 6}
  logged = [x["positional"][0] for name, x in whole.tracked if name == "log"]
  assert [x["step"] for x in logged if "loss" in x] == [2, 4, 6]
  assert [x["step"] for x in logged if "eval/test/top1" in x] == [4, 6]
  assert whole.tracked[-1] == ("finish", {"positional": (), "exit_code": 0})


def test_a_trace_names_its_steps(whole):
  traces = pathlib.Path(whole.summary.profile)
  assert traces == whole.workdir / "plugins" / "profile"
  (trace,) = traces.glob("*/*.xplane.pb")
  steps = set()
  if jax.__version_info__ >= (0, 11):  # Its own reader aborts the process.
    assert b"step_num" in trace.read_bytes()
    return
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        if event.name == "train":
          steps.add(dict(event.stats)["step_num"])
  assert steps == {3, 4, 5}


def test_a_trace_after_the_end_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(errors.UserError, match="--profile 6 is after the end"):
    loop.train(_config(steps=5), tmp_path / "run", profile_step=6)
  assert not (tmp_path / "run").exists()


def test_a_step_that_was_done_before_has_no_trace(tmp_path, caplog):
  profile = profiling.Profile(
    tmp_path, 3, first_step=3, total_steps=5, wait=lambda: None
  )
  assert "Step 3 was done before" in caplog.text
  with profile, profile.step(4):
    pass
  assert profile.path is None and not any(tmp_path.iterdir())


def test_without_the_flag_no_step_is_traced(tmp_path):
  profile = profiling.Profile(
    tmp_path, None, first_step=0, total_steps=5, wait=lambda: None
  )
  with profile:
    for step in range(1, 6):
      with profile.step(step):
        pass
  assert profile.path is None and not any(tmp_path.iterdir())


def test_a_run_that_ends_within_a_trace_keeps_it(tmp_path):
  profile = profiling.Profile(
    tmp_path, 2, first_step=0, total_steps=9, wait=lambda: None
  )
  with pytest.raises(ZeroDivisionError), profile, profile.step(2):
    _ = 1 / 0
  assert list(profile.path.glob("*/*.xplane.pb"))


def test_a_finished_run_is_a_model(whole):
  clip = loading.load(whole.workdir)
  assert clip.step == 6
  scores = clip.classify(np.zeros((16, 16, 3), np.uint8), ["one", "two"])
  assert scores.shape == (1, 2) and abs(scores.sum() - 1) < 1e-6


def test_data_are_opened_once(whole):
  assert sorted(whole.opened) == ["builtin:digits/test", "builtin:digits/train"]


def test_evaluations_and_report_show_their_progress(whole):
  halves = [(256, 364), (364, 364)]
  assert whole.progress == [
    (name, *half) for name in ("test", "test", "report") for half in halves
  ]


def test_a_run_says_what_it_is_and_epochs_become_steps(caplog):
  with caplog.at_level(logging.INFO):
    run = run_lib.make_run(_config(steps=None, epochs=0.05))
    run.announce()
  assert run.program.total_steps == 5  # 0.05 * 1433 / 16, up.
  assert "1433 records, 5 steps of 16 pairs on 8 x cpu" in caplog.text
  assert "more than once" not in caplog.text
  caplog.clear()
  run_lib.make_run(_config(batch_size=1440)).announce()
  assert "hold some of the 1433 records more than once" in caplog.text


def test_a_batch_of_one_pair_has_nothing_to_compare(caplog):
  caplog.set_level(logging.INFO)
  run = run_lib.make_run(_config())
  for size, told in ((16, False), (1, True)):
    config = dataclasses.replace(run.program.config, batch_size=size)
    program = dataclasses.replace(run.program, config=config)
    dataclasses.replace(run, program=program).announce()
    assert ("one pair has no other to tell it from" in caplog.text) == told
    assert (" steps of 1 pair on" in caplog.text) == told


@pytest.mark.parametrize("told", [True, False])
def test_data_of_one_caption_are_told_at_the_start(tmp_path, caplog, told):
  texts = ["a cat"] * 5 if told else ["a cat", "a dog", "a cat"]
  rows = [f"{n}.png,{text}" for n, text in enumerate(texts)]
  (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
  for n in range(len(texts)):
    (tmp_path / f"{n}.png").write_bytes(b"is not decoded")
  config = config_lib.default_config()
  config.model, config.batch_size, config.steps = "tiny-vit", 16, 5
  config.data.train = f"csv:{tmp_path}/pairs.csv"
  run_lib.make_run(config_lib.check(config)).check_data()
  assert ("have the same caption, 'a cat'" in caplog.text) == told


def test_captions_that_are_cut_are_told_at_the_start(caplog):
  config = config_lib.default_config()
  config.model, config.batch_size, config.steps = "tiny-vit", 16, 5000
  config.data.train = "builtin:digits/train"
  for length, told in ((12, 0), (6, 1)):
    config.model_overrides = {"text": {"context_length": length}}
    caplog.clear()
    run_lib.make_run(config_lib.check(config))
    assert caplog.text.count("sampled captions are longer than") == told
  assert "than the 6 tokens" in caplog.text


def _train_until(config, workdir, name, done):
  """Sends SIGTERM once `done` examples of the evaluation `name` are done."""

  def signal_there(self, so_far, total):
    if (self.name, so_far) == (name, done):
      signal.raise_signal(signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(terminal.Progress, "__call__", signal_there)
    with pytest.raises(SystemExit) as caught:
      loop.train(config, workdir)
  assert caught.value.code == 143


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_is_done_again(
  tmp_path, whole, monkeypatch, all_tracked
):
  all_tracked.calls.clear()
  config = _whole_config()
  wanted = _lines(whole.workdir)
  saved = tmp_path / "checkpoints"
  # After the first of two batches; and when that is made up for.
  for _ in range(2):
    _train_until(config, tmp_path, "test", 256)
    assert _lines(tmp_path) == wanted[:2]
    assert {path.name for path in saved.iterdir()} == {"3", "4"}
  # Made up for, and written, but the run dies before it saves again.
  with monkeypatch.context() as patch:
    patch.setattr(journal.Journal, "next_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      loop.train(config, tmp_path)
  assert _lines(tmp_path) == wanted[:3]
  # After the last batch: the next update is the next chance to leave.
  _train_until(config, tmp_path, "test", 364)
  assert _lines(tmp_path) == wanted[:3]
  assert {path.name for path in saved.iterdir()} == {"3", "4", "5"}
  # Within the report.
  _train_until(config, tmp_path, "report", 256)
  assert _lines(tmp_path) == wanted
  assert not (tmp_path / "report.png").exists()
  summary = loop.train(config, tmp_path)
  assert summary.evals == whole.summary.evals
  assert _lines(tmp_path) == wanted and (tmp_path / "report.png").exists()
  # Stopped, dead, stopped or done, it was one and the same tracked run.
  begun = [x["id"] for x in all_tracked.called("init")]
  assert len(begun) == 6 and len(set(begun)) == 1
  ends = [x["exit_code"] for x in all_tracked.called("finish")]
  assert ends == [0, 0, 1, 0, 0, 0]


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_starts_anew(
  tmp_path, monkeypatch
):
  config = _config(steps=2, log_every_steps=1, evals={})
  note = journal.Journal.note

  def die_at_two(self, step, *measured):
    note(self, step, *measured)
    assert step < 2, "died"

  with monkeypatch.context() as patch:
    patch.setattr(journal.Journal, "note", die_at_two)
    with pytest.raises(AssertionError, match="died"):
      loop.train(config, tmp_path)
  died = _lines(tmp_path)
  assert [line["step"] for line in died] == [1, 2]
  changed = _config(steps=2, log_every_steps=1, seed=5, evals={})
  with pytest.raises(
    errors.UserError,
    match=r"seed: 0 -> 5.*saved no checkpoint.*--allow-changes to start anew",
  ):
    loop.train(changed, tmp_path)
  loop.train(config, tmp_path)
  assert _lines(tmp_path) == died
  shutil.rmtree(tmp_path / "checkpoints")
  loop.train(changed, tmp_path, allow_changes=True)
  assert _lines(tmp_path)[0]["loss"] != died[0]["loss"]


def test_another_config_is_refused_unless_allowed(tmp_path):
  loop.train(_config(steps=2, evals={}), tmp_path)
  changed = _config(steps=3, seed=5, evals={})
  with pytest.raises(errors.UserError, match=r"seed: 0 -> 5, steps: 2 -> 3"):
    loop.train(changed, tmp_path)
  assert loop.train(changed, tmp_path, allow_changes=True).steps == 3


@pytest.mark.slow
def test_a_constant_rate_is_ended_by_a_cooldown_as_if_planned(tmp_path):
  open_end = [*CHANGES, "optim.schedule=constant"]
  planned = config_lib.load(CONFIG, [*open_end, "optim.cooldown_steps=2"])
  loop.train(planned, tmp_path / "planned")
  loop.train(config_lib.load(CONFIG, [*open_end, "steps=4"]), tmp_path / "a")
  shutil.copytree(tmp_path / "a", tmp_path / "copy")
  loop.train(planned, tmp_path / "copy", allow_changes=True)
  losses = [
    [line for line in _lines(tmp_path / name) if "loss" in line]
    for name in ("copy", "planned")
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 3
  got, want = (
    workdir_lib.load_model(tmp_path / name).variables
    for name in ("copy", "planned")
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_what_cannot_change_the_result_may_change(tmp_path):
  loop.train(_config(steps=2, evals={}), tmp_path)
  changes = ("data.threads=1", "mesh.fsdp=4", "checkpoint.keep=1")
  config = config_lib.with_overrides(
    _config(steps=2, log_every_steps=1, evals={}), changes
  )
  assert loop.train(config, tmp_path).steps == 2


def test_checkpoints_without_a_config_are_left_alone(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(errors.UserError, match=r"but no config\.json"):
    loop.train(_config(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_remote_workdir_is_refused():
  with pytest.raises(errors.UserError, match="mount the bucket"):
    loop.train(_config(), "hdfs://bucket/run")


def test_skipped_steps_are_counted_and_logged(tmp_path, monkeypatch, caplog):
  initialise = state_lib.init_state

  def broken(*args, **options):
    state = initialise(*args, **options)
    table = state.params["text"]["token_embedding"]["embedding"]
    state.params["text"]["token_embedding"]["embedding"] = jnp.full_like(
      table, jnp.nan
    )
    return state

  monkeypatch.setattr(state_lib, "init_state", broken)
  config = _config(steps=2, log_every_steps=1, evals={})
  summary = loop.train(config, tmp_path)
  assert summary.skipped == 2
  lines = _lines(tmp_path)
  assert [(x["loss"], x["skipped"]) for x in lines] == [(None, 1), (None, 2)]
  assert "not a finite number (2 skipped so far)" in caplog.text
  # A skipped update does not use up the warm-up.
  assert lines[0]["learning_rate"] == lines[1]["learning_rate"]


def _write_ragged_pairs(folder, count):
  """Writes a table of pictures and captions of one to twelve words."""
  rng = np.random.default_rng(0)
  rows = ["image,caption"]
  for i in range(count):
    pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    words = rng.choice(["a", "red", "cat", "sits"], rng.integers(1, 13))
    rows.append(f"{i}.png,{' '.join(words)}")
  (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
  return f"csv:{folder / 'pairs.csv'}"


def test_a_tokenizer_of_another_vocabulary_is_refused():
  overrides = _config().model_overrides | {"text": {"vocab_size": 1000}}
  config = _config(model_overrides=overrides)
  with pytest.raises(errors.UserError, match="only the ids 0 to 999"):
    run_lib.make_run(config)


@pytest.mark.slow
def test_a_warm_run_compiles_nothing(tmp_path, monkeypatch, caplog):
  pairs = _write_ragged_pairs(tmp_path, 44)
  config = config_lib.load(
    CONFIG.parents[2] / "configs" / "demo_vit.py",
    [
      f"data.train={pairs}",
      "batch_size=64",
      "data.text_layout=packed",
      "steps=60",
      "optim.warmup_steps=1",
      "eval_every_steps=25",
      "log_every_steps=10",
      "checkpoint.every_steps=25",
      "model_overrides.image.width=64",
      "model_overrides.image.depth=1",
      "model_overrides.text.depth=1",
      "model_overrides.text.width=32",
      "report=",
    ],
  )
  # The last batch of either is short.
  evals = {
    "found": {"task": "retrieval", "data": pairs},
    "named": {"data": "builtin:digits/test"},
  }
  config = dataclasses.replace(config, evals=evals)
  compiled, used = {}, set()
  note = journal.Journal.note

  def count(self, step, batch, measured):
    compiled[step] = len([x for x in caplog.messages if "ompil" in x])
    assert isinstance(batch["tokens"], packed_text.PackedText)
    used.add(int((batch["tokens"].tokens > 0).sum()))
    return note(self, step, batch, measured)

  monkeypatch.setattr(journal.Journal, "note", count)
  make_mesh, two = sharding.make_mesh, {"devices": jax.devices()[:2]}
  monkeypatch.setattr(
    sharding, "make_mesh", lambda **sizes: make_mesh(**sizes | two)
  )
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    loop.train(config, tmp_path / "run")
  assert len(used) > 20, "Not ragged."
  # The first evaluation and the first checkpoint are the last to compile.
  assert compiled[1] > 0 and compiled[26] == compiled[60]
