"""A suite that several processes or devices measure gives the same numbers."""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import pytest
import simulated_devices
from suite_stand_ins import (
  FOLDERS,
  HOW,
  MEMES,
  measure,
  subject,
  write_flickr8k,
  write_folders,
  write_mnist,
  write_stl10,
)

import model_kinds
from clip_jax import embedder, errors, hosts, loading, sharding, shared_batches
from clip_jax.cli.commands import joining
from clip_jax.evals.suite import agreement, measuring
from clip_jax.evals.suite import subject as subject_lib

SETS = "mnist,stl10,eurosat,hateful_memes,flickr8k"
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Sets of 25, 12, 20, 3 and 3 images, one of which is damaged."""
  root = tmp_path_factory.mktemp("data")
  write_mnist(root)
  write_stl10(root)
  write_folders(root / "eurosat" / "test", FOLDERS, 100)
  (root / "eurosat" / "test" / "Forest" / "bad.png").write_bytes(b"\x89PNG")
  write_folders(root / "hateful_memes", MEMES, 300)
  write_flickr8k(root)
  return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return model_kinds.clip_directory(tmp_path_factory.mktemp("model") / "tiny")


def on_devices(clip, count):
  """The model on some of the devices, and how their batches are opened."""
  mesh = sharding.make_mesh(devices=jax.devices()[:count])
  # Two of the usual three sizes, of which each is compiled.
  encoder = embedder.Embedder(clip.module, mesh=mesh, batch_sizes=(1, 16))
  placed = dataclasses.replace(
    clip,
    encoder=encoder,
    variables=sharding.place_everywhere(clip.variables, mesh),
  )
  whom = subject_lib.Subject(placed.for_evaluation(), "f" * 64, "model")
  how = dataclasses.replace(HOW, open_batches=shared_batches.opener(encoder))
  return whom, how


def counted(result):
  """All of a result that is counted; calibration is summed."""
  kept = {k: v for k, v in result.items() if k not in TIMES}
  kept["measures"] = dict(kept.get("measures", {}))
  calibration = kept["measures"].pop("calibration", {})
  return kept, calibration


def test_one_two_and_eight_devices_give_the_same_numbers(data, model, tmp_path):
  clip = loading.load(str(model))
  found = {}
  for count in (1, 2, 8):
    whom, how = on_devices(clip, count)
    out = tmp_path / str(count)
    found[count] = measure(data, out, SETS, whom, how=how)
  for name, result in found[1].items():
    want, calibration = counted(result)
    assert result["examples"] in (25, 12, 19, 3)
    for count in (2, 8):
      got, other = counted(found[count][name])
      assert got == want
      # Devices multiply matrices of other sizes, so that sums are rounded in
      # other ways; where a temperature is best, the loss is flat.
      for key in set(calibration) - {"reliability", "probabilities"}:
        assert other[key] == pytest.approx(calibration[key], rel=1e-3)


@pytest.fixture
def second(monkeypatch):
  """Makes this process the first of two; returns what the other says."""
  said = types.SimpleNamespace(next=[])

  def exchanged(text):
    return [text, said.next.pop(0) if said.next else text]

  monkeypatch.setattr(hosts, "exchanged", exchanged)
  return said


def test_a_set_that_a_process_lacks_is_wrong_for_all(data, tmp_path, second):
  alike = json.dumps({"model": "f" * 64})
  second.next = [alike, alike, json.dumps(["", "", "nothing"])]
  found = measure(data, tmp_path, "mnist,hateful_memes")
  assert found["mnist"]["status"] == "wrong"
  problem = found["mnist"]["problem"]
  assert "with 25 records; process 1: nothing. Copy" in problem
  assert found["hateful_memes"]["status"] == "measured"


def test_a_set_that_is_wrong_on_one_process_is_wrong_for_all(second):
  second.next = [json.dumps(["", "It is cut.", "It is cut."])]
  with pytest.raises(errors.UserError, match="process 1: It is cut"):
    agreement.prepare(lambda: None)
  assert agreement.prepare(lambda: None) is None


def test_processes_with_other_models_do_not_begin(data, tmp_path, second):
  second.next = [json.dumps({"model": "0" * 64})]
  with pytest.raises(errors.UserError, match="differ in model: 0000"):
    measure(data, tmp_path, "mnist", subject())


def test_processes_with_other_files_of_labels_do_not_begin(tmp_path, second):
  """Else they would embed other texts, and wait for each other for ever."""
  paths = [tmp_path / name for name in ("here", "there", "other")]
  for path, text in zip(paths, ("a\nb\n", "a\nb\n", "a\nb\nc\n"), strict=True):
    path.write_text(text)

  def command(labels):
    return argparse.Namespace(labels=str(labels), groups=None, batch_size=8)

  def said(labels):
    texts = []
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(hosts, "check_same", texts.append)
      joining.check_same_command(command(labels))
    return json.dumps(texts[0])

  for same in (paths[1], paths[0]):
    second.next = [said(same)]
    joining.check_same_command(command(paths[0]))
  for other in (paths[2], tmp_path / "none", "a,b"):
    second.next = [said(other)]
    with pytest.raises(errors.UserError, match="differ in --labels"):
      joining.check_same_command(command(paths[0]))


def test_processes_with_other_lists_of_folds_do_not_begin(tmp_path, second):
  for name, text in (("here", "a\n"), ("there", "a\n"), ("other", "b\n")):
    (tmp_path / name / "deeper").mkdir(parents=True)
    (tmp_path / name / "testlist01.txt").write_text(text)
    (tmp_path / name / "trainlist01.txt").write_text("c\n")

  def command(name):
    return argparse.Namespace(folds=str(tmp_path / name))

  def said(name):
    texts = []
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(hosts, "check_same", texts.append)
      joining.check_same_command(command(name))
    return json.dumps(texts[0])

  second.next = [said("there")]
  joining.check_same_command(command("here"))
  for other in ("other", "none"):
    second.next = [said(other)]
    with pytest.raises(errors.UserError, match="differ in --folds"):
      joining.check_same_command(command("here"))


def test_only_the_first_process_reads_and_writes_results(
  data, tmp_path, monkeypatch, second
):
  measure(data, tmp_path / "first", "mnist")
  kept = {"set": "mnist", "status": "measured"}
  of_first, nothing = json.dumps([kept, ""]), json.dumps([None, ""])
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(
    hosts,
    "exchanged",
    lambda text: [of_first if text == nothing else text, text],
  )
  found = measure(data, tmp_path / "second", "mnist")
  assert found == {"mnist": {**kept, "kept": True}}
  monkeypatch.setattr(hosts, "exchanged", lambda text: [text, text])
  assert not measure(data, tmp_path / "second", "mnist")["mnist"]["kept"]
  assert not (tmp_path / "second").exists()


def start(*arguments, devices):
  return subprocess.Popen(
    [sys.executable, "-m", "clip_jax", "eval", *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(measuring.__file__).parents[3],
    env=simulated_devices.environment(devices),
  )


@pytest.fixture
def two(free_address):
  """Runs `clip-jax eval` on two processes; returns (code, stdout, stderr)."""

  def run(*arguments, of_each=((), ()), devices=1):
    joined = ("--coordinator", free_address(), "--processes", "2")
    pair = [
      start(*arguments, *own, *joined, "--process-id", i, devices=devices)
      for i, own in enumerate(of_each)
    ]
    ended = [process.communicate(timeout=300) for process in pair]
    codes = [process.returncode for process in pair]
    return [(code, *said) for code, said in zip(codes, ended, strict=True)]

  return run


def without_times(value):
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k not in TIMES}
  if isinstance(value, list):
    return [without_times(each) for each in value]
  return value


def spoil(root, places):
  """Overwrites some images of eurosat, in the order of their records."""
  paths = sorted((root / "eurosat").rglob("*.png"))
  for place in places:
    if place < len(paths) and paths[place].name != "bad.png":
      paths[place].write_bytes(b"\0" * paths[place].stat().st_size)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(data, model, tmp_path, two):
  """To the last bit, on the same number of devices; each decodes its part."""
  words = (model, "--suite", SETS, "--json")
  one = start(
    *(*words, "--data-root", data, "--out", tmp_path / "one"), devices=2
  )
  whole = json.loads(one.communicate(timeout=300)[0])
  roots = [tmp_path / "host-0", tmp_path / "host-1"]
  for i, root in enumerate(roots):
    shutil.copytree(data, root)
    # Of batches of sixteen each process has one half: the other's is not read.
    spoil(root, [k for k in range(32) if k % 16 // 8 != i])
  outs = [tmp_path / "out 0", tmp_path / "out 1"]
  of_each = [
    ("--data-root", root, "--out", out)
    for root, out in zip(roots, outs, strict=True)
  ]
  found = two(*words, of_each=of_each)
  # One image is damaged.
  assert [code for code, _, _ in found] == [1, 1]
  want = whole["sets"]
  for (_, said, _), root in zip(found, roots, strict=True):
    text = json.dumps(without_times(json.loads(said)["sets"]))
    got = json.loads(text.replace(str(root), str(data)))
    assert [s["set"] for s in got] == SETS.split(",")
    assert got == without_times(want)
  assert len(list(outs[0].iterdir())) == 5 and not outs[1].exists()
  # What is there on the first host is not measured again.
  (outs[0] / "stl10.json").unlink()
  for _, said, _ in two(*words, of_each=of_each):
    kept = {s["set"]: s["kept"] for s in json.loads(said)["sets"]}
    assert kept == {name: name != "stl10" for name in SETS.split(",")}
  assert (outs[0] / "stl10.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "of_each, message",
  [
    (
      (("--batch-size", 16), ("--batch-size", 8)),
      "The processes differ in --batch-size: 8 on process 1, 16 on process 0.",
    ),
    ((("--out", __file__), ()), "Choose another place."),
  ],
)
def test_an_error_on_one_process_ends_both_with_a_line(
  data, model, tmp_path, two, of_each, message
):
  words = (model, "--suite", "hateful_memes", "--data-root", data)
  for code, said, errors_said in two(*words, of_each=of_each):
    # What libraries' own threads write may stand before it in its line.
    found = re.findall(r"Error: .*", errors_said)
    assert (code, said, len(found)) == (1, "", 1), errors_said
    assert message in found[0]
    assert "Traceback" not in errors_said
