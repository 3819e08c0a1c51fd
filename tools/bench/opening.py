"""Times how data of many records are opened, and the memory that this takes.

    python tools/bench/opening.py [--rows 12000000] [--tar-samples 200000]
      [--kinds table,parquet,array_record,tar] [--tree DIR] [--data DIR]

Names are synthetic, and there is one image. Each opening is a process of its
own on one core, the first with an empty cache: seconds, the CPU's seconds,
and by how many bytes a row the process grows, at its peak and while data are
open. `--tree` times another checkout on the same data.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
import tables  # Beside this script.
from PIL import Image
from pyarrow import parquet

from clip_jax.data import record as record_lib
from clip_jax.data.sources import array_record

KINDS = ("table", "parquet", "array_record", "tar")
_PIECE = 100_000  # Rows made at a time.
_SETTLED_SECONDS = 3  # What is found in files that just changed is not kept.
_QUOTED = 7  # Every so many captions have a comma, in quotes.
# What a process that opens data prints.
_OPEN = """
import json, re, sys, time
from clip_jax.data import sources
from clip_jax.data.sources import array_record, parquet, table, webdataset
def memory(name):
  status = open("/proc/self/status").read()
  return 1024 * int(re.search(name + r":\\s+(\\d+) kB", status)[1])
before = memory("VmRSS")
start, used = time.perf_counter(), time.process_time()
source = sources.open_source(sys.argv[1])
seconds, cpu = time.perf_counter() - start, time.process_time() - used
record = source[len(source) // 2]
print(json.dumps({
  "rows": len(source), "seconds": seconds, "cpu_seconds": cpu,
  "peak": memory("VmHWM") - before,
  "open": memory("VmRSS") - before, "key": record.key, "texts": record.texts,
  "fingerprint": source.fingerprint,
}))
"""


def make(kind: str, rows: int, directory: pathlib.Path) -> str:
  """Writes data of so many rows, where missing; returns their address."""
  Image.new("RGB", (8, 8)).save(directory / "one.jpg")
  image = (directory / "one.jpg").read_bytes()
  (read,) = _names(rows // 2, rows // 2 + 1)
  (directory / read).parent.mkdir(parents=True, exist_ok=True)
  (directory / read).write_bytes(image)  # Of the only record that is read.
  return _MAKERS[kind](rows, directory, image)


def _names(start: int, stop: int) -> list[str]:
  return [f"images/{i // 10_000:05}/{i:09}.jpg" for i in range(start, stop)]


def _captions(start: int, stop: int) -> list[str]:
  return [
    f"a photo of thing {i}{', seen' if i % _QUOTED == 0 else ' seen'} from afar"
    for i in range(start, stop)
  ]


def _pieces(rows: int):
  for start in range(0, rows, _PIECE):
    yield start, min(rows, start + _PIECE)


def _table(rows: int, directory: pathlib.Path, image: bytes) -> str:
  path = directory / f"table-{rows}.csv"
  if not path.exists():
    with path.open("w") as file:
      file.write("image,caption\n")
      for start, stop in _pieces(rows):
        captions = (f'"{c}"' if "," in c else c for c in _captions(start, stop))
        pairs = zip(_names(start, stop), captions, strict=True)
        file.writelines(f"{name},{caption}\n" for name, caption in pairs)
  return f"csv:{path}"


def _parquet(rows: int, directory: pathlib.Path, image: bytes) -> str:
  path = directory / f"table-{rows}.parquet"
  if not path.exists():
    schema = pa.schema({"filepath": pa.string(), "caption": pa.string()})
    with parquet.ParquetWriter(path, schema) as writer:
      for start, stop in _pieces(rows):
        columns = [_names(start, stop), _captions(start, stop)]
        writer.write_table(pa.table(columns, schema=schema))
  return f"parquet:{path}"


def _array_record(rows: int, directory: pathlib.Path, image: bytes) -> str:
  path = directory / f"table-{rows}.arrayrecord"
  if not path.exists():
    writer = array_record.Writer(str(path))
    for start, stop in _pieces(rows):
      names, captions = _names(start, stop), _captions(start, stop)
      for name, caption in zip(names, captions, strict=True):
        record = record_lib.Record(image[:64], (caption,), name)
        writer.write(array_record.encode(record))
    writer.close()
  return f"arrayrecord:{path}"


def _tar(rows: int, directory: pathlib.Path, image: bytes) -> str:
  path = directory / f"tar-{rows}.tar"
  if not path.exists():
    with path.open("wb") as file:
      for i in range(rows):
        for suffix, data in (("jpg", image), ("txt", b"a photo")):
          file.write(_header(f"{i:09}.{suffix}", len(data)))
          file.write(data + b"\0" * (-len(data) % 512))
      file.write(b"\0" * 1024)
  return f"wds:{path}"


def _header(name: str, size: int) -> bytes:
  block = bytearray(512)
  block[: len(name)] = name.encode()
  block[124:136] = b"%011o\0" % size
  block[148:156] = b" " * 8
  block[156:157], block[257:265] = b"0", b"ustar\x0000"
  block[148:156] = b"%06o\0 " % sum(block)
  return bytes(block)


_MAKERS = {
  "table": _table,
  "parquet": _parquet,
  "array_record": _array_record,
  "tar": _tar,
}


def measure(address: str, *, tree: pathlib.Path, cache: str) -> dict:
  """Opens an address in a process of its own; returns what that prints."""
  surroundings = {
    **os.environ,
    "PYTHONPATH": str(tree),
    "XDG_CACHE_HOME": cache,
    "JAX_PLATFORMS": "cpu",
  }
  one_core = ["taskset", "-c", "0"] if shutil.which("taskset") else []
  done = subprocess.run(
    [*one_core, sys.executable, "-c", _OPEN, address],
    cwd=tree,
    env=surroundings,
    stdout=subprocess.PIPE,
    check=True,
  )
  return json.loads(done.stdout)


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=12_000_000)
  parser.add_argument("--tar-samples", type=int, default=200_000)
  parser.add_argument("--kinds", default=",".join(KINDS))
  parser.add_argument("--tree", type=pathlib.Path, action="append")
  parser.add_argument("--data", type=pathlib.Path)
  tables.add_outputs(parser)
  options = parser.parse_args()
  here = pathlib.Path(__file__).parents[2]
  lines = []
  with tempfile.TemporaryDirectory() as temporary:
    directory = options.data or pathlib.Path(temporary)
    directory.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds.split(","):
      rows = options.tar_samples if kind == "tar" else options.rows
      address = make(kind, rows, directory.resolve())
      time.sleep(_SETTLED_SECONDS)
      for tree in options.tree or [here]:
        with tempfile.TemporaryDirectory() as cache:
          for start in ("first", "second"):
            found = measure(address, tree=tree, cache=cache)
            lines.append({"kind": kind, "tree": tree.name, "start": start})
            lines[-1] |= found
            print(json.dumps(lines[-1]), file=sys.stderr)
  text = "| data | tree | start | rows | s | CPU s | peak | open |\n"
  text += "|---|---|---|---|---|---|---|---|\n"
  for line in lines:
    cells = (
      *(line[name] for name in ("kind", "tree", "start")),
      f"{line['rows']:,}",
      *(f"{line[name]:.2f}" for name in ("seconds", "cpu_seconds")),
      *(f"{line[name] / line['rows']:.0f}" for name in ("peak", "open")),
    )
    text += f"| {' | '.join(cells)} |\n"
  tables.write(options, lines, text)


if __name__ == "__main__":
  main()
