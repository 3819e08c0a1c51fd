"""Zero-shot by groups, beside tables counted by hand."""

import os

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import colours
from clip_jax import errors
from clip_jax.cli.commands import measures
from clip_jax.evals import groups, reading


@pytest.fixture
def data(tmp_path):
  """Three folders of two images; those called 1 are all blue."""
  for name, channel in colours.COLOURS.items():
    for i in range(2):
      path = tmp_path / "data" / name / f"{i}.png"
      colours.save(path, 2 if i else channel, dark=40, bright=200)
  return f"folder:{tmp_path / 'data'}"


def evaluate(data, table, **options):
  return groups.evaluate(
    data,
    colours.functions(),
    groups=str(table),
    reading=reading.Reading(batch_size=4, threads=1),
    **options,
  )


def test_groups_are_measured_by_themselves(data, tmp_path):
  table = tmp_path / "groups.csv"
  lines = [
    f"{name}/{i}.png,{'second' if i else 'first'},{name if i else ''}"
    for name in colours.COLOURS
    for i in range(2)
  ]
  table.write_text("\n".join(["key,order,empty at first", *lines, ""]))
  found = evaluate(data, table)
  order = found["attributes"]["order"]
  assert found["top1"] == pytest.approx(4 / 6)
  first, second = (order["groups"][name] for name in ("first", "second"))
  assert (first["examples"], first["top1"]) == (3, 1.0)
  assert (second["examples"], second["top1"]) == (3, pytest.approx(1 / 3))
  assert first["top1_interval_95"][1] == 1.0
  assert first["rates"]["blue"]["rate"] == pytest.approx(1 / 3)
  assert second["rates"]["blue"]["rate"] == 1
  gap = order["largest_gap"]
  assert gap["gap"] == pytest.approx(2 / 3)
  assert gap["between"] == ["second", "first"]
  (blue, *others) = order["labels"]
  assert blue["label"] == "blue" and blue["between"] == ["first", "second"]
  assert [entry["gap"] for entry in others] == [pytest.approx(1 / 3)] * 2
  other = found["attributes"]["empty at first"]
  assert other["without_group"] == 3
  assert {x["examples"] for x in other["groups"].values()} == {1}


def test_chi_squared_is_scipys():
  hits, sizes = np.array([3, 10, 7]), np.array([20, 30, 25])
  table = np.stack([hits, sizes - hits])
  want = stats.chi2_contingency(table, correction=False)
  got = groups.chi_squared(hits, sizes)
  assert got == pytest.approx((want.statistic, want.pvalue))
  assert groups.chi_squared(sizes, sizes) == (None, None)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("", "must name its columns"),
    ("key\n", "must name its columns"),
    ("key,a,a\n", "must name its columns"),
    ("key,a\nx\n", "line 2 has 1 cells"),
    ("key,a\nx,b\nx,b\nx,c\n", "line 4: 'x' is of a 'c', but of 'b' in"),
    ("key,a\nother.png,b\n", "no group for any image"),
    (b"\xff\xfe\x00", "cannot be read"),
    (None, "cannot be read"),
  ],
)
def test_a_table_that_does_not_fit_is_refused(data, tmp_path, text, said):
  table = tmp_path / "groups.csv"
  if text is not None:
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(errors.UserError, match=said):
    evaluate(data, table)


def test_data_without_labels_have_rates_only(tmp_path):
  Image.new("RGB", (5, 6), (200, 10, 10)).save(tmp_path / "a.png")
  Image.new("RGB", (5, 6), (10, 10, 200)).save(tmp_path / "b.png")
  (tmp_path / "x.csv").write_text("image,caption\na.png,one\nb.png,two\n")
  (tmp_path / "g.csv").write_text("key,who\na.png,x\nb.png,y\n")
  found = evaluate(
    f"csv:{tmp_path / 'x.csv'}", tmp_path / "g.csv", labels="red,green,blue"
  )
  assert found["top1"] is None
  who = found["attributes"]["who"]
  assert who["largest_gap"] is None and "top1" not in who["groups"]["x"]
  assert who["groups"]["x"]["rates"]["red"]["rate"] == 1
  assert [entry["label"] for entry in who["labels"]] == ["red", "blue"]


def test_a_pipe_in_place_of_the_table_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "groups.csv")
  with pytest.raises(errors.UserError, match="cannot be read"):
    groups.read_groups(str(tmp_path / "groups.csv"))


def test_images_without_group_and_keys_without_image_are_told(data, tmp_path):
  table = tmp_path / "groups.csv"
  table.write_text("key,who\nred/0.png,a\nblue/0.png,b\ngone.png,b\n,\n")
  found = evaluate(data, table)
  assert (found["keys"], found["keys_of_no_image"]) == (3, 1)
  rows = dict(measures.to_rows(found))
  assert rows["keys of no image"] == "1 of 3"
  assert rows["who, without group"] == "4 of 6 images"
  whole = "\n".join(f"{c}/{i}.png,x" for c in colours.COLOURS for i in (0, 1))
  table.write_text(f"key,who\n{whole}\n")
  rows = dict(measures.to_rows(evaluate(data, table)))
  assert not [name for name in rows if "without" in name or "no image" in name]


def test_a_gap_between_no_two_groups_is_not_told(data, tmp_path):
  table = tmp_path / "groups.csv"
  table.write_text("key,who\nblue/0.png,a\nblue/1.png,b\n")
  found = evaluate(data, table)
  who = found["attributes"]["who"]
  assert who["largest_gap"] is None and who["labels"] == []
  assert not [name for name, _ in measures.to_rows(found) if "gap" in name]


def test_an_attribute_of_no_image_has_no_groups(data, tmp_path):
  table = tmp_path / "groups.csv"
  table.write_text("key,who,age\nred/0.png,a,\ngone.png,b,old\n")
  found = evaluate(data, table)
  assert found["attributes"]["age"] == {
    "groups": {},
    "largest_gap": None,
    "labels": [],
    "without_group": 6,
  }
  assert dict(measures.to_rows(found))["age, without group"] == "6 of 6 images"
  assert list(found["attributes"]["who"]["groups"]) == ["a"]


def test_classes_of_one_name_have_their_own_rates():
  guesses = np.array([0, 1, 1, 2, 3, 3])
  names = ["crane", "crane (2)", "crane", "owl"]
  found = groups.compare(guesses, ["a"] * 3 + ["b"] * 3, names)
  assert {
    group: {name: rate["rate"] * 3 for name, rate in x["rates"].items()}
    for group, x in found["groups"].items()
  } == {
    "a": {"crane": 1, "crane (2)": 2, "crane (2) (2)": 0, "owl": 0},
    "b": {"crane": 0, "crane (2)": 0, "crane (2) (2)": 1, "owl": 2},
  }
  gaps = {x["label"]: 3 * x["gap"] for x in found["labels"]}
  assert gaps == {"crane": 1, "crane (2)": 2, "crane (2) (2)": 1, "owl": 2}
