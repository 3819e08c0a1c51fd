"""A folder of images without texts: what searches it, and what refuses it."""

import json

import pytest

import bucket_stand_in
import model_kinds
from clip_jax import cli, errors
from clip_jax.data import inspection, record, sources


@pytest.fixture
def photos(tmp_path, png):
  """Photos as people keep them: at any depth, notes and others among them."""
  folder = tmp_path / "photos"
  for number, name in enumerate(("a.png", "2024/b.PNG", "2024/sea/c.png")):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
  (folder / "a.txt").write_text("a note")
  (folder / "raw.heic").write_bytes(b"heic")
  (folder / "film.mp4").write_bytes(b"film")
  return folder


def _open(address):
  return sources.open_source(address, with_texts=False)


def test_each_image_below_a_folder_is_a_record_without_a_text(photos, png):
  source = _open(f"images:{photos}")
  assert list(source.names) == [
    *("2024/b.PNG", "2024/sea/c.png"),
    *("a.png", "raw.heic"),
  ]
  found = source[1]
  assert (found.texts, found.label, found.key) == ((), None, "2024/sea/c.png")
  assert found.image == png(2)
  assert found.path == str(photos / "2024/sea/c.png")
  with pytest.raises(record.BadRecord, match="unsupported_image"):
    source[3]
  assert source.account.left_out.counts == {"txt": 1, "mp4": 1}
  with pytest.raises(IndexError):
    source[4]


def test_it_is_looked_at_as_other_data(photos):
  source = _open(f"images:{photos}?split=train&held_out=0.25")
  assert 0 < len(source) < 4
  found = inspection.inspect(_open(f"images:{photos}"))
  assert (found["good"], found["texts"]) == (3, 0)
  assert found["bad"] == {"unsupported_image": 1}


def test_other_names_are_another_fingerprint(photos):
  before = _open(f"images:{photos}").fingerprint
  assert before == _open(f"images:{photos}/").fingerprint
  pairs = sources.open_source(f"folder:{photos}?layout=captions")
  assert before != pairs.fingerprint
  (photos / "a.png").rename(photos / "d.png")
  assert before != _open(f"images:{photos}").fingerprint


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_bucket_holds_the_images_that_the_disk_does(photos, store, scheme):
  store.upload("data-1", photos)
  disk, bucket = map(_open, (f"images:{photos}", f"images:{scheme}://data-1"))
  assert list(bucket.names) == list(disk.names)
  assert bucket.fingerprint == disk.fingerprint
  assert [bucket[i].image for i in range(3)] == [
    disk[i].image for i in range(3)
  ]
  assert bucket.account.left_out.counts == disk.account.left_out.counts


def test_links_lead_out_only_where_that_is_allowed(photos, tmp_path, png):
  (tmp_path / "other.png").write_bytes(png(7))
  (photos / "link.png").symlink_to(tmp_path / "other.png")
  index = list(_open(f"images:{photos}").names).index("link.png")
  with pytest.raises(record.BadRecord, match="link_leads_outside"):
    _open(f"images:{photos}")[index]
  assert _open(f"images:{photos}?links=follow")[index].image == png(7)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("empty", r"images:.*/empty holds no images .*; it is empty\."),
    ("none", r"images:.*/none is not a directory"),
    ("photos/a.png", r"images:.*/a\.png is not a directory"),
  ],
)
def test_what_is_no_folder_of_images_is_an_error(
  photos, tmp_path, name, message
):
  (tmp_path / "empty").mkdir()
  with pytest.raises(errors.UserError, match=message):
    _open(f"images:{tmp_path / name}")


def test_what_needs_texts_refuses_them_and_says_what_reads_some(
  photos, tmp_path, fails
):
  address = f"images:{photos}"
  for arguments in (
    ("data", "prepare", address, tmp_path / "out"),
    ("data", "stats", address),
    ("data", "dedupe", address, tmp_path / "out"),
    (
      *("train", "--config", "configs/demo.py", "--workdir", tmp_path / "run"),
      f"--config.data.train={address}",
    ),
  ):
    said = fails(*map(str, arguments))
    assert f"{address} has images alone, for `clip-jax embed`" in said
    assert f"folder:{photos} reads them" in said
  assert not (tmp_path / "out").exists()


def test_photos_are_found_by_words(photos, tmp_path, capsys):
  model = model_kinds.workdir(tmp_path / "run")
  index = str(tmp_path / "index")
  cli.main(["embed", str(model), "--data", f"images:{photos}", "--out", index])
  said = capsys.readouterr()
  assert "Embedded 3 images" in said.out
  assert "1 bad record left out (1 unsupported_image)" in said.out
  assert "Not read: 1 .mp4 ('film.mp4'), 1 .txt ('a.txt')." in said.err
  cli.main(["search", index, "the sea", "--json"])
  results = json.loads(capsys.readouterr().out)["results"]
  assert {each["key"] for each in results} == {
    *("2024/b.PNG", "2024/sea/c.png", "a.png"),
  }
  assert all(each["captions"] == [] for each in results)
