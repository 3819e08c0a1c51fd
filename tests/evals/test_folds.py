"""Means over published folds and splits, beside the same by hand."""

import numpy as np
import pytest
from suite_stand_ins import (
  PREPROCESS,
  embed_images,
  embed_texts,
  measure,
  pixels,
  png,
  unit,
  write_tar,
)

from clip_jax import errors
from clip_jax.evals import folds, labelled_features, linear_probe
from clip_jax.evals.suite import data_sets

STL10 = data_sets.classes_of("stl10").names
BAD = 2  # The place of a damaged training image.


def write_stl10_tars(root, *, train=60, test=25):
  """CLIP_benchmark's tars, in the order of STL-10's files, and ten folds."""
  for split, count, seed in (("train", train, 0), ("test", test, 1000)):
    members = []
    for i in range(count):
      image = b"\x89PNG" if (split, i) == ("train", BAD) else png(seed + i)
      members.append((f"s{i:07d}.png", image))
      members.append((f"s{i:07d}.cls", str(i % 10).encode()))
    write_tar(root / "wds_stl10" / split / "0.tar", members)
  (root / "wds_stl10" / "classnames.txt").write_text("\n".join(STL10))
  rng = np.random.default_rng(3)
  chosen = [rng.permutation(train)[:35] for _ in range(10)]
  lines = [" ".join(map(str, fold)) + " " for fold in chosen]  # As they do.
  (root / "fold_indices.txt").write_text("\n".join(lines) + "\n")
  return chosen


def nearest(train, test):
  """The share whose nearest training example has their class."""
  (features, labels), (queries, truth) = train, test
  best = (unit(queries) @ unit(features).T).argmax(axis=1)
  return np.mean(labels[best] == truth)


def features_of(seeds):
  return np.stack([embed_images(pixels(seed)[None])[0] for seed in seeds])


@pytest.fixture
def stl10(tmp_path):
  chosen = write_stl10_tars(tmp_path)
  data = {
    "data": f"wds:{tmp_path}/wds_stl10/test",
    "train_data": f"wds:{tmp_path}/wds_stl10/train",
    "folds": str(tmp_path / "fold_indices.txt"),
  }
  return data, [np.array(sorted({*fold} - {BAD})) for fold in chosen]


def evaluate(task, **fields):
  return folds.evaluate(
    task, embed=embed_images, preprocess=PREPROCESS, **fields
  )


def test_ten_folds_of_the_training_part_are_averaged(stl10):
  data, chosen = stl10
  result = evaluate("knn", neighbours=1, **data)
  test = features_of(range(1000, 1025)), np.arange(25) % 10
  want = [nearest((features_of(fold), fold % 10), test) for fold in chosen]
  assert [fold["top1"] for fold in result["folds"]] == want
  assert result["top1"] == pytest.approx(np.mean(want))
  assert result["top1_std"] == pytest.approx(np.std(want)) and np.std(want) > 0
  sizes = [fold["train_examples"] for fold in result["folds"]]
  assert sizes == [len(fold) for fold in chosen]
  assert {34, 35} == {*sizes}  # The damaged image is in some of the folds.
  assert (result["examples"], result["classes"]) == (25, 10)
  assert result["bad_records"] == {"not_an_image": 1}


def test_a_linear_probe_chooses_its_penalty_in_each_fold(stl10):
  data, chosen = stl10
  result = evaluate("linear_probe", **data)
  test = labelled_features.Examples(
    features_of(range(1000, 1025)), np.arange(25) % 10, STL10
  )
  fold = chosen[4]
  train = labelled_features.Examples(features_of(fold), fold % 10, STL10)
  alone = linear_probe.fit("linear_probe", train, test)
  assert result["folds"][4] == alone
  tops = [each["top1"] for each in result["folds"]]
  assert len(tops) == 10 and result["top1"] == pytest.approx(np.mean(tops))
  assert len({each["regularisation"] for each in result["folds"]}) > 1


def write_ucf101(root, *, groups=3):
  """Middle frames of a video of each class and group, and three splits."""
  names = data_sets.classes_of("ucf101").names
  lists = root / "ucf101" / "ucfTrainTestlist"
  lists.mkdir(parents=True)
  folders = [name.title().replace(" ", "") for name in names]
  videos = {}
  for label, folder in enumerate(folders):
    (root / "ucf101" / folder).mkdir()
    # The last group is of some classes only, so that splits differ in size.
    for group in range(1, groups + 1 - label % 2):
      video = f"v_{folder}_g{group:02d}_c01"
      seed = 10 * label + group
      videos[folder, group] = (video, seed, label)
      (root / "ucf101" / folder / f"{video}.png").write_bytes(png(seed))
  for split in range(1, groups + 1):
    for kind in ("train", "test"):
      lines = [
        f"{folder}/{video}.avi" + (f" {label + 1}" if kind == "train" else "")
        for (folder, group), (video, _, label) in videos.items()
        if (group == split) == (kind == "test")
      ]
      file = lists / f"{kind}list{split:02d}.txt"
      file.write_text("\r\n".join(lines) + "\r\n")
  return [*videos.items()]


def parts_of(videos, split):
  """Returns (seeds, labels) to train on and to test on."""
  return [
    tuple(
      np.array([video[i] for (_, g), video in videos if (g == split) == own])
      for i in (1, 2)
    )
    for own in (False, True)
  ]


def test_three_splits_of_all_videos_are_averaged(tmp_path):
  videos = write_ucf101(tmp_path)
  result = evaluate(
    "knn",
    data=f"folder:{tmp_path}/ucf101?layout=classes",
    folds=str(tmp_path / "ucf101" / "ucfTrainTestlist"),
    neighbours=1,
  )
  names = data_sets.classes_of("ucf101").names
  want = []
  for split in (1, 2, 3):
    train, test = (
      (features_of(seeds), labels) for seeds, labels in parts_of(videos, split)
    )
    want.append(nearest(train, test))
  assert [fold["top1"] for fold in result["folds"]] == want
  assert result["top1"] == pytest.approx(np.mean(want))
  assert [fold["examples"] for fold in result["folds"]] == [101, 101, 51]
  assert (result["examples"], result["classes"]) == (253, len(names))


def test_the_suite_averages_ucf101_over_its_splits(tmp_path):
  videos = write_ucf101(tmp_path)
  result = measure(tmp_path, tmp_path / "out", "ucf101")["ucf101"]
  classes = data_sets.classes_of("ucf101")
  heads = []
  for several in classes.synonyms:
    texts = [t.replace("{}", s) for s in several for t in classes.templates]
    heads.append(unit(embed_texts(texts).mean(axis=0)))
  want = []
  for split in (1, 2, 3):
    _, (seeds, labels) = parts_of(videos, split)
    guesses = (features_of(seeds) @ np.stack(heads).T).argmax(axis=1)
    want.append(np.mean(guesses == labels))
  assert result["status"] == "measured" and len({*want}) > 1
  value = result["values"]["accuracy"]
  assert value["value"] == pytest.approx(np.mean(want))
  assert value["interval_95"] is None
  assert value["published"]["source"] == "paper"
  assert [f["top1"] for f in result["measures"]["folds"]] == want
  assert (result["examples"], result["protocol"]["test_images"]) == (253, 101)
  assert measure(tmp_path, tmp_path / "out", "ucf101")["ucf101"]["kept"]
  # Other splits are another set.
  lists = tmp_path / "ucf101" / "ucfTrainTestlist"
  (lists / "testlist03.txt").write_text((lists / "testlist02.txt").read_text())
  assert not measure(tmp_path, tmp_path / "out", "ucf101")["ucf101"]["kept"]
  (lists / "testlist03.txt").write_text("Archery/v_Archery_g99_c01.avi\n")
  wrong = measure(tmp_path, tmp_path / "out", "ucf101")["ucf101"]
  assert wrong["status"] == "wrong" and "v_Archery_g99_c01" in wrong["problem"]


@pytest.mark.parametrize(
  "content, message",
  [
    ("0 1 60\n", "from 0 to 59"),
    (f"0 1 {'1' * 5000}\n", "from 0 to 59"),
    (f"{BAD}\n", "number 1: no image that can be read"),
    ("0 1\n0 -1\n", "fold 2"),
    ("\n \n", "holds no fold"),
    ("0 \xe9", "is no list"),
  ],
)
def test_a_file_that_holds_no_folds_is_said(stl10, content, message):
  data, _ = stl10
  with open(data["folds"], "w", encoding="utf-8") as file:
    file.write(content)
  with pytest.raises(errors.UserError, match=message):
    evaluate("knn", **data)


def test_a_wrong_file_of_folds_is_said_before_an_image_is_read(stl10):
  def embed(images):
    raise AssertionError("An image is read.")

  data, _ = stl10
  with open(data["folds"], "w") as file:
    file.write("0 60\n")
  with pytest.raises(errors.UserError, match="fold 1"):
    folds.evaluate("knn", embed=embed, preprocess=PREPROCESS, **data)


def test_a_listed_name_of_several_files_is_said(tmp_path):
  for kind, name in (("train", "a"), ("test", "b")):
    (tmp_path / f"{kind}list01.txt").write_text(f"{name}.avi\n")
  names = ["x/a.png", "x/b.png", "y/b.jpg", "x/c.png", "y/c.png"]
  with pytest.raises(errors.UserError, match="names 'b', and 2 files"):
    folds.read_splits(str(tmp_path), names)
  (only,) = folds.read_splits(str(tmp_path), [*names[:2], *names[3:]])
  np.testing.assert_array_equal(only.train, [0])
  np.testing.assert_array_equal(only.test, [1])


def test_lists_and_data_that_do_not_go_together_are_said(stl10, tmp_path):
  data, _ = stl10
  with pytest.raises(errors.UserError, match="cannot be read"):
    evaluate("knn", **(data | {"folds": str(tmp_path / "none.txt")}))
  (tmp_path / "lists").mkdir()
  lists = {"folds": str(tmp_path / "lists")}
  with pytest.raises(errors.UserError, match="leave --train-data out"):
    evaluate("knn", **(data | lists))
  with pytest.raises(errors.UserError, match="names no files"):
    evaluate("knn", **lists, data=data["data"])
  with pytest.raises(errors.UserError, match="holds no lists of splits"):
    folds.read_splits(lists["folds"], ["a.png"])


def test_folds_are_for_probes_only(fails):
  words = ("--task", "zero_shot", "--data", "builtin:digits", "--folds", "f")
  assert "--folds works with --task" in fails("eval", "m", *words, code=2)


def test_a_split_does_not_test_on_what_it_trains_on(tmp_path):
  (tmp_path / "trainlist01.txt").write_text("x/a.avi 1\ny/b.avi 2\n")
  (tmp_path / "testlist01.txt").write_text("x/a.avi\ny/c.avi\n")
  names = ["x/a.png", "y/b.png", "y/c.png"]
  with pytest.raises(errors.UserError, match=r"split 01: 1 file .* 'a'"):
    folds.read_splits(str(tmp_path), names)
  (found,) = folds.read_splits(str(tmp_path), names, train=False)
  assert found.test is not None and found.test.tolist() == [0, 2]
