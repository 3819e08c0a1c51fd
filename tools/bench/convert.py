"""Wall time and peak memory of converting full-size models.

Makes a checkpoint with random weights under OpenAI's names, in half precision
but for norms and embeddings as OpenAI released its own, converts it by the
command line to every target that can hold it, and each result back to OpenAI's
format, which must give the same tensors.

    python tools/bench/convert.py [--models ViT-B-32 RN50] [--directory DIR]
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import tables  # Beside this script.

from clip_jax.convert import engine
from clip_jax.convert.files import torch_zip
from clip_jax.convert.formats import openai_names
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

TARGETS = ("clip-jax", "openai", "huggingface", "open-clip")
# OpenAI keeps these in float32 (`convert_weights` of its release).
_FLOAT32 = ("ln_", "bn", "embedding", "downsample.1", "logit_scale")


def make_checkpoint(name: str, path: pathlib.Path) -> None:
  """Writes a state dict of the model `name` with random weights."""
  spec = engine.resolve(variants.VARIANTS[name])
  shapes = engine.leaf_shapes(spec)
  tensors = {}
  for i, entry in enumerate(openai_names.NAMES.entries(spec)):
    shape = engine.their_shape(entry, shapes)
    full = any(part in entry.name for part in _FLOAT32)
    kind = np.float32 if full else np.float16

    def read(shape=shape, kind=kind, seed=i):
      noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
      return np.asarray(0.02 * noise, kind)

    tensors[entry.name] = Tensor(shape, np.dtype(kind), read)
  torch_zip.write(path, tensors)


def run(*arguments: str) -> tuple[float, int, int]:
  """Runs the command line; returns seconds, peak bytes and the exit code."""
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, "-m", "clip_jax", *arguments],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  message = process.stderr.read().decode()
  _, status, usage = os.wait4(process.pid, 0)
  code = os.waitstatus_to_exitcode(status)
  if code:
    print(message, file=sys.stderr)
  return time.perf_counter() - start, usage.ru_maxrss * 1024, code


def size(path: pathlib.Path) -> int:
  """Returns the bytes of a file, or of all in a directory."""
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file())


def same_tensors(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two checkpoints hold the same tensors, bit for bit."""
  left, right = (torch_zip.read(path).tensors for path in (a, b))
  counts = {k for k in right if k.endswith("num_batches_tracked")}
  if left.keys() - counts != right.keys() - counts:
    return False
  return all(
    left[key].dtype == right[key].dtype
    and np.array_equal(left[key].read(), right[key].read())
    for key in left
  )


def measure(name: str, directory: pathlib.Path) -> list[dict]:
  """Converts one model to every target and back."""
  source = directory / f"{name}.pt"
  make_checkpoint(name, source)
  rows = []
  for target in TARGETS:
    result, back = directory / f"{name}-{target}", directory / "back.pt"
    options = ("--activation", "quick_gelu")
    seconds, peak, code = run(
      "convert", str(source), str(result), "--to", target, *options
    )
    row = {
      "model": name,
      "target": target,
      "source_bytes": size(source),
      "seconds": seconds,
      "peak_bytes": peak,
      "peak_over_source": peak / size(source),
      "exit_code": code,
    }
    if code == 0:
      more = options if target == "openai" else ()
      named = ("--from", "openai") if target == "openai" else ()
      run("convert", str(result), str(back), "--to", "openai", *more, *named)
      row["exact_way_back"] = same_tensors(source, back)
      back.unlink(missing_ok=True)
    rows.append(row)
  return rows


def main() -> None:
  """Converts and measures; prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", nargs="+", default=["ViT-B-32", "RN50"])
  tables.add_outputs(parser)
  parser.add_argument("--directory", help="where the files go; kept if given")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as room:
    directory = pathlib.Path(arguments.directory or room)
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
      row for name in arguments.models for row in measure(name, directory)
    ]
  tables.write(arguments, rows, markdown(rows))


def markdown(rows: list[dict]) -> str:
  """Returns the rows as a table."""
  lines = [
    "| model | target | source | seconds | peak | peak / source | exact |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    if row["exit_code"]:
      lines.append(f"| {row['model']} | {row['target']} | refused | | | | |")
      continue
    lines.append(
      f"| {row['model']} | {row['target']} "
      f"| {row['source_bytes'] / 1e6:.0f} MB "
      f"| {row['seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f} MB "
      f"| {row['peak_over_source']:.2f} "
      f"| {'yes' if row['exact_way_back'] else 'NO'} |"
    )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
