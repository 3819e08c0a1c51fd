import html.parser
import io
import json
import os
import sys

import pytest
from PIL import Image

from clip_jax import errors
from clip_jax.evals import prompts, published
from clip_jax.evals.suite import data_sets
from clip_jax.results import (
  apart,
  collected,
  drawing,
  figures,
  gathering,
  html_page,
  picture,
  report_files,
  tables,
)

MODEL = "/home/jane/secret/run"


def results(**more):
  """One result of each kind, by the name of its file."""
  zero_shot = {"task": "zero_shot", "model": MODEL, "step": 7}
  probe = {"task": "linear_probe", "model": MODEL}
  bins = [
    {"low": 0, "high": 0.5, "confidence": 0.4, "accuracy": 0.25, "count": 4},
    {"low": 0.5, "high": 1, "confidence": None, "accuracy": None, "count": 0},
  ]
  return {
    "imagenet": {**zero_shot, "data": "tfds:imagenet2012", "top1": 0.632},
    "v2": {**zero_shot, "data": "tfds:imagenet_v2/test", "top1": 0.559},
    "r": {**zero_shot, "data": "tfds:imagenet_r/test", "top1": 0.693},
    "cifar": {
      **zero_shot,
      "data": "tfds:cifar10/test",
      "top1": 0.5,
      "top1_interval_95": [0.4, 0.6],
      "examples": 10_000,
      "calibration": {"ece": 0.125, "reliability": bins},
      "confusions": [
        {"true": "<cat>", "predicted": "$x_1$", "count": 3},
        {"true": "dog", "predicted": "犬", "count": 1},
      ],
    },
    "probe": {**probe, "data": "tfds:cifar10/test", "top1": 0.75},
    "few": {
      "task": "few_shot",
      "model": MODEL,
      "data": "tfds:cifar10/test",
      "shots": [
        {"k": 4, "mean": 0.5, "std": 0.02, "seeds": 3},
        {"k": 1, "mean": 0.25, "std": 0.1, "seeds": 3},
      ],
      "zero_shot": 0.5,
    },
    "robust": {
      "task": "robustness",
      "model": MODEL,
      "data": "tfds:cifar10/test",
      "clean": {"top1": 0.5},
      "corruptions": [
        {"name": name, "severity": severity, "top1": 0.5 - severity / 20}
        for name in ("gaussian_blur", "noise")
        for severity in (2, 1)
      ],
    },
    "faces": {
      "task": "groups",
      "model": MODEL,
      "data": "folder:/data/faces",
      "attributes": {
        "age": {
          "groups": {
            "old": _group(0.5, cat=0.25, dog=0.75),
            "young": _group(0.75, cat=0.5, dog=0.5),
          },
          "labels": [{"label": "dog", "gap": 0.25}, {"label": "cat"}],
        },
        "unlabelled": {"groups": {"x": _group(None, cat=1.0)}, "labels": []},
      },
    },
    "coco": {
      "task": "retrieval",
      "model": MODEL,
      "data": "coco:/data/mscoco/x.json",
      "text_to_image": {
        "r@1": 0.3,
        "r@5": 0.5,
        "r@10": 0.6,
        "median_rank": 4.5,
      },
      "image_to_text": {"r@1": 0.4, "r@5": 0.6, "r@10": 0.7, "median_rank": 3},
    },
    **more,
  }


def _group(top1, **rates):
  """A group of 8 images, as results have it."""
  return {
    "examples": 8,
    "top1": top1,
    "top1_interval_95": [0.25, 1.0],
    "rates": {
      name: {"rate": rate, "interval_95": [rate / 2, 1.0]}
      for name, rate in rates.items()
    },
  }


def write_all(directory, found):
  directory.mkdir(exist_ok=True)
  for name, values in found.items():
    (directory / f"{name}.json").write_text(json.dumps(values))
  return directory


@pytest.fixture
def collection(tmp_path):
  run = tmp_path / "other"
  run.mkdir()
  lines = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "loss": 1.0, "eval/seen/top1": 0.25},
    {"step": 4, "eval/seen/top1": 0.5, "eval/p/image_to_text/r@1": 0.5},
  ]
  (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return gathering.read([run, write_all(tmp_path / "results", results())])


def marks(panel):
  return {mark.label: mark for mark in panel.marks}


def test_loss_and_evaluations_are_curves_by_step(collection):
  (panel,) = figures.loss(collection).panels
  (mark,) = panel.marks
  assert (mark.label, mark.x, mark.y) == ("other", [1, 2], [2.0, 1.0])
  # What was evaluated once is no curve.
  (panel,) = figures.evaluations(collection).panels
  (mark,) = panel.marks
  assert (mark.label, mark.x, mark.y) == ("other, seen", [2, 4], [25.0, 50.0])


def test_accuracy_has_a_row_for_each_set_and_what_is_published(collection):
  (panel,) = figures.accuracy(collection).panels
  rows = list(panel.categories)
  assert sorted(rows) == ["CIFAR10", "ImageNet", "ImageNet V2", "ImageNet-R"]
  found = marks(panel)
  own = found["run, zero-shot"]
  assert (
    dict(zip([rows[i] for i in own.y], own.x, strict=True))["CIFAR10"] == 50
  )
  assert own.ranges[own.y.index(rows.index("CIFAR10"))] == (40, 60)
  probe = found["run, probe"]
  assert (probe.x, probe.y) == ([75], [rows.index("CIFAR10")])
  assert own.filled and not probe.filled
  openai = found["OpenAI ViT-B-32, zero-shot"]
  values = dict(zip([rows[i] for i in openai.y], openai.x, strict=True))
  assert values == {"CIFAR10": pytest.approx(91.3), "ImageNet": 63.2}


def test_shifts_are_drawn_against_imagenet_with_a_baseline(collection):
  panels = {
    p.title: marks(p) for p in figures.FIGURES["shifts"][0](collection).panels
  }
  assert panels.keys() == {"ImageNet V2", "ImageNet-R"}
  own = panels["ImageNet V2"]["run"]
  assert (own.x, own.y) == ([0.632], [0.559])
  assert len(panels["ImageNet V2"]["published, zero-shot (open_clip)"].x) == 12
  line = panels["ImageNet V2"]["trained on ImageNet"]
  assert line.y[3] == pytest.approx(
    published.expected("imagenet_v2", line.x[3])
  )
  # Against the classes of R alone no line is comparable with all of ImageNet.
  assert "trained on ImageNet" not in panels["ImageNet-R"]


def test_corruptions_start_at_the_clean_images(collection):
  (panel,) = figures.FIGURES["corruptions"][0](collection).panels
  assert panel.title == "run on CIFAR10"
  blur = marks(panel)["gaussian blur"]
  assert (blur.x, blur.y) == ([0, 1, 2], pytest.approx([50, 45, 40]))


def test_few_shot_curves_are_sorted_and_have_zero_shot_beside(collection):
  (panel,) = figures.few_shot(collection).panels
  curve, line = panel.marks
  assert (curve.x, curve.y, curve.spread) == ([1, 4], [25, 50], [10, 2])
  assert (line.look, line.x, line.y) == ("reference", [1, 4], [50, 50])


def test_reliability_has_a_bar_for_each_bin_with_examples(collection):
  (panel,) = figures.FIGURES["reliability"][0](collection).panels
  bars = marks(panel)["right"]
  assert (bars.y, bars.ranges) == ([25], [(0, 50)])
  assert "ECE 12.5 %" in panel.title


def test_confusions_name_both_classes(collection):
  (panel,) = figures.FIGURES["confusions"][0](collection).panels
  assert panel.categories == ["<cat> → $x_1$", "dog → 犬"]
  assert list(panel.marks[0].x) == [3, 1]


def test_the_table_of_published_figures_compares_by_protocol(collection):
  table = tables.compared(collection)
  rows = {row[0]: row[1:] for row in table.rows}
  header = table.header[1:]
  assert len(header) == 2 + 12 and table.published_columns == 12
  row = dict(
    zip(header, rows["CIFAR10, zero-shot, top-1 (open_clip)"], strict=True)
  )
  assert (row["other"], row["run"], row["ViT-B-32"]) == ("", "50.0", "89.8")
  row = dict(
    zip(header, rows["CIFAR10, linear probe, top-1 (paper)"], strict=True)
  )
  assert (row["run"], row["ViT-B-32"], row["RN50"]) == ("75.0", "95.1", "")


def _compared(tmp_path, *found):
  """The rows of the table of published figures, and the data's titles."""
  about = {"model": "m", "task": "zero_shot"}
  write_all(tmp_path / "in", {f"{i}": about | x for i, x in enumerate(found)})
  collection = gathering.read([tmp_path / "in"])
  table = tables.compared(collection)
  rows = [] if table is None else [row[:2] for row in table.rows]
  return rows, [x.title for x in collection.results]


@pytest.mark.parametrize(
  "more, title",
  [
    ({"examples": 70_000}, "MNIST (70,000 images, not 10,000)"),
    ({"examples": 9_000}, "MNIST (9,000 images, not 10,000)"),
    ({"examples": 1}, "MNIST (1 image, not 10,000)"),
    ({"classes": 9}, "MNIST (9 classes, not 10)"),
    (
      {"examples": 100, "classes": 9, "bad_records": {"x": 4}},
      "MNIST (100 images, not 10,000; 9 classes, not 10)",
    ),
    # So much a suite accepts: bad records, and some that are missing.
    ({"examples": 10_000, "classes": 10}, "MNIST"),
    ({"examples": 9_000, "bad_records": {"x": 600, "y": 400}}, "MNIST"),
    ({"examples": 9_950}, "MNIST"),
    ({"examples": "many", "classes": []}, "MNIST"),
  ],
)
def test_only_results_on_the_images_of_a_set_stand_beside_published_figures(
  tmp_path, more, title
):
  result = {"data": "parquet:/d/mnist", "top1": 0.5, **more}
  rows, titles = _compared(tmp_path, result)
  assert titles == [title]
  of_set = [
    ("MNIST, zero-shot, top-1 (open_clip)", "50.0"),
    ("MNIST, zero-shot, top-1 (paper)", "50.0"),
  ]
  assert rows == (of_set if title == "MNIST" else [])


def test_figures_of_200_classes_do_not_stand_beside_one_of_1000(tmp_path):
  data = {"data": "tfds:imagenet_a/test", "top1": 0.25, "examples": 7500}
  clean = {"data": "tfds:imagenet2012/validation", "top1": 0.5}
  rows, titles = _compared(tmp_path, clean, {**data, "classes": 1000})
  assert titles == ["ImageNet", "ImageNet-A (1,000 classes, not 200)"]
  assert [row[0].split(",")[0] for row in rows] == ["ImageNet"] * 2
  found = gathering.read([tmp_path / "in"])
  assert figures.FIGURES["shifts"][0](found) is None
  rows, titles = _compared(tmp_path, clean, {**data, "classes": 200})
  assert titles == ["ImageNet", "ImageNet-A"]
  assert [row[0].split(",")[0] for row in rows][2:] == ["ImageNet-A"] * 2


def test_protocols_of_other_numbers_are_those_of_the_suite(tmp_path):
  found = [
    {"data": "wds:/d/wds_sun397/test", "top1": 0.5, "examples": 108_754},
    {"data": "wds:/d/wds_voc2007/test", "top1": 0.5, "examples": 14_976},
    {
      "set": "ucf101",
      "top1": 0.5,
      "examples": 11_213,
      "folds": [{"examples": 3783}, {"examples": 3734}, {"examples": 3696}],
    },
    {
      "set": "objectnet",
      "top1": 0.5,
      "examples": 18_574,
      "bad_records": {"other_class": 31_699},
    },
  ]
  _, titles = _compared(tmp_path, *found)
  assert titles == ["SUN397", "VOC2007", "UCF101", "ObjectNet"]


@pytest.mark.parametrize(
  "images, texts, title",
  [
    (1000, 5000, "Flickr30k"),
    (990, 4950, "Flickr30k"),
    (31_783, 158_915, "Flickr30k (31,783 images, not 1,000)"),
    (1000, 1000, "Flickr30k (captions an image: 1, not 5)"),
  ],
)
def test_recalls_of_more_images_do_not_stand_above_published_ones(
  tmp_path, images, texts, title
):
  result = {
    "task": "retrieval",
    "data": "wds:/d/wds_flickr30k/test",
    "text_to_image": {"r@1": 0.5},
    "images": images,
    "texts": texts,
  }
  found = gathering.read([write_all(tmp_path / "in", {"a": result})])
  table = tables.retrieval(found)
  assert table.rows[0][1] == title
  assert (table.published_rows > 0) == (title == "Flickr30k")


def _both(tmp_path, *, swapped=False):
  """Results of CIFAR10 with the suite's prompts, and with one template."""
  entry = data_sets.classes(data_sets.entries()["cifar10"])
  labels = [list(names) for names in entry.synonyms]
  hashes = [
    prompts.resolve(labels, templates, may_repeat=True).digest
    for templates in (entry.templates, ["a photo of a {}."])
  ]
  found = []
  for top1, digest, count in zip((0.75, 0.5), hashes, (180, 10), strict=True):
    calibrated = {"ece": top1, "reliability": [_BIN]}
    found.append(
      {
        "task": "zero_shot",
        "model": "m",
        "data": "folder:/home/jane/cifar10/test",
        "top1": top1,
        "examples": 10_000,
        "classes": 10,
        "prompts_hash": digest,
        "protocol": f"zero-shot: {count} prompts of 10 classes",
        "confusions": [{"true": "a", "predicted": "b", "count": 3}],
        "calibration": calibrated,
      }
    )
  suite = {**found[0], "set": "cifar10", "metric": "accuracy"}
  names = ("z", "a") if swapped else ("a", "z")
  return write_all(
    tmp_path / "in", dict(zip(names, (suite, found[1]), strict=True))
  )


_BIN = {"low": 0, "high": 1, "confidence": 0.4, "accuracy": 0.25, "count": 4}


@pytest.mark.parametrize("swapped", [False, True])
def test_published_figures_stand_beside_the_result_of_their_prompts(
  tmp_path, swapped
):
  found = gathering.read([_both(tmp_path, swapped=swapped)])
  # Whatever the files are called.
  row = tables.compared(found).rows[0]
  assert row[:2] == ("CIFAR10, zero-shot, top-1 (open_clip)", "75.0")
  assert "*" not in tables.compared(found).note


def test_a_result_of_other_prompts_is_marked_beside_published_figures(tmp_path):
  place = _both(tmp_path)
  (place / "a.json").unlink()
  found = gathering.read([place])
  table = tables.compared(found)
  assert table.rows[0][1] == "50.0 *"
  note = figures.accuracy(found).note
  assert "Not with the prompts of the suite" in note
  assert note.endswith("image tower: CIFAR10.")
  assert "*: not with the prompts of the suite" in table.note
  assert '<td class="number">50.0 *</td>' in html_page.as_table(table)


def test_of_one_address_the_result_with_the_published_prompts_is_told(tmp_path):
  place = _both(tmp_path)
  suite = json.loads((place / "a.json").read_text())
  del suite["set"]
  (place / "a.json").write_text(json.dumps(suite))
  found = gathering.read([place])
  assert [x.fraction("top1") for x in found.results] == [0.75]
  (left,) = found.left_out
  assert left.path == "in/z.json"
  assert left.why.endswith(
    "told from in/a.json, which differs in prompts_hash, protocol"
  )


def test_results_of_one_set_have_names_that_tell_them_apart(tmp_path):
  found = gathering.read([_both(tmp_path)])
  titles = ["CIFAR10", "CIFAR10 (10 prompts)"]
  assert [x.title for x in found.results] == titles
  rows = [row[2] for row in tables.results(found).rows]
  assert rows == titles
  panels = figures.FIGURES["confusions"][0](found).panels
  assert [x.title for x in panels] == [f"m on {title}" for title in titles]
  panels = figures.FIGURES["reliability"][0](found).panels
  assert [x.title.split("\n")[0] for x in panels] == [
    f"m on {title}" for title in titles
  ]
  (panel,) = figures.accuracy(found).panels
  assert list(panel.categories) == titles


@pytest.mark.parametrize(
  "one, two, words",
  [
    (
      {"data": "tfds:cifar10/test"},
      {"data": "wds:/d/cifar10/test"},
      ["tfds:cifar10/test", "wds:cifar10/test"],
    ),
    ({"classes": 1}, {"classes": 10}, ["1 class", "10 classes"]),
    (
      {"task": "knn", "neighbours": 1},
      {"task": "knn", "neighbours": 5},
      ["1 neighbour", "5 neighbours"],
    ),
    (
      {"prompts_hash": "a" * 64},
      {"prompts_hash": "b" * 64},
      ["prompts aaaaaaaa", "prompts bbbbbbbb"],
    ),
    (
      {"task": "few_shot", "shots": [{"k": 1}, {"k": 2}]},
      {"task": "few_shot", "shots": [{"k": 4}]},
      ["shots 1, 2", "shots 4"],
    ),
    (
      {"task": "retrieval", "protocol": "retrieval: captions as '{}', the"},
      {"task": "retrieval", "protocol": "retrieval: captions as 'a {}', the"},
      ["captions as '{}'", "captions as 'a {}'"],
    ),
    (
      {"task": "knn", "train_data": "csv:/home/me/a.csv"},
      {"task": "knn", "train_data": "csv:/home/me/b.csv"},
      ["trained on csv:a.csv", "trained on csv:b.csv"],
    ),
    ({"file": "in/a.json"}, {"file": "in/b.json"}, ["in/a.json", "in/b.json"]),
    ({}, {}, ["number 1", "number 2"]),
  ],
)
def test_what_differs_tells_results_apart(one, two, words):
  found = apart.name_apart(
    collected.Result(
      "m",
      "m",
      x.get("task", "zero_shot"),
      "CIFAR10",
      None,
      None,
      x,
      file=x.get("file", ""),
    )
    for x in (one, two)
  )
  assert [x.title for x in found] == [f"CIFAR10 ({word})" for word in words]
  # What was told apart before is the same again.
  assert apart.name_apart(found) == found


def test_long_titles_are_drawn_in_lines_that_fit():
  name = (
    "a model on ImageNet-A (7,500 images, not 7,400; 1,000 classes, not 200)"
  )
  assert drawing._lines(f"{name}\nECE 1.0 %", 42) == [
    "a model on ImageNet-A (7,500 images, not",
    "7,400; 1,000 classes, not 200)",
    "ECE 1.0 %",
  ]
  assert drawing._lines("", 42) == [""]


def test_the_table_of_retrieval_has_both_directions(collection):
  table = tables.retrieval(collection)
  assert list(table.rows[0]) == [
    *("run", "COCO, 5k test images", "text to image"),
    *("30.0", "50.0", "60.0", "4.5"),
  ]
  # Twelve models of open_clip's and one of the paper's, both directions.
  assert table.published_rows == 26 == len(table.rows) - 2


def test_groups_have_their_accuracy_and_the_label_that_differs_most(collection):
  right, called = figures.FIGURES["groups"][0](collection).panels
  assert right.title == "run on folder:faces\nage: top-1"
  assert list(right.categories) == ["old (8)", "young (8)"]
  (mark,) = right.marks
  assert (list(mark.x), list(mark.y)) == ([50, 75], [0, 1])
  assert list(mark.ranges) == [(25, 100), (25, 100)]
  assert called.title == "run on folder:faces\nage: called dog"
  (mark,) = called.marks
  assert list(mark.x) == [75, 50] and mark.ranges[0] == (37.5, 100)


@pytest.mark.parametrize("name", [*figures.FIGURES, *tables.TABLES])
@pytest.mark.parametrize(
  "broken", [None, 3, "text", [], {}, [None, 3, {}], {"reliability": 3}]
)
def test_values_of_any_kind_are_survived(tmp_path, name, broken):
  keys = (
    *("shots", "corruptions", "calibration", "confusions", "clean", "step"),
    *("text_to_image", "zero_shot", "interval_95", "protocol", "examples"),
    *("attributes", "groups"),
  )
  values = {"task": name, **dict.fromkeys(keys, broken), "top1": 0.5}
  tasks = ("zero_shot", "few_shot", "robustness", "retrieval", "groups", broken)
  found = {
    f"{i}": {**values, "task": task, "data": broken}
    for i, task in enumerate(tasks)
  }
  attributes = {
    "a": {"groups": {"x": broken, "y": {"rates": broken}}, "labels": broken},
    "b": {"groups": {"x": {"top1": broken, "rates": {"l": broken}}}},
  }
  found["attributes"] = {"task": "groups", "attributes": attributes}
  made = (figures.FIGURES | tables.TABLES)[name][0]
  made(gathering.read([write_all(tmp_path / "results", found)]))


class _Reader(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.sources, self.words = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.sources += [v for k, v in attrs if k in ("src", "href")]

  def handle_data(self, data):
    self.words.append(data)


def test_a_report_is_a_page_with_all_pictures_in_it(tmp_path):
  evil = "<script>alert(1)</script>"
  more = {
    "evil": {
      "task": evil,
      "model": f"/x/{evil}",
      "data": f"csv:/x/{evil}&amp;'\"",
      "top1": 0.5,
      "protocol": evil,
    }
  }
  source = write_all(tmp_path / "in", results(**more))
  (source / f"{evil.replace('/', '')}.json").write_text("{")
  out = tmp_path / "out"
  made = report_files.write([source], out)
  assert made.models == ["run", "script>"] and made.results == 10
  names = ["accuracy", "shifts", "corruptions", "few_shot", "groups"]
  names += ["reliability", "confusions"]
  assert [path.rpartition("/")[2] for path in made.pictures] == [
    f"{name}.png" for name in names
  ]
  for path in made.pictures:
    with Image.open(path) as image:
      assert image.format == "PNG" and image.width > 300
  assert made.missing.keys() == {"loss", "evaluations", "examples"}
  (left,) = made.left_out
  assert "no valid JSON" in left.why
  text = (out / "index.html").read_text("utf-8")
  page = _Reader()
  page.feed(text)
  assert "script" not in page.tags
  assert page.tags.count("img") == 7 and page.tags.count("table") == 3
  assert all(
    x.startswith(("data:image/png;base64,", "https://")) for x in page.sources
  )
  words = " ".join(page.words)
  assert evil in words  # As text.
  assert "jane" not in text and str(tmp_path) not in text
  assert "loss: needs a workdir" in words


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
  out = tmp_path / "out"
  everything = write_all(tmp_path / "in", results())
  report_files.write([everything], out)
  assert (out / "few_shot.png").exists()
  report_files.write([everything / "cifar.json"], out)
  assert not (out / "few_shot.png").exists()
  other = tmp_path / "other"
  other.mkdir()
  (other / "index.html").write_text("<html>mine</html>")
  with pytest.raises(errors.UserError, match="holds other files"):
    report_files.write([everything], other)
  assert [path.name for path in other.iterdir()] == ["index.html"]
  with pytest.raises(errors.UserError, match="is a file"):
    report_files.write([everything], everything / "cifar.json")


def test_a_file_whose_name_is_no_utf8_is_named(tmp_path):
  everything = write_all(tmp_path / "in", results())
  name = os.fsdecode(b"caf\xe9.json")
  (everything / name).write_text("{")
  written = report_files.write([everything], tmp_path / "out")
  page = (tmp_path / "out" / "index.html").read_text("utf-8")
  assert "<li>in/caf\\udce9.json: " in page
  assert [left.path for left in written.left_out] == [f"in/{name}"]


def _run(directory, name, sheet):
  run = directory / name
  run.mkdir(parents=True)
  (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
  if sheet is not None:
    (run / "report.png").write_bytes(sheet)
  return run


def _png(color):
  file = io.BytesIO()
  Image.new("RGBA", (5, 3), color).save(file, "PNG")
  return file.getvalue() + b"secret"


def test_what_runs_find_is_shown_as_they_drew_it(tmp_path):
  runs = [
    _run(tmp_path, name, sheet)
    for name, sheet in {
      "one": _png("red"),
      "two": _png("blue"),
      "none": None,
      "no picture": b"<script>",
    }.items()
  ]
  (_run(tmp_path, "a folder", None) / "report.png").mkdir()
  out = tmp_path / "out"
  made = report_files.write([*runs, tmp_path / "a folder"], out)
  sheets = [path for path in made.pictures if "examples" in path]
  assert [path.rpartition("/")[2] for path in sheets] == [
    "examples_1.png",
    "examples_2.png",
  ]
  for path, color in zip(sheets, ((255, 0, 0), (0, 0, 255)), strict=True):
    with Image.open(path) as image:
      assert image.size == (5, 3) and image.getpixel((0, 0)) == color
    with open(path, "rb") as file:
      assert b"secret" not in file.read()
  assert "What two finds" in (out / "index.html").read_text()
  again = report_files.write([runs[0]], out)
  assert "examples" not in again.missing
  assert {path.name for path in out.glob("examples*")} == {"examples.png"}
  assert "examples" in report_files.write([runs[2]], out).missing
  assert not list(out.glob("examples*"))


def test_names_without_glyphs_and_of_any_length_are_drawn():
  words = "犬 \\frac{ $ \u202e" * 20
  mark = picture.Mark(words, [1], [0], "bars")
  panel = picture.Panel(words, words, "", [mark], categories=[words])
  png = drawing.draw(picture.Figure("f", "t", "", [panel]))
  with Image.open(io.BytesIO(png)) as image:
    assert image.format == "PNG"


def test_panels_of_few_rows_are_as_low_as_they_need():
  def panel(rows):
    names = [f"class {i}" for i in range(rows)]
    mark = picture.Mark("", [3] * rows, [*range(rows)], "bars")
    return picture.Panel("model", "images", "", [mark], categories=names)

  def height(*rows):
    figure = picture.Figure("confusions", "", "", [*map(panel, rows)])
    with Image.open(io.BytesIO(drawing.draw(figure))) as image:
      return image.height

  one = height(20, 9) - height(1, 1)
  assert one > 300
  # The second row has one bar, whatever the first one has.
  assert height(20, 9, 1) == pytest.approx(height(20, 9) + height(1, 1), abs=2)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(errors.UserError, match=r"pip install 'jax-clip\[report"):
    report_files.write(["."], "out")
