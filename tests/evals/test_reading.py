"""How data are read: the command's flags arrive, whatever is measured."""

import pytest

import colours
import model_kinds
from clip_jax import names
from clip_jax.cli import run
from clip_jax.evals import reading

# Flags that a task needs beside `--task`, by the task.
MORE = {
  "few_shot": ["--train-data={train}", "--shots=1"],
  "groups": ["--groups={table}"],
  **{task: ["--train-data={train}"] for task in names.PROBE_TASKS},
}
TASKS = (*names.TASKS, *names.PROBE_TASKS, *names.FURTHER_TASKS)


class _Opened(Exception):
  """Ends a command where it opens its data."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Addresses of a model, of both splits and of a table of groups."""
  root = tmp_path_factory.mktemp("reading")
  for split in ("train", "test"):
    for name, channel in colours.COLOURS.items():
      colours.save(root / split / name / "0.png", channel)
  (root / "groups.csv").write_text("key,side\nblue/0.png,left\n")
  return {
    "model": model_kinds.clip_directory(root / "model"),
    "train": f"folder:{root / 'train'}",
    "test": f"folder:{root / 'test'}",
    "table": root / "groups.csv",
  }


@pytest.mark.parametrize(
  "flags",
  [
    *([f"--task={task}", *MORE.get(task, ())] for task in TASKS),
    [
      *("--task=zero_shot", "--search-templates=a {{}}"),
      "--train-data={train}",
    ],
  ],
  ids=" ".join,
)
def test_the_flags_of_batches_and_progress_reach_every_task(
  places, monkeypatch, flags
):
  def opened(how, *_):
    raise _Opened(how.batch_size, how.threads, how.progress is not None)

  monkeypatch.setattr(reading.Reading, "open", opened)
  words = ["eval", str(places["model"]), "--data=" + places["test"]]
  words += ["--batch-size=3", "--threads=2"]
  with pytest.raises(_Opened) as caught:
    run([*words, *(flag.format(**places) for flag in flags)])
  assert caught.value.args == (3, 2, True)


def test_a_part_counts_within_the_whole_and_keeps_the_rest():
  seen = []
  whole = reading.Reading(3, 2, lambda *counts: seen.append(counts), list)
  part = whole.part(5, 9)
  part.progress(1, 4)
  whole.progress(1, 4)
  assert seen == [(6, 9), (1, 4)]
  assert (part.batch_size, part.threads, part.open_batches) == (3, 2, list)
  assert reading.DEFAULT.part(5, 9) == reading.DEFAULT
