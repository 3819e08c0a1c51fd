"""COCO's, Karpathy's and Flickr's files of captions; each image has several."""

import csv
import json
import os
import pickle

import numpy as np
import pytest

from clip_jax import cli, errors
from clip_jax.data import sources
from clip_jax.evals import retrieval

# By image: the captions, and Karpathy's split.
CAPTIONS = {
  "COCO_val2014_1.png": ["a cat", "a cat, é", "the cat"],
  "COCO_val2014_2.png": ["two dogs"],
  "COCO_train2014_3.png": ["a bird ", "birds"],
  "COCO_val2014_4.png": ["a bus", "a red bus"],
}
SPLITS = ("test", "val", "train", "restval")


def _folder(name):
  return name.split("_")[1]


@pytest.fixture
def coco(tmp_path, png):
  """Lays COCO's files out: images in two folders, annotations beside them."""
  for number, name in enumerate(CAPTIONS):
    folder = tmp_path / _folder(name)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(png(number))
  (tmp_path / "annotations").mkdir()
  images = [
    {"id": 10 + i, "file_name": name} for i, name in enumerate(CAPTIONS)
  ]
  # Annotations are in no order of images.
  annotations = sorted(
    (
      {"image_id": 10 + i, "caption": caption, "id": number}
      for i, own in enumerate(CAPTIONS.values())
      for number, caption in enumerate(own)
    ),
    key=lambda each: (each["id"], -each["image_id"]),
  )
  _dump(
    tmp_path / "annotations/captions_val2014.json",
    {"images": images, "annotations": annotations},
  )
  karpathy = [
    {
      "filename": name,
      "filepath": _folder(name),
      "split": split,
      "sentences": [{"raw": caption, "tokens": []} for caption in own],
    }
    for (name, own), split in zip(CAPTIONS.items(), SPLITS, strict=True)
  ]
  _dump(tmp_path / "dataset_coco.json", {"images": karpathy})
  return tmp_path


def _dump(path, value):
  path.write_text(json.dumps(value))
  return path


def _all(source):
  return [source[i] for i in range(len(source))]


def _texts(source):
  return {record.key: list(record.texts) for record in _all(source)}


STRIPPED = {name: [c.strip() for c in own] for name, own in CAPTIONS.items()}


def test_cocos_captions_give_the_records_of_a_csv_of_the_same(coco, png):
  with open(coco / "pairs.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption"])
    for name, own in CAPTIONS.items():
      writer.writerows([f"{_folder(name)}/{name}", c] for c in own)
  table = _all(sources.open_source(f"csv:{coco}/pairs.csv"))
  source = sources.open_source(f"coco:{coco}/annotations/captions_val2014.json")
  found = _all(source)
  assert [(r.image, r.texts, r.label) for r in found] == [
    (r.image, r.texts, r.label) for r in table
  ]
  assert [record.key for record in found] == list(CAPTIONS)
  copy = pickle.loads(pickle.dumps(source))
  assert _all(copy) == found and copy.fingerprint == source.fingerprint


def test_karpathys_splits_go_by_name(coco):
  address = f"coco:{coco}/dataset_coco.json"
  assert [record.key for record in _all(sources.open_source(address))] == [
    f"{_folder(name)}/{name}" for name in CAPTIONS
  ]
  for end, wanted in {
    "/test": [0],
    "?split=val": [1],
    "/train+restval": [2, 3],
    "?split=train+restval": [2, 3],
    "?split=train": [2],
  }.items():
    source = sources.open_source(address + end)
    names = [f"{_folder(n)}/{n}" for n in np.array(list(CAPTIONS))[wanted]]
    assert [record.key for record in _all(source)] == names
    note = "1 image of the split 'restval'"
    assert any(note in s for s in source.account.notes) == (
      end == "?split=train"
    )
  parts = (f"{address}/train+restval?split={p}" for p in ("train", "held_out"))
  assert [len(sources.open_source(part)) for part in parts] == [1, 1]
  shared = sources.open_source(f"{address}?split=held_out&held_out=0.5")
  assert len(shared) == 2
  with pytest.raises(
    errors.UserError, match="Known: restval, test, train, val"
  ):
    sources.open_source(f"{address}/dev")
  with pytest.raises(errors.UserError, match=r"split=held_out&held_out=0\.2"):
    sources.open_source(f"{address}?split=held_out")


def test_captions_are_counted_per_image(coco, tmp_path):
  """Image-to-text takes any of an image's captions, text-to-image each."""
  address = f"coco:{coco}/annotations/captions_val2014.json"

  class Model:
    def embed_images(self, images):
      return np.eye(4, dtype=np.float32)[images]

    def embed_texts(self, texts):
      # The third caption of the first image is taken for the second image's.
      owners = {c: i for i, own in enumerate(STRIPPED.values()) for c in own}
      owners |= {"the cat": 1}
      return np.eye(4, dtype=np.float32)[[owners[text] for text in texts]]

  def evaluate(source):
    batch = {"image": np.arange(4), "texts": [r.texts for r in _all(source)]}
    return retrieval.evaluate(source, model=Model(), batches=[batch])

  found = evaluate(sources.open_source(address))
  assert (found["images"], found["texts"]) == (4, 8)
  assert found["text_to_image"]["r@1"] == 7 / 8
  assert (
    found["image_to_text"]["r@1"] == 3 / 4
  )  # "the cat" is before "two dogs".
  found = evaluate(sources.open_source(f"{address}?captions=2"))
  assert (found["images"], found["texts"]) == (4, 7)
  assert found["text_to_image"]["r@1"] == found["image_to_text"]["r@1"] == 1


@pytest.mark.parametrize("most", ["0", "-1", "five", "1.5", "", "²"])
def test_a_wrong_number_of_captions_is_a_clear_error(coco, most):
  with pytest.raises(errors.UserError, match="must be a number from 1 up"):
    sources.open_source(f"coco:{coco}/dataset_coco.json?captions={most}")


def _token(captions):
  return "".join(
    f"{name}#{i}\t{caption}\n"
    for name, own in captions.items()
    for i, caption in enumerate(own)
  )


def _bars(captions):
  lines = [
    f"{name}| {i}| {caption}\n"
    for name, own in captions.items()
    for i, caption in enumerate(own)
  ]
  lines[-1] = lines[-1][::-1].replace("|", "", 1)[::-1]  # As one of theirs is.
  return "image_name| comment_number| comment\n" + "".join(lines)


def _commas(captions):
  lines = [f"{n},{c}\n" for n, own in captions.items() for c in own]
  return "image,caption\n" + "".join(lines)


FLICKR = {
  "results_20130124.token": (_token, "flickr30k-images"),
  "results.csv": (_bars, "flickr30k_images"),
  "Flickr8k.token.txt": (_token, "Flicker8k_Dataset"),
  "captions.txt": (_commas, "Images"),
}


@pytest.mark.parametrize("name", FLICKR)
def test_flickrs_files_have_their_images_in_the_usual_places(
  tmp_path, png, name
):
  form, folder = FLICKR[name]
  (tmp_path / folder).mkdir()
  for number, image in enumerate(CAPTIONS):
    (tmp_path / folder / image).write_bytes(png(number))
  (tmp_path / name).write_text(form(CAPTIONS))
  for address in (f"coco:{tmp_path}/{name}", f"coco:{tmp_path}"):
    assert _texts(sources.open_source(address)) == STRIPPED
  names = list(CAPTIONS)
  (tmp_path / "Flickr_8k.testImages.txt").write_text(
    f"{names[2]}\n{names[0]}\n"
  )
  (tmp_path / "Flickr_8k.devImages.txt").write_text(f"{names[1]}\ngone.png\n")
  source = sources.open_source(f"coco:{tmp_path}/test")
  assert list(_texts(source)) == [names[2], names[0]]
  source = sources.open_source(f"coco:{tmp_path}/{name}?split=dev")
  assert list(_texts(source)) == [names[1]]
  assert "1 of 2 images" in source.account.notes[0]
  own = f"coco:{tmp_path}?images={tmp_path}/Flickr_8k.testImages.txt"
  assert list(_texts(sources.open_source(own))) == [names[2], names[0]]


def test_odd_lines_are_told(tmp_path, png, read_all):
  (tmp_path / "a.png").write_bytes(png(0))
  text = (
    "a.png#0\tone\nno tab\n\na.png#1\ttwo\nb.png#0\t\na.png#2\t" + "y" * 2**20
  )
  (tmp_path / "results.token").write_text(text + "y\n")
  source = sources.open_source(f"coco:{tmp_path}")
  assert "1 line of" in source.account.notes[0]
  # Its image's other captions count, and a record without any is bad.
  assert read_all(source) == [
    sources.Record(png(0), ("one", "two"), "a.png"),
    "empty_caption",
  ]


def test_missing_images_show_the_paths_that_were_tried(coco, capsys):
  for name in CAPTIONS:
    (coco / _folder(name) / name).rename(coco / name)
  address = f"coco:{coco}/annotations/captions_val2014.json"
  assert len(_all(sources.open_source(address))) == 4  # In the one above.
  assert len(_all(sources.open_source(f"coco:{coco}/dataset_coco.json"))) == 4
  (coco / "none").mkdir()
  assert cli.run(["data", "inspect", f"{address}?root=../none", "--json"]) == 1
  found = json.loads(capsys.readouterr().out)
  assert found["bad"] == {"missing_file": 4}
  assert "none/COCO_val2014_1.png was tried" in found["hints"]["missing_file"]
  with pytest.raises(
    errors.UserError, match="root=/nowhere is not a directory"
  ):
    sources.open_source(f"{address}?root=/nowhere")


def test_images_stay_in_their_root(tmp_path, png, read_all):
  secret = tmp_path / "secret.png"
  secret.write_bytes(png(0))
  root = tmp_path / "data" / "images"
  root.mkdir(parents=True)
  (root / "link.png").symlink_to(secret)
  os.mkfifo(root / "pipe.png")
  names = ["link.png", "pipe.png", "/dev/zero", "", "a\nb.png", None]
  images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
  annotations = [{"image_id": i, "caption": "x"} for i in range(len(names))]
  path = _dump(
    tmp_path / "data" / "captions_x.json",
    {"images": images, "annotations": annotations},
  )
  assert read_all(sources.open_source(f"coco:{path}")) == [
    *("link_leads_outside", "not_a_file", "not_a_file", "missing_image"),
    *("unsafe_name", "missing_image"),
  ]
  followed = sources.open_source(f"coco:{path}?links=follow")
  assert followed[0].image == png(0)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({}, "lists no images"),
    ({"images": []}, "lists no images"),
    ({"images": [{"id": 1, "file_name": "a"}]}, "holds no captions"),
    (
      {
        "images": [{"id": 1, "file_name": "a"}],
        "annotations": [{"image_id": 1, "bbox": [], "category_id": 3}],
      },
      r"objects' boxes and classes, and no captions; give .*captions_val2014",
    ),
    ([], "must hold a JSON object"),
  ],
)
def test_json_without_captions_is_a_clear_error(tmp_path, content, message):
  path = _dump(tmp_path / "instances_val2014.json", content)
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"coco:{path}")


def test_odd_entries_cost_their_own_record(tmp_path, png, read_all):
  (tmp_path / "a.png").write_bytes(png(0))
  content = {
    "images": [
      {"id": 1, "file_name": "a.png"},
      7,
      {"id": {}, "file_name": "b"},
    ],
    "annotations": [
      {"image_id": 1, "caption": "fine"},
      {"image_id": 1, "caption": 5},
      {"image_id": 9, "caption": "stray"},
      {"image_id": 1, "caption": "bad \ud800"},
      [],
    ],
  }
  path = _dump(tmp_path / "captions_x.json", content)
  source = sources.open_source(f"coco:{path}")
  assert "2 captions are left out" in source.account.notes[0]
  assert read_all(source) == ["not_utf8", "missing_image", "empty_caption"]
  content["annotations"].pop(3)
  _dump(path, content)
  assert sources.open_source(f"coco:{path}")[0].texts == ("fine",)


def test_what_cannot_be_found_is_a_clear_error(coco, tmp_path_factory):
  empty = tmp_path_factory.mktemp("empty")
  (empty / "other.txt").write_text("url,words\n")
  for address, message in {
    f"{coco}": "several files of captions",
    f"{coco}/captions_nowhere.json": "does not exist",
    f"{coco}/annotations/captions_val2014.json/test": "has no splits",
    f"{empty}": "holds no file of captions",
    f"{empty}/nowhere/test": "does not exist",
    f"{empty}/other.txt": "read by csv: instead",
    f"{coco}/dataset_coco.json?images={empty}/none": "cannot be read",
  }.items():
    with pytest.raises(errors.UserError, match=message):
      sources.open_source(f"coco:{address}")
  os.mkfifo(empty / "captions_x.json")
  with pytest.raises(errors.UserError, match="not a regular file"):
    sources.open_source(f"coco:{empty}")


def _annotated(tmp_path, png, ids, annotations):
  for number in range(len(ids)):
    (tmp_path / f"{number}.png").write_bytes(png(number))
  images = [{"id": n, "file_name": f"{i}.png"} for i, n in enumerate(ids)]
  captions = [{"image_id": n, "caption": text} for n, text in annotations]
  place = tmp_path / "captions_odd.json"
  _dump(place, {"images": images, "annotations": captions})
  return sources.open_source(f"coco:{place}")


@pytest.mark.parametrize(
  ("name", "content", "count"),
  [
    (
      "captions_x.json",
      {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": [
          {"image_id": 1, "caption": each} for each in ("a", None, 5, " ")
        ],
      },
      3,
    ),
    (
      "dataset_x.json",
      {
        "images": [
          {
            "filename": "0.png",
            "sentences": [{"raw": "a"}, {"tokens": ["b"]}, None],
          }
        ]
      },
      2,
    ),
    ("results_1.token", "0.png#0\ta\n0.png#1\t\n", 1),
    ("results.csv", "image_name| n| comment\n0.png| 0| a\n0.png| 1|\n", 1),
  ],
)
def test_captions_that_are_empty_or_no_text_are_counted(
  tmp_path, png, name, content, count
):
  (tmp_path / "0.png").write_bytes(png(0))
  if isinstance(content, str):
    (tmp_path / name).write_text(content)
  else:
    _dump(tmp_path / name, content)
  source = sources.open_source(f"coco:{tmp_path / name}")
  assert source[0].texts == ("a",)
  (note,) = source.account.notes
  are = "caption is" if count == 1 else "captions are"
  assert note == f"{count} {are} empty or no text, and left out."


def test_a_list_without_images_is_called_empty(tmp_path):
  path = _dump(tmp_path / "captions_x.json", {"images": [], "annotations": []})
  with pytest.raises(errors.UserError, match="its list 'images' is empty"):
    sources.open_source(f"coco:{path}")


def test_ids_that_pandas_has_made_floats_keep_their_captions(
  tmp_path, png, read_all
):
  source = _annotated(tmp_path, png, [1.0, 2.0], [(2, "two"), (1.0, "one")])
  assert [record.texts for record in read_all(source)] == [("one",), ("two",)]


@pytest.mark.parametrize("odd", [None, True, [1], 0.5, 10**25, float("nan")])
def test_captions_without_an_id_are_of_no_image(tmp_path, png, read_all, odd):
  source = _annotated(
    tmp_path, png, [odd, 7, odd], [(odd, "lost"), (7, "kept"), (odd, "lost")]
  )
  first, kept, last = read_all(source)
  assert first == last == "empty_caption" and kept.texts == ("kept",)
  assert source.account.notes == [
    "2 captions are left out, of images that are not listed."
  ]


def test_images_of_the_same_name_in_two_folders_are_told_apart(
  tmp_path, png, read_all
):
  for number, folder in enumerate(("train", "val")):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "1.png").write_bytes(png(number))
  images = [
    {"filename": "1.png", "filepath": folder, "sentences": [{"raw": folder}]}
    for folder in ("train", "val")
  ]
  _dump(tmp_path / "dataset_coco.json", {"images": images})

  def named(*lines):
    (tmp_path / "names").write_text("\n".join(lines))
    address = f"coco:{tmp_path}/dataset_coco.json?images={tmp_path}/names"
    return [record.texts for record in read_all(sources.open_source(address))]

  assert named("val/1.png") == [("val",)]
  assert named("val/1.png", "train/1.png") == [("val",), ("train",)]
  # A name alone is that of both; other folders say nothing.
  assert named("1.png", "/elsewhere/1.png") == [("train",), ("val",)]


def test_sentences_may_be_texts(tmp_path, png, read_all):
  (tmp_path / "1.png").write_bytes(png(1))
  image = {"filename": "1.png", "sentences": ["one", {"raw": "two"}, 3, None]}
  _dump(tmp_path / "dataset_coco.json", {"images": [image]})
  (record,) = read_all(sources.open_source(f"coco:{tmp_path}"))
  assert record.texts == ("one", "two")
