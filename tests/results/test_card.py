import json

import markdown_it
import pytest
import yaml

import model_kinds
from clip_jax import errors, loading
from clip_jax.results import card as card_lib
from clip_jax.results import collected, limitations, markdown

EVIL = "<img src=x onerror=alert(1)> | `x` [a](b) --- 'y': {z}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = model_kinds.workdir(tmp_path_factory.mktemp("card") / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["evals"] = {"seen": {"data": "builtin:digits/test"}}
  config["augment"] = {"scale": 0.4, "flip": 0.5}
  (workdir / "config.json").write_text(json.dumps(config))
  lines = [
    {"step": 1, "loss": 3.0},
    {"step": 3, "loss": 2.0, "images_per_second": 100.0},
    {"step": 3, "eval/seen/top1": 0.5, "eval/seen/examples": 364},
  ]
  (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return workdir


@pytest.fixture
def reports(workdir, tmp_path):
  mine = {"model": str(workdir), "step": 3}
  found = {
    "a": {
      **mine,
      "task": "zero_shot",
      "data": "tfds:cifar10/test",
      "top1": 0.25,
      "top1_interval_95": [0.2, 0.3],
      "protocol": "80 prompts a class",
      "confusions": [{"true": EVIL, "predicted": "dog", "count": 7}],
    },
    "b": {
      **mine,
      "task": "linear_probe",
      "data": "tfds:cifar10/test",
      "top1": 1,
    },
    "c": {
      **mine,
      "task": "zero_shot",
      "data": f"csv:/home/me/{EVIL}",
      "top1": 0.1,
    },
    "d": {**mine, "task": "knn", "data": "tfds:cifar10/test", "top1": 0.5},
    "other": {
      **mine,
      "model": "/x/run",
      "task": "knn",
      "data": "d",
      "top1": 0.9,
    },
    "old": {**mine, "step": 2, "task": "knn", "data": "e", "top1": 0.8},
  }
  for name, values in found.items():
    (tmp_path / f"{name}.json").write_text(json.dumps(values))
  return tmp_path


def front_matter(text):
  opening, block, body = text.split("---\n", 2)
  assert opening == ""
  return yaml.safe_load(block), body


def test_a_cards_block_is_the_hubs_and_has_the_models_results(workdir, reports):
  card = card_lib.make(workdir, reports=[reports], license="mit", name=EVIL)
  data, _ = front_matter(card.text)
  assert data == card.metadata
  assert data["library_name"] == "clip_jax" and data["license"] == "mit"
  assert data["pipeline_tag"] == "zero-shot-image-classification"
  assert "clip" in data["tags"]
  (entry,) = data["model-index"]
  assert entry["name"] == EVIL
  found = {
    (x["dataset"]["name"], metric["name"]): metric["value"]
    for x in entry["results"]
    for metric in x["metrics"]
  }
  evil = found.pop(next(key for key in found if "<img" in key[0]))
  assert evil == 0.1
  assert found == {
    ("builtin:digits/test", "zero-shot, top-1"): 0.5,
    ("CIFAR10", "zero-shot, top-1"): 0.25,
    ("CIFAR10", "linear probe, top-1"): 1.0,
    ("CIFAR10", "nearest neighbours, top-1"): 0.5,
  }
  assert card.results == 5
  whys = [left.why for left in card.left_out]
  assert sorted(whys) == [
    "is of another model",
    "is of step 2, and the model of step 3",
  ]


def _left(card):
  return [left.why for left in card.left_out]


def _write(path, **values):
  found = {"task": "zero_shot", "data": "d", "top1": 0.5} | values
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(found))


def test_evaluations_of_another_workdir_are_not_told(workdir, tmp_path):
  model = model_kinds.clip_directory(tmp_path / "m0")
  card = card_lib.make(model, reports=[workdir])
  assert (card.results, _left(card)) == (0, ["is of another model"])


def test_a_result_that_names_no_model_is_not_told(tmp_path):
  model = model_kinds.clip_directory(tmp_path / "m0")
  _write(tmp_path / "a.json", data="tfds:imagenet2012/validation", top1=0.99)
  _write(model / "b.json")  # Where it lies says nothing.
  for place in (tmp_path / "a.json", model / "b.json"):
    card = card_lib.make(model, reports=[place])
    assert (card.results, _left(card)) == (0, ["names no model"])


def test_a_result_without_a_step_is_not_told_of_a_step(workdir, tmp_path):
  _write(tmp_path / "a.json", model=str(workdir))
  card = card_lib.make(workdir, reports=[tmp_path])
  assert card.results == 1  # Of its metrics.
  assert _left(card) == ["is of no known step, and the model of step 3"]


def test_fingerprints_decide_which_results_are_told(tmp_path):
  model = model_kinds.clip_directory(tmp_path / "m0")
  own = loading.load(model).fingerprint
  place, here = tmp_path / "results", {"model": str(model), "step": None}
  _write(place / "a.json", **here, fingerprint="0" * 64)
  _write(place / "b.json", **here, fingerprint=7)
  _write(place / "c.json", model="/x/m1", fingerprint="0" * 64)
  _write(place / "d.json", data="moved", model="/x/m0", fingerprint=own)
  suite = {"path": "/x/m0", "step": None, "fingerprint": own}
  _write(place / "e.json", data="suite", model=suite)
  suite["fingerprint"] = "0" * 64
  _write(place / "f.json", data="suite", model=suite)
  sets = [{"task": "zero_shot", "set": "pets", "top1": 0.25}]
  whole = {"sets": sets, "model": "/x/m0", "fingerprint": own, "step": None}
  (place / "g.json").write_text(json.dumps(whole))
  card = card_lib.make(model, reports=[place])
  data = [
    x["dataset"]["name"] for x in card.metadata["model-index"][0]["results"]
  ]
  assert sorted(data) == ["Oxford Pets", "moved", "suite"]
  assert sorted(_left(card)) == [
    "is of another model",
    "is of another model",
    "is of other weights or settings than lie there now",
    "is of other weights or settings than lie there now",
  ]


def test_a_later_result_of_other_weights_replaces_none(workdir, tmp_path):
  here = {"model": str(workdir), "data": "e"}
  _write(tmp_path / "a.json", **here, step=3, top1=0.25)
  _write(tmp_path / "b.json", **here, step=4)
  card = card_lib.make(workdir, reports=[tmp_path])
  assert "| e | top-1 | 25.0 |" in card.text
  assert _left(card) == ["is of step 4, and the model of step 3"]


def test_a_card_lists_the_result_of_other_prompts(workdir, tmp_path):
  mine = {"model": str(workdir), "step": 3, "data": "e"}
  _write(tmp_path / "a.json", **mine, prompts_hash="a", top1=0.25)
  _write(tmp_path / "b.json", **mine, prompts_hash="b")
  card = card_lib.make(workdir, reports=[tmp_path])
  assert "| e | top-1 | 50.0 |" in card.text and "25.0" not in card.text
  (left,) = card.left_out
  assert left.path == f"{tmp_path.name}/a.json"
  assert left.why.startswith("zero_shot of run on e is told from ")
  assert left.why.endswith("b.json, which differs in prompts_hash")


def test_a_cards_results_of_one_set_have_names_of_their_own(workdir, tmp_path):
  mine = {"model": str(workdir), "step": 3, "calibration": {"ece": 0.5}}
  for i, count in enumerate((180, 10)):
    data = ("tfds:cifar10/test", "wds:/home/me/cifar10/test")[i]
    protocol = f"zero-shot: {count} prompts of 10 classes"
    _write(tmp_path / f"{i}.json", **mine, data=data, protocol=protocol)
  card = card_lib.make(workdir, reports=[tmp_path])
  sets = {
    x["dataset"]["type"]: x["dataset"]["name"]
    for x in card.metadata["model-index"][0]["results"]
  }
  assert sets["cifar10"] == "CIFAR10"
  names = [
    metric["name"]
    for x in card.metadata["model-index"][0]["results"]
    for metric in x["metrics"]
    if x["dataset"]["type"] == "cifar10"
  ]
  assert names == [
    "zero-shot, top-1, tfds:cifar10/test, 180 prompts",
    "zero-shot, top-1, wds:cifar10/test, 10 prompts",
  ]
  for words in (
    "| CIFAR10 (tfds:cifar10/test; 180 prompts) | top-1 |",
    "| CIFAR10 (wds:cifar10/test; 10 prompts) | top-1 |",
    "On CIFAR10 (tfds:cifar10/test; 180 prompts) its confidence is off",
    "On CIFAR10 (wds:cifar10/test; 10 prompts) its confidence is off",
  ):
    assert words in card.text, words


def test_a_card_does_not_call_other_images_by_a_sets_name(workdir, tmp_path):
  mine = {"model": str(workdir), "step": 3, "examples": 70_000}
  _write(tmp_path / "a.json", **mine, data="parquet:/home/me/mnist")
  card = card_lib.make(workdir, reports=[tmp_path])
  (about,) = (
    x["dataset"]
    for x in card.metadata["model-index"][0]["results"]
    if "MNIST" in x["dataset"]["name"]
  )
  title = "MNIST (70,000 images, not 10,000)"
  assert about == {"name": title, "type": title}
  row = "| MNIST (parquet:mnist; 70,000 images, not 10,000) | top-1 |"
  assert row in card.text


def test_a_card_tells_architecture_data_training_and_results(workdir, reports):
  card = card_lib.make(workdir, reports=[reports])
  _, body = front_matter(card.text)
  assert card.name == "run" and "# run\n" in body
  for words in (
    "- image size: 16 x 16 pixels\n",
    "- context: 12 tokens\n",
    "- training data: builtin:digits/train\n",
    "- steps: 3\n",
    "- pairs seen: 98,304\n",
    "- augmentation: scale 0.4, flip 0.5\n",
    "| CIFAR10 (tfds:cifar10/test) | top-1 | 25.0 | 20.0 to 30.0 |",
    "- 80 prompts a class",
    'clip_jax.load("run")',
  ):
    assert words in body, words
  # Two updates of 32,768 pairs at 100 a second.
  assert "- time: 10 min 55 s of updates" in body
  assert str(workdir.parent) not in card.text and "/home/me" not in card.text


def test_hostile_names_are_text_in_a_card(workdir, reports):
  card = card_lib.make(workdir, reports=[reports], name=f"```\n{EVIL}")
  _, body = front_matter(card.text)
  parser = markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False})
  html = parser.render(body)
  assert "<img" not in html and "<a " not in html
  assert html.count("<h1>") == 1 and html.count("<table>") == 1
  tokens = [x for x in parser.parse(body) if x.type == "fence"]
  assert len(tokens) == 1
  compile(tokens[0].content, "card", "exec")


def test_text_for_markdown_stays_as_it_was_written():
  parser = markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False})
  words = "a_b_c *d* <e> &amp; `f` [g](h) #1 ~~i~~ http://j | k"
  cell = markdown.table(("x",), [(words,)])
  inline = [x for x in parser.parse(cell) if x.type == "inline"]
  assert [x.type for x in inline[1].children if x.type != "text_special"] == [
    "text"
  ] * sum(x.type == "text" for x in inline[1].children)
  assert "".join(x.content for x in inline[1].children) == words


def test_a_model_without_a_workdir_has_a_card(tmp_path):
  directory = model_kinds.clip_directory(tmp_path / "model")
  card = card_lib.make(directory)
  data, body = front_matter(card.text)
  assert "model-index" not in data and data["license"] == "other"
  assert "The checkpoint says nothing of them." in body
  assert "There is none yet" in body and card.results == 0


def test_a_card_replaces_a_card_and_nothing_else(tmp_path):
  card = card_lib.Card("n", f"---\n---\n{card_lib.MARK}\nnew", {}, 0, [])
  path = tmp_path / "README.md"
  card_lib.save(card, path)
  path.write_text(path.read_text() + "by hand")
  card_lib.save(card, path)
  assert path.read_text() == card.text
  path.write_text("mine")
  with pytest.raises(errors.UserError, match="was not made by"):
    card_lib.save(card, path)
  assert path.read_text() == "mine"
  with pytest.raises(errors.UserError, match="no directory"):
    card_lib.save(card, tmp_path / "none/README.md")
  with pytest.raises(errors.UserError, match="was not made by"):
    card_lib.save(card, tmp_path)


def test_reports_that_are_not_there_are_an_error(workdir, tmp_path):
  with pytest.raises(errors.UserError, match="is not there"):
    card_lib.make(workdir, reports=[tmp_path / "none"])


def test_limits_are_told_as_measured():
  def result(key, task="zero_shot", **values):
    return collected.Result("m", "m", task, "d", key, None, values)

  corruptions = [
    {"name": "blur", "severity": 5, "top1": 0.125},
    {"name": "noise", "severity": 1, "top1": 0.5},
  ]
  told = limitations.measured(
    [
      result("clevr_counts", top1=0.25),
      result("imagenet", top1=0.5, calibration={"ece": 0.0625}),
      # Of a handful, which says nothing.
      result("pets", top1=0.5, calibration={"ece": 0.5}, examples=12),
      result("imagenet_v2", top1=0.375),
      result("cifar10", "robustness", corruptions=corruptions),
      result("mnist", "linear_probe", top1=0.99),
    ]
  )
  assert told == [
    "Zero-shot, counting: CLEVR counts 25.0 %.",
    "On ImageNet its confidence is off by 6.2 % on average (expected "
    "calibration error of the softmax).",
    "On CIFAR10 its top-1 falls to 12.5 % under blur of severity 5.",
    "From ImageNet to ImageNet V2 its zero-shot top-1 goes from 50.0 to "
    "37.5 %.",
  ]
