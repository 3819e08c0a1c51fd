import numpy as np
import pytest
from PIL import Image

from clip_jax import errors, names, preprocess
from clip_jax.evals import embedding_model, tasks

SPEC = preprocess.Preprocess(image_size=4, mean=(0, 0, 0), std=(1, 1, 1))
COLOURS = {"blue": 2, "green": 1, "red": 0}


@pytest.fixture
def data(tmp_path):
  """A folder of class folders: one image red, two green, two blue, one bad."""
  for name, count in {"red": 1, "green": 2, "blue": 2}.items():
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels[..., COLOURS[name]] = 255
    (tmp_path / name).mkdir()
    for i in range(count):
      Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
  (tmp_path / "blue" / "0.png").write_bytes(b"\x89PNG no more")
  return f"folder:{tmp_path}"


def embed_images(images):
  return images.mean(axis=(1, 2)) / 255 + 1e-3


def embed_texts(texts):
  axes = [next(i for name, i in COLOURS.items() if name in t) for t in texts]
  return np.eye(3)[axes]


def evaluate(data, task="zero_shot", **options):
  return tasks.evaluate(
    task,
    data,
    embedding_model.Functions(embed_images, embed_texts, SPEC),
    batch_size=2,
    **options,
  )


def test_bad_records_are_left_out_and_counted(data):
  seen = []
  result = evaluate(data, progress=lambda *counts: seen.append(counts))
  assert (result["task"], result["data"]) == ("zero_shot", data)
  assert (result["examples"], result["classes"]) == (4, 3)
  assert result["top1"] == result["mean_per_class"] == 1
  assert sum(result["bad_records"].values()) == 1
  assert seen == [(2, 5), (4, 5), (5, 5)]


def test_retrieval_tells_captions_that_stand_one_a_line(tmp_path, caplog):
  for name in COLOURS:
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels[..., COLOURS[name]] = 255
    Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text(f"{name}\nvery {name}\n")
  result = evaluate(f"folder:{tmp_path}", task="retrieval")
  assert (result["images"], result["texts"]) == (3, 3)
  (warning,) = result["warnings"]
  assert "?captions=lines" in warning and warning in caplog.text
  result = evaluate(f"folder:{tmp_path}?captions=lines", task="retrieval")
  assert (result["images"], result["texts"]) == (3, 6)
  assert result["warnings"] == []


def test_the_datas_own_labels_go_by_name(data, tmp_path, caplog):
  # The folders' order is alphabetical.
  for labels in ("blue, red, green", "red,green,blue"):
    result = evaluate(data, labels=labels, templates="all {}")
    assert result["top1"] == result["mean_per_class"] == 1
  path = tmp_path / "labels.json"
  path.write_text('{"red": "red", "blue": ["blue"], "green": "green"}')
  assert evaluate(data, labels=str(path))["top1"] == 1
  assert not caplog.text


def test_other_labels_go_by_position_and_a_line_says_so(data, caplog):
  # These call green "red".
  result = evaluate(data, labels="blue one,red one,green one", templates="{}")
  assert result["top1"] == 0.25
  assert "'blue one' stands for class 'blue'" in caplog.text


def test_configs_know_every_task():
  assert set(names.TASKS) == set(tasks.TASKS)
  assert tasks._CHECKS.keys() == tasks.TASKS.keys()


def test_every_task_runs_on_the_same_data(data):
  result = evaluate(data, "retrieval")
  assert (result["images"], result["texts"]) == (4, 4)


@pytest.mark.parametrize("task", ["zero-shot", "", "probe"])
def test_an_unknown_task_is_refused_before_the_data_is_opened(task):
  with pytest.raises(errors.UserError, match="Known: retrieval, zero_shot"):
    evaluate("folder:/nowhere", task)
