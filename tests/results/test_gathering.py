import json

import pytest

import model_kinds
from clip_jax import errors
from clip_jax.evals import published
from clip_jax.evals.suite import data_sets
from clip_jax.results import addresses, collected, comparable, gathering, tables


def write(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values))


def zero_shot(top1=0.5, data="builtin:digits/test", **more):
  return {"task": "zero_shot", "data": data, "top1": top1, **more}


def write_metrics(directory, *entries):
  directory.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(entry) for entry in entries]
  (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_results_of_one_model_are_joined_across_directories(tmp_path):
  run = tmp_path / "runs/mine"
  write_metrics(run, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5})
  write(tmp_path / "a/x.json", zero_shot(model=str(run)))
  write(tmp_path / "b/deep/y.json", zero_shot(data="csv:d.csv", model=str(run)))
  found = gathering.read([run, tmp_path / "a", tmp_path / "b"])
  assert found.models == ["mine"]
  assert [run.losses for run in found.runs] == [[(1, 2.0), (2, 1.5)]]
  assert [result.model for result in found.results] == ["mine", "mine"]


def test_models_of_the_same_name_stay_apart(tmp_path):
  for i, model in enumerate(("/home/me/a/demo", "/home/me/b/demo")):
    write(tmp_path / f"{i}.json", zero_shot(0.1 + i / 2, model=model))
  found = gathering.read([tmp_path])
  assert found.models == ["a/demo", "b/demo"]
  assert [x.fraction("top1") for x in found.results] == [0.1, 0.6]


def test_the_latest_step_counts(tmp_path):
  for i, (step, top1) in enumerate(((5, 0.9), (9, 0.7), (7, 0.8))):
    write(tmp_path / f"{i}.json", zero_shot(top1, step=step, model="m"))
  (result,) = gathering.read([tmp_path]).results
  assert (result.step, result.fraction("top1")) == (9, 0.7)


@pytest.mark.parametrize(
  "one, two",
  [
    ({"prompts_hash": "a"}, {"prompts_hash": "b"}),
    ({"features": "embedding"}, {"features": "pre_projection"}),
    ({"neighbours": 5}, {"neighbours": 20}),
    ({"duplicates": "hits"}, {"duplicates": "misses"}),
    ({"train_data": "csv:a"}, {"train_data": "csv:b"}),
    ({"folds_from": "a.txt"}, {"folds_from": "b.txt"}),
    ({"shots": [{"k": 1}]}, {"shots": [{"k": 2}]}),
  ],
)
@pytest.mark.parametrize("step", [None, 7, 9])
def test_of_two_results_of_other_settings_one_is_listed(
  tmp_path, one, two, step
):
  later = {} if step is None else {"step": 9}
  write(tmp_path / "a.json", zero_shot(0.25, model="m", step=step, **one))
  write(tmp_path / "b.json", zero_shot(0.75, model="m", **later, **two))
  found = gathering.read([tmp_path])
  assert [x.fraction("top1") for x in found.results] == [0.75]
  ((path, why),) = [(x.path, x.why) for x in found.left_out]
  assert path == f"{tmp_path.name}/a.json"
  assert why == (
    f"zero_shot of m on builtin:digits/test is told from {tmp_path.name}/b.json"
    f", which differs in {next(iter(one))}"
  )


def test_a_result_beside_another_of_unknown_or_equal_step_is_listed(tmp_path):
  write(tmp_path / "a.json", zero_shot(0.25, model="m"))
  write(tmp_path / "b.json", zero_shot(0.75, model="m", step=9))
  write(tmp_path / "c.json", zero_shot(0.5, model="m", step=9))
  found = gathering.read([tmp_path])
  assert [x.fraction("top1") for x in found.results] == [0.5]
  assert [x.path for x in found.left_out] == [
    f"{tmp_path.name}/{name}.json" for name in "ab"
  ]


def test_copies_earlier_steps_and_evaluations_in_training_are_not_listed(
  tmp_path,
):
  workdir = model_kinds.workdir(tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["evals"] = {"seen": {"data": "builtin:digits/test"}}
  (workdir / "config.json").write_text(json.dumps(config))
  write_metrics(workdir, {"step": 3, "eval/seen/top1": 0.25})
  here = {"model": str(workdir), "prompts_hash": "a"}
  write(tmp_path / "results/a.json", zero_shot(0.5, step=2, **here))
  write(tmp_path / "results/b.json", zero_shot(0.75, step=3, **here))
  write(tmp_path / "results/c.json", zero_shot(0.75, step=3, **here))
  found = gathering.read([workdir, tmp_path / "results"])
  assert [x.fraction("top1") for x in found.results] == [0.75]
  assert found.left_out == []


def test_metrics_give_evaluations_by_name_measure_and_step(tmp_path):
  write_metrics(
    tmp_path / "run",
    {"step": 1, "loss": 3.0},
    {"step": 2, "eval/seen/top1": 0.25, "eval/p/text_to_image/r@1": 0.5},
    {"step": 4, "eval/seen/top1": 0.75, "eval/seen/examples": 4},
    {"step": 4, "loss": None},
  )
  (run,) = gathering.read([tmp_path]).runs
  assert run.losses == [(1, 3.0)]
  assert run.evaluations["seen", "top1"] == [(2, 0.25), (4, 0.75)]
  assert run.evaluations["p", "text_to_image/r@1"] == [(2, 0.5)]


def test_a_suites_files_say_what_they_measured(tmp_path):
  suite = {"suite": "paper27", "set": "pets", "interval_95": [0.7, 0.9]}
  write(
    tmp_path / "a.json", {**suite, "metric": "mean_per_class", "value": 0.8}
  )
  write(tmp_path / "b.json", {**suite, "metric": "accuracy", "value": 0.75})
  one, two = (
    gathering.read([tmp_path / name]) for name in ("a.json", "b.json")
  )
  (one,), (two,) = one.results, two.results
  assert (one.set, one.title) == ("oxford_pets", "Oxford Pets")
  assert one.fraction("mean_per_class") == 0.8
  assert one.interval("mean_per_class") == (0.7, 0.9)
  assert one.fraction("top1") is None and one.interval("top1") is None
  assert two.fraction("top1") == 0.75


def test_a_whole_suite_is_read_as_its_sets(tmp_path):
  model = {"path": "/home/me/run", "step": 7, "fingerprint": "ab"}
  pets = {
    "set": "oxford_pets",
    "task": "zero_shot",
    "data": "wds:/d/wds_vtab-pets/test/{0..3}.tar",
    "status": "measured",
    "values": {"mean_per_class": {"value": 0.8, "interval_95": None}},
    "measures": {"top1": 0.75, "mean_per_class": 0.8, "calibration": {}},
    "protocol": {"text": "37 prompts", "templates": 1},
    "model": model,
  }
  flickr = {
    "set": "flickr30k",
    "task": "retrieval",
    "values": {"text_to_image_r@1": {"value": 0.5, "interval_95": [0.4, 0.6]}},
    "measures": {"text_to_image": {"r@1": 0.5}},
    "model": model,
  }
  missing = {"set": "ucf101", "task": "zero_shot", "status": "missing"}
  write(tmp_path / "all.json", {"sets": [pets, flickr, missing]})
  found = gathering.read([tmp_path])
  assert found.models == ["run"]
  one, two = found.results
  assert (one.set, one.step, one.data) == ("oxford_pets", 7, "oxford_pets")
  assert tables.measured(one) == [
    ("top1", 0.75, ""),
    ("mean_per_class", 0.8, ""),
  ]
  assert tables.protocol(one) == "37 prompts"
  assert tables.measured(two) == [("text_to_image/r@1", 0.5, "40.0 to 60.0")]
  assert [x.why for x in found.left_out] == ["ucf101 was not measured: missing"]


def test_intervals_of_several_measures_go_by_name(tmp_path):
  both = {"top1": [0.4, 0.6], "top5": [0.8, 0.9]}
  write(tmp_path / "a.json", zero_shot(top5=0.85, interval_95=both))
  (result,) = gathering.read([tmp_path]).results
  assert result.interval("top1") == (0.4, 0.6)
  assert result.interval("top5") == (0.8, 0.9)
  assert result.interval("mean_per_class") is None


def test_lists_and_summaries_hold_several_results(tmp_path):
  write(tmp_path / "list.json", [zero_shot(data=f"csv:{i}") for i in range(3)])
  summary = {"steps": 3, "evals": {"x": zero_shot(data="csv:x")}}
  write(tmp_path / "summary.json", summary)
  assert len(gathering.read([tmp_path]).results) == 4


@pytest.mark.parametrize(
  "text, why",
  [
    ('{"task": "zero_shot", "top1": 0.', "no valid JSON"),
    ('{"name": "package"}', "no result"),
    ("[1, 2]", "no result"),
    ('"text"', "must hold"),
    ("[" * 3000, "JSON"),
    ('{"interpolate": [{"share": 0.5, "top1": 0.1}]}', "--interpolate"),
  ],
)
def test_damaged_and_foreign_files_are_told_and_left_out(tmp_path, text, why):
  (tmp_path / "bad.json").write_text(text)
  write(tmp_path / "good.json", zero_shot())
  found = gathering.read([tmp_path])
  assert len(found.results) == 1
  (left,) = found.left_out
  assert left.path.endswith("bad.json") and why in left.why
  assert str(tmp_path) not in left.path + left.why


@pytest.mark.parametrize(
  "value",
  [None, True, "0.5", 7, -0.1, 1.5, float("nan"), float("inf"), [2], {}],
)
def test_values_that_are_no_fractions_are_none(tmp_path, value):
  more = {"top5": 0.75, "top1_interval_95": [value, 0.9]}
  write(tmp_path / "x.json", zero_shot(value, **more))
  (result,) = gathering.read([tmp_path]).results
  assert result.fraction("top1") is None
  assert result.interval("top1") is None
  assert tables.measured(result) == [("top5", 0.75, "")]


@pytest.mark.parametrize("value", [7, "0.5", None, True, {}, [1.5]])
def test_a_result_without_a_usable_measure_is_left_out(tmp_path, value):
  write(tmp_path / "bad.json", zero_shot(value, model="broken"))
  write(tmp_path / "good.json", zero_shot(model="m"))
  found = gathering.read([tmp_path])
  assert found.models == ["m"] and len(found.results) == 1
  (left,) = found.left_out
  assert left.path == f"{tmp_path.name}/bad.json"
  assert left.why == "no measure is a number from 0 to 1: top1"


@pytest.mark.parametrize(
  "values, is_one",
  [
    ({"shots": [{"k": 1, "mean": 0.5}]}, True),
    ({"shots": [{"k": 1, "mean": "0.5"}]}, False),
    ({"corruptions": [{"severity": 1, "top1": 0.5}]}, True),
    ({"corruptions": [{"severity": 1, "top1": 5}]}, False),
    ({"text_to_image": {"r@5": 0.5}}, True),
    ({"text_to_image": {"r@5": None, "median_rank": 1}}, False),
    ({"calibration": {"ece": 0.5}}, True),
    ({"attributes": {"a": {"groups": {"x": {"rates": {}}}}}}, False),
    ({"attributes": {"a": {"groups": {"x": {"top1": 1}}}}}, True),
  ],
)
def test_a_measure_may_be_inside_of_another_value(values, is_one):
  assert collected.has_measure(values) == is_one


def test_nothing_to_report_on_is_an_error(tmp_path):
  with pytest.raises(errors.UserError, match="is not there"):
    gathering.read([tmp_path / "none"])
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match=r"no result in .*--json"):
    gathering.read([tmp_path])
  with pytest.raises(errors.UserError, match="remote"):
    gathering.read(["gs://bucket/run"])


def test_a_workdirs_own_files_are_no_results(tmp_path):
  write_metrics(tmp_path, {"step": 1, "loss": 1.0})
  write(tmp_path / "checkpoints/3/meta.json", zero_shot())
  write(tmp_path / ".hidden/x.json", zero_shot())
  (tmp_path / "config.json").write_text("{")
  found = gathering.read([tmp_path])
  assert not found.results and len(found.runs) == 1
  # The config was asked for the evaluations' data, and is damaged.
  assert [left.path for left in found.left_out] == [
    f"{tmp_path.name}/config.json"
  ]


@pytest.mark.parametrize(
  "address, shown",
  [
    ("builtin:digits/test", "builtin:digits/test"),
    ("tfds:cifar10/test", "tfds:cifar10/test"),
    ("tfds:/home/me/tfds/x", "tfds:x"),
    ("csv:/home/me/pairs.csv?root=/home/me", "csv:pairs.csv"),
    ("folder:~/pics?split=held_out&held_out=0.1", "folder:pics?split=held_out"),
    ("wds:/home/me/{0000..0012}.tar", "wds:{0000..0012}.tar"),
    ("csv:C:\\me\\x.csv", "csv:x.csv"),
    ("held_out", "held_out"),
    ("wds:/home/me/d/wds_cifar10/test", "wds:wds_cifar10/test"),
    ("wds:/d/cifar10/test/{0..3}.tar", "wds:cifar10/test/{0..3}.tar"),
    ("wds:x/w5/test?labels=several", "wds:w5/test"),
    ("coco:/d/karp/dataset_coco.json/test", "coco:dataset_coco.json/test"),
    (
      "parquet:/d/mnist/data/test-0.parquet",
      "parquet:mnist/data/test-0.parquet",
    ),
    ("csv:/home/me/flowers/test.csv", "csv:flowers/test.csv"),
    ("tfds:/home/me/tfds/cifar10/test", "tfds:cifar10/test"),
    # The directory of a user says nothing of the set.
    ("folder:/home/me/test", "folder:test"),
    ("folder:~/test", "folder:test"),
    ("folder:C:\\Users\\me\\test", "folder:test"),
  ],
)
def test_addresses_are_shown_without_directories(address, shown):
  assert addresses.shown(address) == shown


@pytest.mark.parametrize(
  "address, key",
  [
    ("tfds:cifar10/test", "cifar10"),
    ("wds:/data/wds_vtab-pets/test/{0..3}.tar", "oxford_pets"),
    ("wds:/data/wds_imagenet-a/test/{0..3}.tar", "imagenet_a"),
    ("tfds:imagenet2012/validation", "imagenet"),
    ("folder:/data/Oxford Flowers-102", "flowers102"),
    ("coco:/data/mscoco/captions.json", "coco"),
    ("Stanford Cars", "stanford_cars"),
    ("tfds:cifar10/train", None),
    ("folder:/data/cifar10?split=train", None),
    ("wds:/data/cifar10/cifar10-train-{0..3}.tar", None),
    ("coco:/data/coco/annotations/captions_train2014.json", None),
    ("coco:/data/coco/annotations/captions_val2014.json", None),
    ("folder:/data/pets/dogs_vs_cats/test", None),
    ("folder:pets", None),
    ("folder:pets?split=held_out", None),
    ("csv:/home/me/flowers/test.csv", None),
    ("tfds:cifar10?split=held_out", None),
    ("wds:/data/pets/test/{0..3}.tar", "oxford_pets"),
    ("folder:oxford_pets/test", "oxford_pets"),
    ("builtin:digits/test", None),
    ("tfds:voc/2007/test", "voc2007"),
    ("tfds:voc/2007/test?label=labels_no_difficult", "voc2007"),
    ("tfds:voc/2007/validation", None),
    ("tfds:voc/2012/validation", None),
    ("tfds:voc/2012/test", None),
    ("tfds:dtd/validation", None),
    ("tfds:patch_camelyon/validation", None),
    ("tfds:oxford_flowers102/validation", None),
    ("tfds:food101/validation", "food101"),
    ("hf:/d/food101?split=validation", "food101"),
    ("hf:/d/dtd?split=validation", None),
    ("folder:/d/imagenet/val", "imagenet"),
    ("folder:/d/imagenet-a/val?layout=classes", "imagenet_a"),
    ("coco:/d/coco/dataset_coco.json/val", None),
    ("coco:/d/coco/dataset_coco.json/restval", None),
    ("coco:/d/coco/dataset_coco.json/test", "coco"),
    ("coco:/d/coco/dataset_coco.json?root=/d/train&split=test", "coco"),
    ("coco:/d/coco/dataset_coco.json", None),
    ("coco:/d/flickr30k/dataset_flickr30k.json/val", None),
    ("coco:/d/flickr30k/dataset_flickr30k.json/test", "flickr30k"),
    ("parquet:/d/mnist/data/dev-0.parquet", None),
    ("parquet:/d/mnist/data/validation-00000-of-00001.parquet", None),
    ("parquet:/d/mnist/data/test-00000-of-00001.parquet", "mnist"),
    ("parquet:/d/mnist/test+train", None),
    ("tfds:svhn_cropped/extra", None),
    ("tfds:sun397/standard-part2-120k/test", None),
    ("tfds:imagenet2012/validation?data_dir=/x", "imagenet"),
    ("tfds:cifar10/test?data_dir=/home/u/training/mnist", "cifar10"),
    ("tfds:x/test?data_dir=/d/cifar10", None),
    ("wds:/home/u/training/wds_cifar10/test", "cifar10"),
    ("wds:/home/u/held_out/wds_cifar10/test/?.tar", "cifar10"),
    ("", None),
  ],
)
def test_sets_are_found_by_a_part_of_the_address(address, key):
  assert published.find_set(address) == key


def test_the_suites_splits_are_those_that_are_published():
  for entry in data_sets.entries().values():
    name, _, split = entry.tfds.rpartition("/")
    key = entry.published_as or entry.name
    if key not in published.table()["sets"]:
      continue
    if entry.wds:
      assert published.find_set(f"wds:/d/{entry.wds}/test") == key
    if name and split != "train":  # TFDS has all in one part.
      assert published.find_set(f"tfds:{entry.tfds}") == key
    if name and published.find_set(f"tfds:{name}/validation"):
      # ImageNet's variants are one part.
      assert split == "validation" or entry.group == "robustness"


def test_the_published_table_is_whole():
  table = published.table()
  assert len(table["models"]) == 12
  assert sum(x["by"] == "OpenAI" for x in table["models"].values()) == 9
  keys = table["sets"].keys()
  for model in table["models"].values():
    for task in ("zero_shot", "linear_probe"):
      for source, values in model.get(task, {}).items():
        assert source in table["sources"]
        for key, value in values.items():
          assert 0 < value < 1 and published.metric(key, source)
    for values in model["retrieval"].values():
      assert values.keys() <= keys
  # 27 sets, of which the paper gives the mean of ViT-B/32: 57.9 and 78.1 %.
  paper = [
    k for k in keys if k in table["models"]["ViT-B-32"]["linear_probe"]["paper"]
  ]
  assert len(paper) == 27
  for task, mean in (("zero_shot", 57.9), ("linear_probe", 78.1)):
    values = [published.figures(task, "paper", k)["ViT-B-32"] for k in paper]
    assert 100 * sum(values) / 27 == pytest.approx(mean, abs=0.05)


def test_the_baseline_of_a_shift_is_a_line_in_logits():
  # Taori et al.'s models: 50.0 % on V2 at 63.2 % on ImageNet.
  assert published.expected("imagenet_v2", 0.632) == pytest.approx(
    0.500, abs=1e-3
  )
  assert published.expected("imagenet_r", 0.632) is None


def test_data_whose_paths_end_alike_stay_apart(tmp_path):
  for i, name in enumerate(("cifar10", "eurosat")):
    data = f"parquet:/home/me/{name}/test"
    write(tmp_path / f"{i}.json", zero_shot(0.1 + i / 2, data=data, model="m"))
  found = gathering.read([tmp_path]).results
  assert [(x.data, x.fraction("top1")) for x in found] == [
    ("parquet:cifar10/test", 0.1),
    ("parquet:eurosat/test", 0.6),
  ]


def test_names_of_data_that_would_be_the_same_are_told_apart():
  assert addresses.shown_apart(
    [
      *("folder:/a/cifar10/test", "folder:/b/cifar10/test", "folder:/a/x"),
      *("tfds:c/test", "tfds:c/test?data_dir=/home/me/tfds"),
      *("folder:/home/jane/y", "folder:/home/bob/y"),
    ]
  ) == {
    "folder:/a/cifar10/test": "folder:a/cifar10/test",
    "folder:/b/cifar10/test": "folder:b/cifar10/test",
    "folder:/a/x": "folder:x",
    "tfds:c/test": "tfds:c/test",
    "tfds:c/test?data_dir=/home/me/tfds": "tfds:c/test (2)",
    "folder:/home/jane/y": "folder:y",
    "folder:/home/bob/y": "folder:y (2)",
  }


def test_a_value_without_a_metric_is_no_measure(tmp_path):
  write(tmp_path / "x.json", {"task": "zero_shot", "data": "d", "value": 0.5})
  (result,) = gathering.read([tmp_path]).results
  names = ("top1", "top5", "mean_per_class", "map_11_point")
  assert [result.fraction(name) for name in names] == [None] * 4


def test_average_precisions_are_a_result(tmp_path):
  write(
    tmp_path / "x.json", {"task": "zero_shot", "data": "d", "map_11_point": 0.5}
  )
  found = gathering.read([tmp_path])
  assert (len(found.results), found.left_out) == (1, [])


def test_checkpoints_of_a_run_are_named_after_the_run():
  paths = ["/a/one/checkpoints/100", "/a/two/checkpoints/100", "/a/two"]
  assert list(addresses.distinct(paths).values()) == [
    "one/checkpoints/100",
    "two/checkpoints/100",
    "two",
  ]


def test_a_hash_of_prompts_that_is_none_says_nothing():
  broken = {"prompts_hash": {"a": 1}}
  assert comparable.as_published("mnist", "zero_shot", broken) is None
