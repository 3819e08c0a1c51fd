"""The suite on stand-ins in the layouts of the real data sets."""

import csv
import dataclasses
import json
import os
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from suite_stand_ins import (
  EMBED,
  FOLDERS,
  MEMES,
  WDS,
  embed_images,
  embed_texts,
  measure,
  pixels,
  png,
  subject,
  unit,
  write_cifar10_1,
  write_flickr8k,
  write_folders,
  write_mnist,
  write_stl10,
  write_svhn,
  write_tar,
)

from clip_jax import cli, errors, json_text
from clip_jax.cli.commands import suite
from clip_jax.evals.suite import (
  check,
  data_sets,
  layouts,
  measuring,
  result_files,
  set_sources,
)
from clip_jax.models import variants


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Returns a directory of data sets, and what is in each."""
  root = tmp_path_factory.mktemp("data")
  return root, {
    "mnist": write_mnist(root),
    "eurosat": write_folders(root / "eurosat" / "test", FOLDERS, 100),
    "hateful_memes": write_folders(root / "hateful_memes", MEMES, 300),
    "stl10": write_stl10(root),
    "flickr8k": write_flickr8k(root),
  }


def scores_by_hand(name, truth):
  """Returns the cosines of images and classes, and the true classes."""
  of_table = data_sets.classes_of(name)
  heads = []
  for several in of_table.synonyms:
    texts = [t.replace("{}", s) for s in several for t in of_table.templates]
    heads.append(unit(np.mean([embed_texts([t])[0] for t in texts], axis=0)))
  images = [embed_images(pixels(seed)[None])[0] for seed, _ in truth]
  labels = [of_table.names.index(own) for _, own in truth]
  return np.stack(images) @ np.stack(heads).T, np.array(labels)


def test_each_figure_is_the_one_computed_by_hand(data, tmp_path):
  root, truths = data
  found = measure(root, tmp_path, ",".join(truths))
  for name in ("mnist", "eurosat", "stl10"):
    scores, labels = scores_by_hand(name, truths[name])
    right = np.sum(scores.argmax(axis=1) == labels)
    result = found[name]
    assert result["status"] == "measured"
    value = result["values"]["accuracy"]
    assert value["value"] == right / len(labels)
    low, high = value["interval_95"]
    assert low <= value["value"] <= high
    assert result["examples"] == len(labels)
    assert result["measures"]["examples"] == len(labels)
  assert [found[n]["layout"] for n in truths] == [
    *("wds", "folder", "folder", "tfds", "wds")
  ]
  scores, labels = scores_by_hand("hateful_memes", truths["hateful_memes"])
  gaps = scores[:, 1] - scores[:, 0]
  pairs = [
    (a > b) + (a == b) / 2 for a in gaps[labels == 1] for b in gaps[labels == 0]
  ]
  auc = found["hateful_memes"]["values"]["roc_auc"]
  assert auc["value"] == pytest.approx(np.mean(pairs))
  assert auc["interval_95"] is None
  assert auc["published"] == {
    **{"value": pytest.approx(0.576), "model": "ViT-B-32", "source": "paper"}
  }


def test_cifar10_1_is_measured_as_tfds_prepares_it(tmp_path):
  """Its classes have no names there, only CIFAR-10's order."""
  truth = write_cifar10_1(tmp_path / "data")
  found = measure(tmp_path / "data", tmp_path / "out", "cifar10_1")["cifar10_1"]
  names = data_sets.classes_of("cifar10").names
  named = [(seed, names[label]) for seed, label in truth]
  scores, labels = scores_by_hand("cifar10", named)
  assert found["status"] == "measured", found
  right = np.sum(scores.argmax(axis=1) == labels)
  assert found["values"]["accuracy"]["value"] == right / len(labels)


def test_recalls_are_those_computed_by_hand(data, tmp_path):
  root, truths = data
  captions = truths["flickr8k"]
  result = measure(root, tmp_path, "flickr8k")["flickr8k"]
  owners = [i for i, own in enumerate(captions) for _ in own]
  texts = [f"a photo of {text}" for own in captions for text in own]
  images = np.stack([embed_images(pixels(900 + i)[None])[0] for i in range(3)])
  scores = np.stack([embed_texts([t])[0] for t in texts]) @ images.T
  values = {name: v["value"] for name, v in result["values"].items()}
  assert values["text_to_image_r@1"] == np.mean(scores.argmax(1) == owners)
  first = scores.argmax(axis=0)
  assert values["image_to_text_r@1"] == np.mean(
    [owners[first[i]] == i for i in range(3)]
  )
  assert values["text_to_image_r@5"] == values["text_to_image_r@10"] == 1
  assert (result["examples"], result["measures"]["texts"]) == (3, 6)


def test_what_is_not_there_is_said_with_how_to_get_it(data, tmp_path):
  root, _ = data
  found = measure(root, tmp_path, "cifar10,mnist,food101,ayahoo")
  assert list(found) == ["cifar10", "mnist", "food101", "ayahoo"]
  assert found["cifar10"]["status"] == found["ayahoo"]["status"] == "missing"
  assert f"{root}/wds_vtab-cifar10" in found["cifar10"]["get"]
  assert "tfds build food101" in found["food101"]["get"]
  assert "https://" in found["ayahoo"]["get"]


def test_a_result_says_what_it_depends_on(data, tmp_path):
  root, _ = data
  whom = subject(step=12, architecture="ViT-L-14-336")
  result = measure(root, tmp_path, "mnist", whom)["mnist"]
  saved = json_text.unseal(json_text.read(tmp_path / "mnist.json"))
  assert len(saved.pop("files_hash")) == 64
  assert saved == {k: v for k, v in result.items() if k != "kept"}
  assert saved["model"] == {
    "path": "somewhere/model",
    "fingerprint": "f" * 64,
    "step": 12,
    "architecture": "ViT-L-14-336",
  }
  assert len(saved["prompts_hash"]) == len(saved["data_hash"]) == 64
  assert saved["protocol"]["templates"] == 1
  assert saved["seconds"] > 0 and saved["images_per_second"] > 0
  # 25 images are not the paper's: OpenCLIP's figure stands beside.
  assert saved["values"]["accuracy"]["published"] == {
    "value": pytest.approx(0.7916),
    "model": "ViT-L-14-336",
    "source": "open_clip",
  }
  (warning,) = saved["warnings"]
  assert "holds 25 test images, but MNIST has 10,000" in warning


def test_an_interrupted_suite_continues_and_repeats_nothing(data, tmp_path):
  root, _ = data
  seen = []

  def counted(images):
    if len(seen) == 8:  # In the second set.
      raise KeyboardInterrupt
    seen.append(len(images))
    return embed_images(images)

  whom = subject(images=counted)
  with pytest.raises(KeyboardInterrupt):
    measure(root, tmp_path, "mnist,stl10", whom)
  assert [path.name for path in tmp_path.iterdir()] == ["mnist.json"]
  done = (tmp_path / "mnist.json").read_bytes()
  seen.clear()
  found = measure(root, tmp_path, "mnist,stl10", whom)
  assert sum(seen) == 12  # Those of the second set alone.
  assert found["mnist"]["kept"] and not found["stl10"]["kept"]
  assert (tmp_path / "mnist.json").read_bytes() == done


def _other_model(root, out):
  return {"whom": subject("0" * 64)}


def _other_limit(root, out):
  return {"max_pixels": 10_000}


def _other_data(root, out):
  (root / "hateful_memes" / "hateful" / "more.png").write_bytes(png(7))
  return {}


def _other_pixels(root, out):
  path = next((root / "hateful_memes" / "hateful").iterdir())
  path.write_bytes(png(7))
  return {}


def _other_root(root, out):
  """Of the same names and pictures, written at another time."""
  root.rename(root.parent / "before")
  shutil.copytree(root.parent / "before", root, copy_function=shutil.copyfile)
  return {}


def _damaged_file(root, out):
  path = out / "hateful_memes.json"
  path.write_bytes(path.read_bytes()[:-30])
  return {}


def _without_status(root, out):
  path = out / "hateful_memes.json"
  said = json.loads(path.read_text())
  del said["status"]
  path.write_text(json.dumps(said))
  return {}


def _other_type(root, out):
  path = out / "hateful_memes.json"
  said = json.loads(path.read_text()) | {"measures": "good"}
  path.write_text(json.dumps(said))
  return {}


@pytest.mark.parametrize(
  "change",
  [
    *(_other_model, _other_limit, _other_data, _other_pixels, _other_root),
    *(_damaged_file, _without_status, _other_type),
  ],
)
def test_a_change_measures_a_set_again(tmp_path, change):
  root, out = tmp_path / "root", tmp_path / "out"
  write_folders(root / "hateful_memes", MEMES, 300)
  assert not measure(root, out, "hateful_memes")["hateful_memes"]["kept"]
  assert measure(root, out, "hateful_memes")["hateful_memes"]["kept"]
  options = change(root, out)
  found = measure(root, out, "hateful_memes", **options)["hateful_memes"]
  assert not found["kept"] and found["status"] == "measured"
  assert measure(root, out, "hateful_memes", **options)["hateful_memes"]["kept"]


def test_a_set_that_was_mended_is_measured_again(tmp_path):
  root, out = tmp_path / "root", tmp_path / "out"
  write_flickr8k(root)
  path = max(root.rglob("*.*"), key=lambda path: path.stat().st_size)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  assert measure(root, out, "flickr8k")["flickr8k"]["bad_records"]
  path.write_bytes(whole)
  found = measure(root, out, "flickr8k")["flickr8k"]
  assert found["status"] == "measured" and not found["kept"]


def test_results_of_another_model_are_not_replaced(data, tmp_path):
  root, _ = data
  measure(root, tmp_path, "mnist")
  done = (tmp_path / "mnist.json").read_bytes()
  other = dataclasses.replace(subject("0" * 64), path="other/model")
  with pytest.raises(
    errors.UserError, match="is of somewhere/model, and would"
  ):
    measure(root, tmp_path, "stl10,mnist", other)
  assert [path.name for path in tmp_path.iterdir()] == ["mnist.json"]
  assert (tmp_path / "mnist.json").read_bytes() == done
  measure(root, tmp_path, "mnist", subject("0" * 64))  # Of a later step.
  assert (tmp_path / "mnist.json").read_bytes() != done


@pytest.mark.parametrize("flag", ["--out", "--csv"])
def test_a_place_that_cannot_be_written_to_is_told_first(
  data, model, tmp_path, fails, monkeypatch, flag
):
  (tmp_path / "file").write_text("")
  monkeypatch.setattr(measuring, "_measure", None)
  words = ("eval", model, "--suite", "mnist", "--data-root", data[0])
  said = fails(*words, "--out", tmp_path / "out", flag, tmp_path / "file" / "x")
  assert f"{tmp_path / 'file'} is no directory" in said
  if flag == "--csv":
    said = fails(*words, "--out", tmp_path / "out", flag, tmp_path)
    assert f"Cannot write {tmp_path}: it is a directory" in said


def test_texts_that_were_cut_are_counted_when_a_suite_goes_on(
  data, model, tmp_path, capsys, caplog
):
  root, _ = data
  words = ("--suite", "eurosat", "--data-root", root, "--out", tmp_path)
  counts = []
  for _ in range(2):
    caplog.clear()
    _, answer = call(capsys, "eval", model, *words)
    counts.append(answer["texts_cut"])
    assert "cut off" in caplog.text
  assert counts[0] == counts[1] > 0


def test_a_change_of_the_prompts_measures_a_set_again(tmp_path, monkeypatch):
  write_folders(tmp_path / "hateful_memes", MEMES, 300)
  measure(tmp_path, tmp_path / "out", "hateful_memes")
  other = data_sets.Classes(
    synonyms=data_sets.classes_of("hateful_memes").synonyms,
    templates=("one {}.",),
    also={"hateful": "hatespeech meme", "not hateful": "meme"},
  )
  monkeypatch.setattr(data_sets, "classes", lambda entry: other)
  found = measure(tmp_path, tmp_path / "out", "hateful_memes")
  assert not found["hateful_memes"]["kept"]


def _no_class(root):
  (root / "wds_mnist" / "classnames.txt").unlink()
  return "names no classes"


def _missing_class(root):
  (root / "wds_mnist" / "classnames.txt").write_text("\n".join(WDS[:9]))
  return "Not in the data: '7'"


def _repeated_class(root):
  (root / "wds_mnist" / "classnames.txt").write_text("\n".join([*WDS, "3"]))
  return "More than once in the data: '3'"


def _other_class(root):
  named = "\n".join([*WDS[:9], "ten thousand"])
  (root / "wds_mnist" / "classnames.txt").write_text(named)
  return "Not in the data: '7'; not in the table: 'ten thousand'"


def _lost_shard(root):
  (root / "wds_mnist" / "test" / "1.tar").unlink()
  return "holds 1 tar file, but nshards.txt says that there are 2"


def _empty_shards(root):
  for path in (root / "wds_mnist" / "test").glob("*.tar"):
    path.write_bytes(b"")
  return "holds no samples|None of 2 tar files holds a sample"


def _no_shards(root):
  for path in (root / "wds_mnist" / "test").iterdir():
    path.unlink()
  return "in no layout that is known here"


@pytest.mark.parametrize(
  "damage",
  [
    *(_no_class, _missing_class, _repeated_class, _other_class),
    *(_lost_shard, _empty_shards, _no_shards),
  ],
)
def test_a_wrong_set_is_told_and_the_rest_goes_on(tmp_path, damage):
  write_mnist(tmp_path)
  write_folders(tmp_path / "hateful_memes", MEMES, 300)
  said = damage(tmp_path)
  found = measure(tmp_path, tmp_path / "out", "mnist,hateful_memes")
  assert found["mnist"]["status"] == "wrong"
  assert any(part in found["mnist"]["problem"] for part in said.split("|"))
  assert found["hateful_memes"]["status"] == "measured"
  (of_doctor,) = check.check(data_sets.choose("mnist"), str(tmp_path))
  assert of_doctor["state"] == "wrong"
  assert of_doctor["problem"] == found["mnist"]["problem"]


def test_of_a_wrong_set_an_earlier_result_is_told(tmp_path, caplog):
  write_mnist(tmp_path)
  out = tmp_path / "out"
  before = measure(tmp_path, out, "mnist")["mnist"]
  assert before["status"] == "measured"
  kept = (out / "mnist.json").read_bytes()
  said = _lost_shard(tmp_path)
  problem = measure(tmp_path, out, "mnist")["mnist"]["problem"]
  assert said in problem and "mnist.json has a result of before" in problem
  assert problem in caplog.text
  assert (out / "mnist.json").read_bytes() == kept


def test_a_truncated_file_is_told_with_what_is_measured(tmp_path):
  write_mnist(tmp_path)
  path = tmp_path / "wds_mnist" / "test" / "1.tar"
  path.write_bytes(path.read_bytes()[:5000])
  result = measure(tmp_path, tmp_path / "out", "mnist")["mnist"]
  assert result["status"] == "damaged"
  assert 13 <= result["examples"] < 25
  assert any(str(path) in warning for warning in result["warnings"])


def test_a_set_of_bad_images_alone_is_damaged(tmp_path):
  for folder in MEMES:
    (tmp_path / "hateful_memes" / folder).mkdir(parents=True)
    (tmp_path / "hateful_memes" / folder / "a.png").write_bytes(b"\x89PNG")
  found = measure(tmp_path, tmp_path / "out", "hateful_memes")
  assert found["hateful_memes"]["status"] == "damaged"
  assert "All 2 records are bad" in found["hateful_memes"]["problem"]
  assert not (tmp_path / "out").exists()


def test_a_model_that_gives_no_numbers_is_said_once(data, tmp_path):
  def diverged(images):
    return np.full((len(images), EMBED), np.nan, np.float32)

  with pytest.raises(errors.UserError, match="of images are not finite"):
    measure(data[0], tmp_path, "all", subject(images=diverged))


def test_a_metric_that_the_data_cannot_give_is_not_replaced(tmp_path):
  folders = {name: name for name in data_sets.classes_of("voc2007").names}
  write_folders(tmp_path / "voc2007" / "test", folders, 40)
  result = measure(tmp_path, tmp_path / "out", "voc2007")["voc2007"]
  assert (result["status"], result["values"]) == ("no_metric", {})
  assert "map_11_point is not available" in result["problem"]
  assert "top1" in result["measures"]


def test_classes_that_are_not_measured_are_left_out(tmp_path):
  keys = dict.fromkeys(data_sets.classes_of("objectnet").keys)
  place = tmp_path / "objectnet" / "images"
  for folder in (*keys, "squeegee"):
    (place / folder).mkdir(parents=True)
    (place / folder / "a.png").write_bytes(png(len(folder)))
  entry = data_sets.entries()["objectnet"]
  found = layouts.find(entry, tmp_path)
  opened = set_sources.open_found(entry, found)
  assert opened.count == 113
  told = f"folder:{place}?layout=classes holds 113 test images, but ObjectNet, "
  (warning,) = opened.warnings
  assert warning.startswith(told) and " has 18,574: " in warning
  result = measure(tmp_path, tmp_path / "out", "objectnet")["objectnet"]
  assert (result["status"], result["examples"]) == ("measured", 113)
  assert result["bad_records"] == {"other_class": 1}
  assert result["warnings"] == [warning]
  names = [*keys, "squeegee"]
  write_tar(
    tmp_path / "wds_objectnet" / "test" / "0.tar",
    [
      member
      for i in range(114)
      for member in ((f"{i}.png", png(i)), (f"{i}.cls", str(i).encode()))
    ],
  )
  (tmp_path / "wds_objectnet" / "classnames.txt").write_text("\n".join(names))
  found = layouts.find(entry, tmp_path)
  assert set_sources.open_found(entry, found).count is None
  result = measure(tmp_path, tmp_path / "tars", "objectnet")["objectnet"]
  assert result["layout"] == "wds"
  assert "holds 113 test images, but Obj" in result["warnings"][0]


@pytest.mark.parametrize(
  "name, count, damaged, is_told",
  [
    ("objectnet", 18574, 0, False),
    ("objectnet", 18500, 0, False),
    ("objectnet", 18300, 0, True),
    ("objectnet", 50273, 0, True),
    ("objectnet", 18000, 574, False),
    ("imagenet_v2", 10000, 0, False),
    ("imagenet_v2", 9999, 0, True),
    ("eurosat", 5000, 0, False),
  ],
)
def test_a_number_far_from_the_published_is_told(name, count, damaged, is_told):
  entry = data_sets.entries()[name]
  told = set_sources.count_warnings(entry, "a", count, damaged=damaged)
  assert bool(told) == is_told


def test_the_doctor_names_every_set_with_its_classes(data):
  root, truths = data
  found = {s["set"]: s for s in check.check(data_sets.choose("all"), str(root))}
  assert list(found) == list(data_sets.entries())
  for name, said in found.items():
    if said["classes"] is not None:
      known = data_sets.classes(data_sets.entries()[name])
      assert said["classes"] == len(known.synonyms)
    assert said["get"] and said["expected_examples"][0] > 0
    assert said["state"] == ("wrong" if name in truths else "missing")
  # The stand-ins are too small, and nothing else is wrong with them.
  assert found["stl10"]["examples"] == 12
  assert "has 8,000" in found["stl10"]["problem"]


def test_the_csv_has_clip_benchmarks_columns(data, tmp_path):
  root, _ = data
  found = measure(root, tmp_path, "mnist,flickr8k,cifar10").values()
  path = tmp_path / "all.csv"
  result_files.write_csv(str(path), found, model="ViT-B-32", weights="mine")
  with path.open(newline="") as file:
    classified, retrieved = csv.DictReader(file)
  odd = tmp_path / "odd.csv"
  weights = os.fsdecode(b"/caf\xe9")
  result_files.write_csv(str(odd), found, model="m", weights=weights)
  with odd.open(newline="", encoding="utf-8") as file:
    names = {row["pretrained"] for row in csv.DictReader(file)}
  assert names == {"/caf\\udce9"}
  measures = {r["set"]: r["measures"] for r in found if "measures" in r}
  assert {name: classified[name] for name in ("dataset", "model", "task")} == {
    **{"dataset": "mnist", "model": "ViT-B-32"},
    "task": "zeroshot_classification",
  }
  for column, name in (
    *(("acc1", "top1"), ("acc5", "top5")),
    ("mean_per_class_recall", "mean_per_class"),
  ):
    assert float(classified[column]) == measures["mnist"][name]
  assert retrieved["acc1"] == classified["image_retrieval_recall@5"] == ""
  assert retrieved["model_fullname"] == "ViT-B-32 mine"
  assert (
    float(retrieved["text_retrieval_recall@5"])
    == (measures["flickr8k"]["image_to_text"]["r@5"])
  )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = pathlib.Path(__file__).parents[1] / "model_kinds.py"
  make = runpy.run_path(str(path))["clip_directory"]
  return make(tmp_path_factory.mktemp("model") / "tiny")


def call(capsys, *arguments):
  """Returns the exit code and what `--json` prints."""
  try:
    cli.main([str(argument) for argument in (*arguments, "--json")])
    code = 0
  except SystemExit as stopped:
    code = stopped.code
  shown = capsys.readouterr()
  found = json.loads(shown.out)
  bad = [x["set"] for x in found["sets"] if is_bad(x)]
  told = f"None of the {len(found['sets'])} sets is there."
  if bad:
    are = "is" if len(bad) == 1 else "are"
    told = f"{len(bad)} of {len(found['sets'])} sets {are} damaged or wrong: "
    told += f"{', '.join(bad)}."
  assert (f"Error: {told}" in shown.err.splitlines()) == (code == 1)
  return code, found


def is_bad(result):
  """Whether a set is there and cannot be used."""
  return (result.get("status") or result["state"]) in ("wrong", "damaged")


def test_a_set_without_its_metric_is_not_said_to_be_missing(
  model, tmp_path, capsys
):
  folders = {name: name for name in data_sets.classes_of("voc2007").names}
  write_folders(tmp_path / "voc2007" / "test", folders, 40)
  words = ("eval", model, "--data-root", tmp_path, "--out", tmp_path / "out")
  with pytest.raises(SystemExit, match="1"):
    cli.main([str(x) for x in (*words, "--suite", "voc2007,mnist")])
  error = capsys.readouterr().err.splitlines()[-1]
  assert error == "Error: No set that is there gives its metric: voc2007."


def test_the_command_measures_a_suite(data, model, tmp_path, capsys):
  root, _ = data
  table_file, out = tmp_path / "all.csv", tmp_path / "out"
  words = ("eval", model, "--data-root", root, "--out", out)
  some = (*words, "--suite", "hateful_memes,flickr8k,dtd", "--csv", table_file)
  code, said = call(capsys, *some)
  assert code == 0
  assert said["counts"] == {"measured": 2, "missing": 1}
  assert said["architecture"] == "" and len(said["fingerprint"]) == 64
  assert {p.name for p in out.iterdir()} == {
    *("hateful_memes.json", "flickr8k.json")
  }
  assert len(table_file.read_text().splitlines()) == 3
  code, again = call(capsys, *some)
  kept = {r["set"] for r in again["sets"] if r.get("kept")}
  assert (code, kept) == (0, {"hateful_memes", "flickr8k"})
  capsys.readouterr()
  cli.main([str(word) for word in some])
  shown = capsys.readouterr().out
  assert "roc_auc" in shown and "text_to_image_r@1" in shown
  assert "hf download clip-benchmark/wds_vtab-dtd" in shown
  assert "2 measured before" in shown
  code, said = call(capsys, *words, "--suite", "dtd,cifar10")
  assert (code, said["counts"]) == (1, {"missing": 2})


def test_the_commands_exit_with_1_where_a_set_is_wrong(
  data, model, tmp_path, capsys
):
  write_folders(tmp_path / "hateful_memes", MEMES, 300)
  (tmp_path / "rendered_sst2").mkdir()
  words = ("--suite", "hateful_memes,rendered_sst2", "--data-root", tmp_path)
  code, said = call(capsys, "eval", model, *words, "--out", tmp_path / "out")
  assert (code, said["counts"]) == (1, {"measured": 1, "wrong": 1})
  code, said = call(capsys, "data", "doctor", *words)
  assert (code, said["counts"]) == (1, {"wrong": 2})


def test_the_doctor_command_lists_what_is_missing(tmp_path, capsys):
  with pytest.raises(SystemExit):
    cli.main(["data", "doctor", "--suite", "all", "--data-root", str(tmp_path)])
  shown = capsys.readouterr().out
  for name in data_sets.entries():
    assert f"\n{name}: " in shown


@pytest.mark.parametrize(
  "words, message",
  [
    ("--suite all", "needs --data-root"),
    ("--suite all --data-root d --task zero_shot", "--task does not go with"),
    ("--suite all --data-root d --labels a,b", "--labels does not go with"),
    ("--suite all --data-root d --interpolate 0", "--interpolate does not go"),
    ("--task zero_shot --data d --csv f", "--csv goes with --suite"),
    ("--task zero_shot --data-root d", "required: --data"),
  ],
)
def test_wrong_usage_of_a_suite_exits_with_2(fails, words, message):
  assert message in fails("eval", "m", *words.split(), code=2)


@pytest.mark.parametrize(
  "words, message",
  [
    ("--suite cifar --data-root .", "Did you mean"),
    ("--suite all --data-root /nowhere", "is no directory"),
    ("--suite all --data-root gs://bucket/data", "is remote"),
  ],
)
def test_a_suite_that_cannot_begin_says_why(fails, words, message):
  assert message in fails("data", "doctor", *words.split())


def test_openais_architectures_are_recognised():
  class Clip:
    def __init__(self, name):
      self.spec = variants.spec(name)

  for name in ("RN50x4", "ViT-L-14", "ViT-L-14-336"):
    assert suite.architecture(Clip(name)) == name
  assert suite.architecture(Clip("ViT-H-14")) == ""


def test_the_only_version_that_tfds_prepared_is_read(data, tmp_path):
  root = tmp_path / "old"
  write_stl10(root, "0.9.0")
  (said,) = check.check(data_sets.choose("stl10"), str(root))
  address = f"tfds:stl10:0.9.0/test?data_dir={root}"
  told = f"{address} is read, the only version that is there; TFDS now prepares"
  assert (said["data"], said["examples"]) == (address, 12)
  assert said["choices"] == [f"{told} 1.0.0."]
  result = measure(root, tmp_path / "a", "stl10")["stl10"]
  usual = measure(data[0], tmp_path / "b", "stl10")["stl10"]
  assert result["status"] == "measured"
  assert result["values"] == usual["values"]
  assert (result["data"], result["warnings"][0]) == (address, f"{told} 1.0.0.")
  shutil.copytree(root / "stl10" / "0.9.0", root / "stl10" / "0.8.0")
  (said,) = check.check(data_sets.choose("stl10"), str(root))
  assert said["state"] == "wrong"
  assert "Prepared there: stl10:0.8.0, stl10:0.9.0; write" in said["problem"]


def test_the_crops_are_not_taken_for_the_whole_images(tmp_path):
  write_tar(
    tmp_path / "wds_voc2007/test/0.tar", [("0.png", png(0)), ("0.cls", b"1")]
  )
  entries = data_sets.entries()
  assert layouts.find(entries["voc2007"], tmp_path) is None
  assert layouts.find(entries["voc2007_crops"], tmp_path).layout == "wds"


def test_signs_of_patterns_in_the_root_are_only_signs(data, tmp_path):
  root = tmp_path / "da ta [1] {x,y} {0..2}*"
  shutil.copytree(data[0], root)
  truth = write_svhn(root)
  found = measure(root, tmp_path / "a", "svhn,eurosat,mnist,stl10,flickr8k")
  plain = measure(data[0], tmp_path / "b", "eurosat,mnist,stl10,flickr8k")
  for name, usual in plain.items():
    assert (found[name]["status"], found[name]["values"]) == (
      "measured",
      usual["values"],
    )
  scores, classes = scores_by_hand("svhn", truth)
  top1 = (scores.argmax(1) == classes).mean()
  assert (found["svhn"]["status"], found["svhn"]["examples"]) == (
    "measured",
    20,
  )
  assert found["svhn"]["values"]["accuracy"]["value"] == top1


def test_a_parquet_of_another_split_is_not_measured(tmp_path):
  folder = tmp_path / "mnist"
  folder.mkdir(parents=True)
  (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
  entries = data_sets.entries()
  with pytest.raises(errors.UserError, match="in no layout"):
    layouts.find(entries["mnist"], tmp_path)
