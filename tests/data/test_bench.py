"""tools/bench: what is planted is found or not, and how classes are ranked."""

import dataclasses
import importlib
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

import image_bytes
from clip_jax.data import sources
from clip_jax.data.curation import likeness

TOOLS = pathlib.Path(__file__).parents[2] / "tools" / "bench"


@pytest.fixture
def load(monkeypatch):
  """Imports a program of tools/bench, which finds the files beside it."""
  monkeypatch.syspath_prepend(str(TOOLS))
  return importlib.import_module


def test_planted_copies_are_what_they_are_called(load, pairs, tmp_path):
  duplicates = load("duplicates")
  kinds = list(duplicates.CHANGES)
  rng = np.random.default_rng(0)
  drawings = []
  for record in pairs(3 * len(kinds)):
    pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
    drawings.append(
      dataclasses.replace(record, image=image_bytes.encode(image))
    )
  path = tmp_path / "half.tar"
  planted = duplicates.plant(drawings, path, first=2)
  assert list(planted.values()) == [*kinds[2:], *kinds[:2]]
  source = sources.open_source(f"wds:{path}")
  found = {source[slot].key: source[slot] for slot in range(len(source))}
  assert len(found) == 4 * len(kinds) and set(planted) < set(found)
  for key, kind in planted.items():
    copy, drawing = found[key], found[key[:-1]]
    assert copy.texts != drawing.texts
    assert (copy.image == drawing.image) == kind.startswith("same file"), kind
    size = Image.open(io.BytesIO(copy.image)).size
    assert size == ((92, 92) if kind.startswith("enlarged") else (40, 40))
  half = duplicates.Half(path, planted)
  exact = half.score(likeness.Rule(max_distance=None))
  assert exact["found"] == {"same file, other caption": 1}
  assert exact["rows"] == exact["right"] == {"exact": 1}
  near = half.score(likeness.Rule(max_distance=6, mirrored=True))
  assert near["found"].keys() >= {kinds[i] for i in range(7)}
  assert near["rows"] == near["right"] and near["precision"] == 1
  assert near["recall"] == sum(near["found"].values()) / len(kinds)
  names = {0.5: likeness.Rule(max_distance=None), 0.7: likeness.Rule()}
  assert duplicates.best(half, names)[0] == 0.7


def test_a_class_is_ranked_among_those_that_a_drawing_does_not_show(load):
  balance = load("balance")
  scores = np.array(
    [
      [9, 8, 7, 6, 5, 4, 3.0],
      [1, 2, 3, 4, 5, 6, 7.0],
      [5, 5, 1, 1, 1, 1, 1.0],
    ]
  )
  shows = np.zeros(scores.shape, bool)
  shows[0, [0, 1, 6]] = shows[1, [0, 2]] = shows[2, [1, 3]] = True
  with np.errstate(invalid="ignore"):
    found = balance.ranked(scores, shows)
  nan = np.nan
  # Class 0 is first in row 0 and last in row 1; 1 is first but for 0, which row
  # 0 shows, too, and not before the equal 0 in row 2.
  np.testing.assert_array_equal(
    found["top1"], [0.5, 0.5, 0.0, 0.0, nan, nan, 0.0]
  )
  # Above 6 in row 0 stand four, above 2 in row 1 four, above 0 there five.
  np.testing.assert_array_equal(
    found["top5"], [0.5, 1.0, 1.0, 0.0, nan, nan, 1.0]
  )


@pytest.mark.parametrize(
  "flags, said",
  [
    (("--times", "1"), "--times of at least 2"),
    (("--only", "dedupe,copy"), "--only copy is no action; known: curate, "),
  ],
)
def test_memory_is_not_measured_of_nothing(
  flags, said, load, monkeypatch, capsys
):
  program = load("curation_memory")
  monkeypatch.setattr("sys.argv", ["curation_memory.py", *flags])
  with pytest.raises(SystemExit, match="2"):
    program.main()
  assert said in capsys.readouterr().err
