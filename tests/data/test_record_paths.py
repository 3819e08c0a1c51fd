"""Records say which file their image was read from."""

import pathlib
import shutil

import pyarrow as pa
import pytest
from pyarrow import parquet

from clip_jax.data import prepare, sources

SCHEMES = {
  "folder:own/pictures": "own/pictures/a/{}.png",
  "folder:captioned": "captioned/{}.png",
  "csv:pairs.csv": "pictures/a/{}.png",
  "csv:below/pairs.csv?root=..": "below/../pictures/a/{}.png",
  "csv:pairs.csv?split=held_out&held_out=0.5": "pictures/a/{}.png",
  "parquet:named.parquet": "pictures/a/{}.png",
  "parquet:embedded": "embedded/{}.parquet",
  "wds:{a,b}.tar": "{}.tar",
  "arrayrecord:prepared": "prepared/{}",
  "builtin:digits/test": "",
}


@pytest.fixture
def room(tmp_path, pairs, write_tar, members, monkeypatch):
  """Three pairs in the form of each scheme."""
  monkeypatch.chdir(tmp_path)
  records = pairs(3)
  lines = ["image,caption"]
  for folder in ("pictures/a", "captioned", "below", "embedded"):
    pathlib.Path(folder).mkdir(parents=True)
  for record in records:
    name = f"{record.key}.png"
    pathlib.Path("pictures/a", name).write_bytes(record.image)
    pathlib.Path("captioned", name).write_bytes(record.image)
    pathlib.Path("captioned", f"{record.key}.txt").write_text(record.texts[0])
    lines.append(f"pictures/a/{name},{record.texts[0]}")
  shutil.copytree("pictures", "own/pictures")
  pathlib.Path("pairs.csv").write_text("\n".join(lines))
  pathlib.Path("below/pairs.csv").write_text("\n".join(lines))
  rows = [line.split(",") for line in lines[1:]]
  names, texts = (list(column) for column in zip(*rows, strict=True))
  table = pa.table({"image_path": names, "caption": texts})
  parquet.write_table(table, "named.parquet")
  for name, some in (("a", records[:1]), ("b", records[1:])):
    write_tar(pathlib.Path(f"{name}.tar"), members(some))
    images = [{"bytes": x.image, "path": None} for x in some]
    captions = [x.texts[0] for x in some]
    table = pa.table({"image": images, "caption": captions})
    parquet.write_table(table, f"embedded/{name}.parquet")
  prepare.prepare(sources.open_source("csv:pairs.csv"), "prepared")
  return records


@pytest.mark.parametrize("address", SCHEMES)
def test_the_path_is_that_of_the_file_with_the_image(room, address):
  source = sources.open_source(address)
  for i in range(min(3, len(source))):
    record = source[i]
    if address.startswith("builtin"):
      assert record.path == ""
      continue
    held = pathlib.Path(record.path).read_bytes()
    assert record.image in held
    (made,) = (x for x in room if x.image == record.image)
    wanted = {
      "parquet:embedded": "ab"[made.key > "key000"],
      "wds:{a,b}.tar": "ab"[made.key > "key000"],
      "arrayrecord:prepared": pathlib.Path(record.path).name,
    }.get(address, made.key)
    assert record.path == SCHEMES[address].format(wanted)


def test_a_copy_that_lies_elsewhere_is_the_same_record(room):
  first, copy = (
    sources.open_source(address)[0]
    for address in ("csv:pairs.csv", "arrayrecord:prepared")
  )
  assert first == copy and first.path != copy.path
