import pytest

import colours
from clip_jax import errors, names
from clip_jax.evals import reading, tasks


@pytest.fixture
def data(tmp_path):
  """A folder of class folders: one image red, two green, two blue, one bad."""
  for name, count in {"red": 1, "green": 2, "blue": 2}.items():
    for i in range(count):
      colours.save(tmp_path / name / f"{i}.png", colours.COLOURS[name])
  (tmp_path / "blue" / "0.png").write_bytes(colours.NO_PNG)
  return f"folder:{tmp_path}"


def evaluate(data, task="zero_shot", *, progress=None, **options):
  how = reading.Reading(batch_size=2, progress=progress)
  return tasks.evaluate(task, data, colours.functions(), reading=how, **options)


def test_bad_records_are_left_out_and_counted(data):
  seen = []
  result = evaluate(data, progress=lambda *counts: seen.append(counts))
  assert (result["task"], result["data"]) == ("zero_shot", data)
  assert (result["examples"], result["classes"]) == (4, 3)
  assert result["top1"] == result["mean_per_class"] == 1
  assert sum(result["bad_records"].values()) == 1
  assert seen == [(2, 5), (4, 5), (5, 5)]


def test_retrieval_tells_captions_that_stand_one_a_line(tmp_path, caplog):
  for name in colours.COLOURS:
    colours.save(tmp_path / f"{name}.png", colours.COLOURS[name])
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


def test_labels_may_name_classes_of_which_there_is_no_image(data, caplog):
  result = evaluate(data, labels="red.,_green,deep blue,blue!", templates="{}")
  assert (result["top1"], result["classes"]) == (1, 4)
  assert not caplog.text
  with pytest.raises(
    errors.UserError, match="4 labels are given, but the data"
  ):
    evaluate(data, labels="red,green,black,white")


def test_classes_called_by_wordnet_ids_are_told_and_stay(tmp_path, caplog):
  """A model that was trained on such folders has read the ids."""
  for name in ("n01440764", "n01484850"):
    (tmp_path / name).mkdir()
    colours.save(tmp_path / name / "0.png", colours.COLOURS["red"])
  evaluation = tasks.open_evaluation("zero_shot", f"folder:{tmp_path}")
  prompts = evaluation.class_prompts()
  assert prompts.names == ("n01440764", "n01484850")
  assert prompts.texts[0] == ("a photo of a n01440764.",)
  assert "'n01440764' is 'tench'" in caplog.text
  (tmp_path / "index.json").write_text(
    '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]}'
  )
  evaluation = tasks.open_evaluation(
    "zero_shot", f"folder:{tmp_path}", labels=str(tmp_path / "index.json")
  )
  prompts = evaluation.class_prompts()
  assert prompts.names == ("n01440764", "n01484850")
  assert prompts.texts[1] == ("a photo of a great white shark.",)


def test_a_template_beside_full_prompts_is_told(data, tmp_path, caplog):
  """A run may have such an evaluation, and goes on."""
  path = tmp_path / "labels.json"
  path.write_text('{"red": "red one", "blue": ["blue"], "green": "green"}')
  evaluation = tasks.open_evaluation(
    "zero_shot", data, labels=str(path), templates="a {}"
  )
  assert evaluation.class_prompts().texts[2] == ("red one",)
  assert "the templates do not change" in caplog.text


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


def test_duplicates_count_as_hits_or_as_misses_alone(data):
  with pytest.raises(errors.UserError, match="Unknown duplicates 'miss'"):
    evaluate(data, task="retrieval", duplicates="miss")
