"""A column of a table may hold the classes of its images."""

import pytest

import colours
from clip_jax import errors
from clip_jax.data import sources
from clip_jax.evals import class_names, tasks


@pytest.fixture
def table(tmp_path):
  """Writes a table beside images of all colours, and opens it."""
  for name, colour in colours.COLOURS.items():
    colours.save(tmp_path / "images" / f"{name}.png", colour)

  def write(text, options="label=kind"):
    (tmp_path / "rows.csv").write_bytes(text)
    return f"csv:{tmp_path}/rows.csv?{options}"

  return write


def test_a_column_of_classes_is_measured_and_probed(table):
  address = table(
    b"filename,kind\nimages/red.png, red\nimages/green.png,green\n"
    b"images/blue.png,blue\nimages/red.png,red\n"
  )
  source = sources.open_source(address)
  assert source.class_names == ("blue", "green", "red")
  found = [source[i] for i in range(3)]
  assert [(r.label, r.labels, r.texts) for r in found] == [
    (2, None, ("red",)),
    (1, None, ("green",)),
    (0, None, ("blue",)),
  ]
  result = tasks.evaluate("zero_shot", address, colours.functions())
  assert (result["top1"], result["examples"], result["classes"]) == (1, 3, 3)


def test_a_share_of_each_class_is_held_out(table, tmp_path):
  """Wherever the images lie."""
  rows = []
  for i in range(20):
    colours.save(tmp_path / f"{i}.png", colours.COLOURS["red"])
    rows.append(f"{i}.png,{'ab'[i % 2]}\n")
  address = table(b"image,kind\n" + "".join(rows).encode())
  parts = [
    sources.open_source(f"{address}&split={split}")
    for split in ("train", "held_out")
  ]
  assert [part.class_names for part in parts] == [("a", "b")] * 2
  labels = [[part[i].label for i in range(len(part))] for part in parts]
  assert [sorted(x) for x in labels] == [[0] * 8 + [1] * 8, [0, 0, 1, 1]]


def test_a_very_long_number_is_a_class(table):
  rows = b"images/red.png," + b"9" * 5000 + b"\nimages/blue.png,10\n"
  source = sources.open_source(table(b"image,kind\n" + rows))
  assert source.class_names == ("10", "9" * 5000)
  assert class_names.normalise("0" + "9" * 5000) == "9" * 5000


def test_classes_that_are_numbers_have_their_order(table):
  rows = b"images/red.png,10\nimages/green.png,9\nimages/blue.png,0\n"
  source = sources.open_source(table(b"image,kind\n" + rows))
  assert source.class_names == ("0", "9", "10")
  assert [source[i].label for i in range(3)] == [2, 1, 0]


def test_an_image_of_several_classes_makes_all_records_so(table):
  address = table(
    b"image,kind\nimages/red.png,warm\nimages/blue.png,cold\n"
    b"images/red.png,bright\nimages/red.png,warm\n"
  )
  source = sources.open_source(address)
  assert source.class_names == ("bright", "cold", "warm")
  assert [source[i].labels for i in range(2)] == [(0, 2), (1,)]
  assert [source[i].label for i in range(2)] == [None, None]


def test_rows_without_a_class_are_bad_and_no_class(table):
  address = table(
    b"image,kind\nimages/red.png,\nimages/blue.png,\xff\nimages/green.png,ok\n"
    b"images/green.png,\n"
  )
  source = sources.open_source(address)
  assert source.class_names == ("ok",)
  for index, reason in enumerate(("missing_label", "not_utf8")):
    with pytest.raises(Exception, match=reason):
      source[index]
  assert source[2].label == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ("caption=kind&label=kind", "caption= or label=, not both"),
    ("label=sort", r"no column 'sort'.*\?label=COLUMN"),
    ("root=.", r"no column 'title'.*or one of classes with \?label=COLUMN"),
  ],
)
def test_what_does_not_say_the_classes_is_told(table, options, message):
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(table(b"image,kind\nimages/red.png,red\n", options))


def test_rows_without_a_class_are_told_as_such(table):
  rows = b"image,kind\nimages/red.png,red\nimages/blue.png, \n"
  source = sources.open_source(table(rows))
  assert source.account.notes == [
    "1 row has no class, the first for the image 'images/blue.png'; only its "
    "other rows count."
  ]
