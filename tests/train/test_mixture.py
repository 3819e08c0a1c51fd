"""A run on several sources: resumed, and with a source added on the way."""

import collections
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.data import account
from clip_jax.data import record as record_lib
from clip_jax.train import journal, loop
from clip_jax.train import program as program_lib
from clip_jax.train import run as run_lib
from clip_jax.train import step as step_lib

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny_rn.py"
RECORDS = {"a": 70, "b": 41, "c": 60}
BATCH = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("sources")
  rng = np.random.default_rng(0)
  for name, number in RECORDS.items():
    (root / name).mkdir()
    for i in range(number):
      pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
      (root / name / f"{i:02d}.txt").write_text(f"{name} {i}")
  (root / "b" / "40.png").write_bytes(b"damaged")
  return {name: f"folder:{root}/{name}" for name in RECORDS}


def _config(weights, steps):
  changes = (f"steps={steps}", "data.max_bad_fraction=1")
  config = config_lib.load(CONFIG, [*changes, "optim.warmup_steps=1"])
  train = f"data.train={config_lib.mixture(weights)}"
  return config_lib.with_overrides(config, [train])


def _count_only(self):
  """Returns an update that moves the data's position alone."""

  def step(state, batch):
    zero = jnp.zeros(())
    bad = jnp.sum(batch["bad"])
    measured = step_lib.Measured(zero, {}, None, zero, state.skipped, bad)
    return state.replace(step=state.step + 1), measured

  return step


@pytest.mark.slow
def test_no_example_comes_twice_in_an_epoch_of_its_source(
  folders, tmp_path, monkeypatch, caplog
):
  seen, sources, stop_at = {}, [], [5]
  caplog.set_level("INFO", "clip_jax")
  monkeypatch.setattr(program_lib.Program, "make_step", _count_only)
  going_on, note = run_lib.Run.going_on, journal.Journal.note

  def keep_source(self, position, step):
    made = going_on(self, position, step)
    sources.append(made.source)
    return made

  def keep_keys(self, step, batch, measured):
    note(self, step, batch, measured)
    slots = sources[-1].make_order(0)
    keys = [
      _key(sources[-1], slots.slot(int(g)), folders) for g in batch["index"]
    ]
    read = [_key(sources[-1], s, folders) for s in batch["record"].tolist()]
    met = batch["bad"].tolist()
    for key, other, bad in zip(keys, read, met, strict=True):
      assert bad or key == other
      assert key[0] == other[0]  # What replaces it is of the same source.
    seen[step] = keys
    assert step != stop_at[0], "died"

  monkeypatch.setattr(run_lib.Run, "going_on", keep_source)
  monkeypatch.setattr(journal.Journal, "note", keep_keys)
  two = {folders["a"]: 2, folders["b"]: 1}
  with pytest.raises(AssertionError, match="died"):
    loop.train(_config(two, 6), tmp_path)
  first = dict(seen)
  stop_at[0] = 0
  loop.train(_config(two, 6), tmp_path)
  assert {step: seen[step] for step in first} == first
  three = {**two, folders["c"]: 3}
  with pytest.raises(errors.UserError, match=r"data\.train"):
    loop.train(_config(three, 14), tmp_path)
  summary = loop.train(_config(three, 14), tmp_path, allow_changes=True)
  assert summary.steps_now == 8
  keys = [key for step in sorted(seen) for key in seen[step]]
  assert len(keys) == 14 * BATCH
  counts = collections.Counter(name for name, _ in keys)
  assert counts == {"a": 64 + 43, "b": 32 + 21, "c": 64}
  for name, number in RECORDS.items():
    mine = [key for key in keys if key[0] == name]
    for start in range(0, len(mine), number):
      epoch = mine[start : start + number]
      assert len(set(epoch)) == len(epoch)
  lines = (tmp_path / journal.LEDGER).read_text().splitlines()
  bad = {json.loads(line)["key"] for line in lines}
  assert bad == {f"{folders['b']}: 40"}
  assert account.of(sources[-1]).lost_records == 0
  assert "3 of 6 examples, 60 records" in caplog.text


def _key(source, slot, folders):
  """Returns the folder and the number of a slot."""
  for part in source.parts:
    if slot < len(part.source):
      name = next(
        n for n, address in folders.items() if address == part.address
      )
      return name, slot
    slot -= len(part.source)
  raise AssertionError


def _keys(source):
  """Returns the key of each slot, also of a bad one, in order."""
  keys = []
  for slot in range(len(source)):
    try:
      keys.append(source[slot].key)
    except record_lib.BadRecord as error:
      keys.append(error.key)
  return keys


def test_a_share_of_each_source_of_a_mixture_is_held_out(folders):
  def made(weights, *changes):
    more = (
      *("evals.own.task=retrieval", "evals.own.data=held_out"),
      *("report=held_out", "data.held_out=0.2"),
    )
    config = config_lib.with_overrides(_config(weights, 2), [*more, *changes])
    run = run_lib.make_run(config)
    run.check_data()
    return run

  run = made({folders["a"]: 2, folders["b"]: 1})
  shown = run.evaluations["own"]
  assert _keys(run.report) == _keys(shown.source)
  assert run.report_data == shown.data
  train, held_out = _keys(run.source), _keys(shown.source)
  assert len(train) == 56 + 33 and len(held_out) == 14 + 8
  shares = {"a": 14, "b": 8}
  for name, number in RECORDS.items():
    if name in shares:
      mine = [k for k in held_out if k.startswith(f"{folders[name]}?split=")]
      assert len(mine) == shares[name]
      keys = [k.split(": ")[-1] for k in mine]
      kept = [k for k in train if k.startswith(f"{folders[name]}: ")]
      keys += [k.split(": ")[-1] for k in kept]
      assert sorted(keys) == [f"{i:02d}" for i in range(number)]
  split = "?split=held_out&held_out=0.2"
  assert json.loads(shown.data) == {
    **{folders["a"] + split: 1, folders["b"] + split: 1}
  }
  other = made({folders["c"]: 1, folders["b"]: 5, folders["a"]: 9}, "seed=7")
  again = _keys(other.evaluations["own"].source)
  assert set(held_out) < set(again) and len(again) == 14 + 8 + 12
  with pytest.raises(errors.UserError, match="names its split already"):
    made({folders["a"] + "?split=train": 1, folders["b"]: 1})


def test_what_does_not_go_with_a_mixture_is_said(folders, tmp_path):
  config = _config({folders["a"]: 2, folders["b"]: 1}, 2)
  for change, said in (
    ('data.train={"builtin:digits/train": 1, "folder:/nowhere": 1}', "nowhere"),
    ('data.train={"builtin:digits/train": 0}', "above 0"),
    ('data.train={"digits": 1}', "scheme"),
  ):
    with pytest.raises(errors.UserError, match=said):
      loop.train(config_lib.with_overrides(config, [change]), tmp_path)


def test_a_temperature_weighs_sources_by_their_records(folders, tmp_path):
  config = _config({folders["a"]: 1, folders["c"]: 1}, 2)
  warm = config_lib.with_overrides(config, ["data.temperature=1"])
  weights = [part.weight for part in run_lib.make_run(warm).source.parts]
  assert abs(weights[0] / weights[1] - RECORDS["a"] / RECORDS["c"]) < 1e-3
  alone = config_lib.with_overrides(warm, [f"data.train={folders['a']}"])
  with pytest.raises(errors.UserError, match=r"temperature=1 .* one address"):
    loop.train(alone, tmp_path)
