"""Times exact search of many embeddings against FAISS's flat index.

    pip install faiss-cpu
    python tools/bench/search.py [--rows N] [--dims D] [--queries Q] [-k K]
      [--rounds R] [--json FILE] [--markdown FILE]

Both answer the same queries in turns, in one process, with as many threads.
`ours` reads the embeddings mapped from a file, as an index has them; FAISS
holds its own copy in memory. Memory is the largest resident set during a search
less that before it, once for each side. Both must find the same rows. It runs
on Linux.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tables  # Beside this script.

from clip_jax import search

_ROWS_AT_ONCE = 1 << 14


def write_units(path: pathlib.Path, rows: int, dims: int) -> np.ndarray:
  """Writes unit vectors to a .npy file, and returns them mapped from it."""
  made = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dims))
  rng = np.random.default_rng(0)
  for start in range(0, rows, _ROWS_AT_ONCE):
    part = made[start : start + _ROWS_AT_ONCE]
    part[:] = rng.normal(size=part.shape)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  made.flush()
  return np.load(path, mmap_mode="r")


def peak_mib(call: Callable[[], object]) -> float:
  """Returns by how much a call lets the resident set grow, in MiB."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
  before = _mib("VmRSS")
  call()
  return _mib("VmHWM") - before


def _mib(field: str) -> float:
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
  """Compares both and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--dims", type=int, default=512)
  parser.add_argument("--queries", type=int, default=64)
  parser.add_argument("-k", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=7)
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  import faiss  # Of this benchmark alone.

  with tempfile.TemporaryDirectory() as directory:
    embeds = write_units(
      pathlib.Path(directory) / "embeds.npy", arguments.rows, arguments.dims
    )
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(arguments.queries, arguments.dims))
    queries = (queries / np.linalg.norm(queries, axis=1)[:, None]).astype("f4")
    flat = faiss.IndexFlatIP(arguments.dims)
    for start in range(0, arguments.rows, _ROWS_AT_ONCE):
      flat.add(np.ascontiguousarray(embeds[start : start + _ROWS_AT_ONCE]))
    sides = {
      "ours": lambda: search.nearest(embeds, queries, k=arguments.k)[0],
      "FAISS": lambda: flat.search(queries, arguments.k)[1],
    }
    found = {name: side() for name, side in sides.items()}
    memory = {name: peak_mib(side) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
      for name, side in sides.items():
        started = time.perf_counter()
        side()
        times[name].append(time.perf_counter() - started)
  ratios = [a / b for a, b in zip(times["ours"], times["FAISS"], strict=True)]
  differ = int(np.sum(found["ours"] != found["FAISS"]))
  least, _, most = statistics.quantiles(ratios, n=4)
  rows = "".join(
    f"| {name} | {statistics.median(times[name]):.3f} | {memory[name]:.0f} |\n"
    for name in sides
  )
  text = (
    f"{arguments.rows:,} x {arguments.dims}, {arguments.queries} queries, "
    f"k = {arguments.k}, {os.cpu_count()} cores, faiss {faiss.__version__}; "
    f"{differ} of {found['ours'].size} rows differ.\n\n"
    f"| | s | MiB beside the embeddings |\n|---|---|---|\n{rows}\n"
    f"Ours take {statistics.median(ratios):.3f} of its time (quartiles "
    f"{least:.3f} to {most:.3f}, {len(ratios)} rounds).\n"
  )
  report = {
    "seconds": times,
    "mib": memory,
    "ratios": ratios,
    "rows_that_differ": differ,
  }
  tables.write(arguments, report, text)


if __name__ == "__main__":
  main()
