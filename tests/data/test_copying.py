"""Copies with smaller images: what is stored, and always the same bytes."""

import io
import json
import signal

import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, errors, preprocess
from clip_jax.data import copying, prepare, processes, sources

SIDE = 12


def _encoded(width, height, *, mode="RGB", kind="JPEG", **options) -> bytes:
  rng = np.random.default_rng(width)
  channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
  pixels = rng.integers(0, 256, (height, width, *channels), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Little data are enough for several processes."""
  monkeypatch.setattr(copying, "_CHUNK", 3)


@pytest.fixture(scope="module")
def images():
  """Returns images: large, small, grey, turned, transparent, damaged."""
  exif = Image.Exif()
  exif[0x0112] = 6
  large = _encoded(40, 30)
  return {
    "large": large,
    "small": _encoded(SIDE, 50, kind="PNG"),
    "grey": _encoded(31, 29, mode="L", comment=b"by me", icc_profile=b"x" * 9),
    "turned": _encoded(44, 26, exif=exif),
    "transparent": _encoded(33, 66, mode="RGBA", kind="PNG"),
    "cut": large[: len(large) // 2],
    "text": b"<html>",
  }


@pytest.fixture
def table(tmp_path, images):
  """Returns the address of a table of the images, four times."""
  lines = ["filepath,title"]
  for round_ in range(4):
    for name, data in images.items():
      (tmp_path / f"{name}{round_}.img").write_bytes(data)
      lines.append(f"{name}{round_}.img,{name} {round_}")
  (tmp_path / "pairs.csv").write_text("\n".join(lines))
  return f"csv:{tmp_path}/pairs.csv"


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def _prepare(table, out, **options):
  return prepare.prepare(
    sources.open_source(table), out, address=table, shard_bytes=9000, **options
  )


def test_large_images_are_stored_small_and_others_as_they_are(
  table, images, tmp_path, read_all
):
  found = _prepare(table, tmp_path / "out", shortest_side=SIDE, quality=80)
  copy = sources.open_source(f"arrayrecord:{tmp_path}/out")
  items = dict(zip(images, read_all(copy)[:7], strict=True))
  assert found["resized"] == 4 * 4
  assert found["bad"] == {"truncated": 4, "not_an_image": 4}
  assert items["small"].image == images["small"]
  assert (items["cut"], items["text"]) == ("truncated", "not_an_image")
  sizes = {
    **{"large": (16, 12), "grey": (13, 12)},
    **{"turned": (12, 20), "transparent": (12, 24)},
  }
  for name, size in sizes.items():
    # Plain code of the same.
    image = preprocess.decode(images[name])
    image = image if image.mode == "L" else preprocess.to_rgb(image)
    plain = Image.fromarray(np.asarray(image.resize(size, Image.BICUBIC)))
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=80)
    assert items[name].image == buffer.getvalue(), name
  # Nobody turns it once more, or keeps what the camera wrote.
  again = Image.open(io.BytesIO(items["turned"].image))
  assert not again.getexif() and "comment" not in again.info


@pytest.mark.parametrize("side", [7, 14, 15, 29])
def test_no_image_is_made_smaller_than_it_is_stored(images, monkeypatch, side):
  options = {"shortest_side": side, "quality": 90}
  monkeypatch.setattr(preprocess.jpeg, "_library", lambda: None)
  whole = preprocess.shrink(images["large"], **options)
  # Of 40 x 30 pixels; decoded at a quarter of them.
  monkeypatch.setattr(preprocess.decoding, "_WHOLE_JPEG_PIXELS", 300)
  found = preprocess.shrink(images["large"], **options)
  assert Image.open(io.BytesIO(found)).height == side
  assert (found == whole) == (side > 15)


def test_the_bytes_are_the_same_for_any_number_of_workers(table, tmp_path):
  one = _prepare(table, tmp_path / "one", shortest_side=SIDE)
  assert len(one["files"]) > 1
  _prepare(table, tmp_path / "two", shortest_side=SIDE, workers=2)
  assert _content(tmp_path / "one") == _content(tmp_path / "two")
  _prepare(table, tmp_path / "plain", workers=0)
  assert _content(tmp_path / "plain") != _content(tmp_path / "one")


def test_an_interrupted_copy_goes_on_where_its_files_end(table, tmp_path):
  _prepare(table, tmp_path / "whole", drop_bad=True, shortest_side=SIDE)
  first = json.loads((tmp_path / "whole/dataset.json").read_text())["files"][0]
  reached = []

  def stop(done):
    reached.append(done)
    if len(reached) == 24:
      raise processes.Interrupted("Stopped.")

  rule = {"drop_bad": True, "shortest_side": SIDE}
  with pytest.raises(errors.UserError, match="The same command goes on"):
    _prepare(table, tmp_path / "out", **rule, on_record=stop)
  assert not (tmp_path / "out").exists()
  # Another rule does not take these files.
  _prepare(table, tmp_path / "other", shortest_side=SIDE)
  reached.clear()
  _prepare(table, tmp_path / "out", **rule, on_record=reached.append)
  assert first["records"] < reached[0] <= 25
  assert _content(tmp_path / "out") == _content(tmp_path / "whole")
  assert not list(tmp_path.glob(".*"))


def test_a_kept_file_that_is_not_whole_is_made_again(table, tmp_path):
  _prepare(table, tmp_path / "whole", shortest_side=SIDE)

  def stop(done):
    if done == 24:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _prepare(table, tmp_path / "out", shortest_side=SIDE, on_record=stop)
  (kept,) = tmp_path.glob(".out.partial/found/copy-*/00000.*")
  kept.write_bytes(kept.read_bytes()[:-1])
  _prepare(table, tmp_path / "out", shortest_side=SIDE)
  assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_a_copy_made_in_another_way_is_not_taken_for_it(table, tmp_path):
  _prepare(table, tmp_path / "out", shortest_side=SIDE)
  assert not _prepare(table, tmp_path / "out", shortest_side=SIDE)["written"]
  for other in ({}, {"shortest_side": 9}, {"shortest_side": 12, "quality": 3}):
    with pytest.raises(
      errors.UserError, match="nothing is overwritten"
    ) as error:
      _prepare(table, tmp_path / "out", **other)
    sides = f" with shortest_side={SIDE}, " in str(error.value)
    assert sides == (other == {})  # Of the settings that differ.


def test_wrong_sizes_and_qualities_are_refused(table, tmp_path, capsys):
  for name, value in (("shortest_side", 0), ("quality", 0), ("quality", 101)):
    with pytest.raises(errors.UserError, match=f"{name}={value}"):
      copying.Rule(**{name: value})
  for flags, message in (
    (["--quality", "80"], "--shortest-side"),
    (["--shortest-side", "0"], "at least 1"),
    (["--shortest-side", "9", "--quality", "101"], "from 1 to 100"),
    (["--workers", "0"], "at least 1"),
  ):
    with pytest.raises(SystemExit, match="2"):
      cli.main(["data", "prepare", table, f"{tmp_path}/o", *flags])
    assert message in capsys.readouterr().err


def test_the_command_tells_how_many_were_made_smaller(table, tmp_path, capsys):
  command = ["data", "prepare", table, f"{tmp_path}/o", "--shortest-side", "12"]
  cli.main(command)
  assert "28 records, 16 images made smaller, 8 of them bad" in (
    capsys.readouterr().out
  )
  cli.main([*command, "--json"])
  assert json.loads(capsys.readouterr().out)["resized"] == 16


def test_ctrl_c_waits_until_processes_have_started():
  reached = []
  with pytest.raises(KeyboardInterrupt), processes.ctrl_c_waits():
    signal.raise_signal(signal.SIGINT)
    reached.append(True)
  assert reached
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_each_process_of_a_pool():
  class Pool:
    submitted = 0

    def submit(self, task):
      assert task() == 0
      self.submitted += 1
      if self.submitted == 2:
        signal.raise_signal(signal.SIGINT)

  pool = Pool()
  with pytest.raises(KeyboardInterrupt):
    processes.start_all(pool, 3)
  assert pool.submitted == 3


def _paths(value, path=()):
  """Yields where each value of nested JSON stands."""
  items = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for name, inner in items:
    yield (*path, name)
    yield from _paths(inner, (*path, name))


def test_of_a_file_that_is_not_whole_nothing_is_made_again(
  table, tmp_path, monkeypatch
):
  """Killed after each record, also while it is written, and damaged."""
  options = {"shortest_side": SIDE, "drop_bad": True, "quality": 77}
  _prepare(table, tmp_path / "whole", **options)
  read = []
  copied = copying._Copier._copied

  def count(self, slot):
    read.append(slot)
    return copied(self, slot)

  monkeypatch.setattr(copying._Copier, "_copied", count)
  monkeypatch.setattr(copying, "_CHUNK", 1)

  def stop(done):
    raise KeyboardInterrupt

  damages = (
    lambda data: data,
    lambda data: data[:-1],  # Cut off.
    lambda data: data + b"\xff" * 7,  # A head that is not whole.
    lambda data: data + b"\xff" * 40,  # More bytes than there are.
    lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
  )
  for number in range(60):
    try:
      _prepare(table, tmp_path / "out", on_record=stop, **options)
    except KeyboardInterrupt:
      for begun in tmp_path.glob(".out.partial/found/copy-*/begun-*"):
        begun.write_bytes(damages[number % 5](begun.read_bytes()))
    else:
      break
  assert _content(tmp_path / "out") == _content(tmp_path / "whole")
  # Each slot once, and again those that were cut off or damaged: two of five.
  assert read == sorted(read) and set(read) == set(range(28))
  assert 28 < len(read) <= 28 + 2 * (number // 5 + 1)
  assert len(_content(tmp_path / "out")) > 2  # Of several files.


def test_copies_of_whole_images_are_written_once(table, tmp_path):
  def stop(done):
    raise KeyboardInterrupt

  for options, begun in (({}, 0), ({"drop_bad": True}, 1)):
    with pytest.raises(KeyboardInterrupt):
      _prepare(table, tmp_path / f"o{begun}", on_record=stop, **options)
    found = [*tmp_path.glob(f".o{begun}.partial/found/copy-*/begun-*")]
    assert len(found) == begun


def test_a_list_of_kept_files_that_was_edited_is_not_believed(table, tmp_path):
  def stop(done):
    if done == 24:
      raise KeyboardInterrupt

  def begin(on_record):
    _prepare(table, tmp_path / "out", shortest_side=SIDE, on_record=on_record)

  def first_read():
    """Returns the number of the first record that is copied; keeps all."""
    for begun in tmp_path.glob(".out.partial/found/copy-*/begun-*"):
      begun.unlink()
    read = []

    def note(done):
      read.append(done)
      raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      begin(note)
    return read[0]

  with pytest.raises(KeyboardInterrupt):
    begin(stop)
  (path,) = tmp_path.glob(".out.partial/found/copy-*/done.json")
  good = json.loads(path.read_text())
  assert first_read() > 1
  for where in _paths(good):
    for value in (None, True, -1, 10**6, "x", [], {"x": 1}, KeyError):
      edited = json.loads(path.read_text())
      holder = edited
      for name in where[:-1]:
        holder = holder[name]
      if value is KeyError:
        del holder[where[-1]]
      else:
        holder[where[-1]] = value
      path.write_text(json.dumps(edited))
      assert first_read() == 1, (where, value)
      path.write_text(json.dumps(good))
  assert first_read() > 1
