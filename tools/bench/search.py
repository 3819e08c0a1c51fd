"""Times exact search of many embeddings against FAISS and usearch.

    pip install faiss-cpu usearch
    python tools/bench/search.py [--rows N] [--dims D] [--queries Q] [-k K]
      [--rounds R] [--graph-rows N] [--json FILE] [--markdown FILE]

All answer the same queries in turns, in one process, with as many threads.
`ours` reads the embeddings mapped from a file, as an index has them; FAISS's
flat index holds its own copy in memory. Memory is the largest resident set
during a search less that before it, once for each side. Both must find the same
rows.

Of the first `--graph-rows` embeddings (0 for none), which take long to insert,
a graph of usearch is made as `clip-jax search --export` makes it, and compared
with both. Recall is the share of the exact k that it finds. The embeddings are
random, the hardest case of a graph. It runs on Linux.
"""

import argparse
import importlib.metadata
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

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


class Compared(NamedTuple):
  """Sides that answered the same queries.

  Attributes:
    seconds: of each round, by side.
    mib: that a search takes at most, by side.
    found: rows (queries, k), by side.
  """

  seconds: dict[str, list[float]]
  mib: dict[str, float]
  found: dict[str, np.ndarray]

  def ratios(self, other: str) -> list[float]:
    """Returns our time over another's, of each round."""
    pairs = zip(self.seconds["ours"], self.seconds[other], strict=True)
    return [own / theirs for own, theirs in pairs]

  def recall(self, side: str) -> float:
    """Returns the share of the rows that we find that a side finds, too."""
    pairs = zip(self.found["ours"], self.found[side], strict=True)
    shared = sum(len(np.intersect1d(*pair)) for pair in pairs)
    return shared / self.found["ours"].size

  def table(self) -> str:
    """Returns a table in Markdown."""
    rows = "".join(
      f"| {name} | {statistics.median(seconds):.4f} | {self.mib[name]:.0f} "
      f"| {self.recall(name):.4f} |\n"
      for name, seconds in self.seconds.items()
    )
    header = "| | s | MiB beside the embeddings | recall |\n|---|---|---|---|\n"
    return header + rows


def compare(
  sides: dict[str, Callable[[], np.ndarray]], rounds: int
) -> Compared:
  """Lets sides answer in turns, once without a clock."""
  found = {name: side() for name, side in sides.items()}
  mib = {name: peak_mib(side) for name, side in sides.items()}
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(rounds):
    for name, side in sides.items():
      started = time.perf_counter()
      side()
      seconds[name].append(time.perf_counter() - started)
  return Compared(seconds, mib, found)


def make_sides(
  embeds: np.ndarray, queries: np.ndarray, k: int, *, graph: bool
) -> dict[str, Callable[[], np.ndarray]]:
  """Returns what each side answers with, by its name."""
  import faiss  # Of this benchmark alone.

  flat = faiss.IndexFlatIP(embeds.shape[1])
  for start in range(0, len(embeds), _ROWS_AT_ONCE):
    flat.add(np.ascontiguousarray(embeds[start : start + _ROWS_AT_ONCE]))
  sides = {
    "ours": lambda: search.nearest(embeds, queries, k=k)[0],
    "FAISS": lambda: flat.search(queries, k)[1],
  }
  if graph:
    from usearch.index import Index

    made = Index(ndim=embeds.shape[1], metric="ip", dtype="f32")
    for start in range(0, len(embeds), _ROWS_AT_ONCE):
      rows = np.ascontiguousarray(embeds[start : start + _ROWS_AT_ONCE])
      made.add(np.arange(start, start + len(rows), dtype=np.uint64), rows)
    sides["usearch"] = lambda: made.search(queries, k).keys.astype(np.int64)
  return sides


def main() -> None:
  """Compares all and prints tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--dims", type=int, default=512)
  parser.add_argument("--queries", type=int, default=64)
  parser.add_argument("-k", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--graph-rows", type=int, default=100_000)
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  k, rounds = arguments.k, arguments.rounds
  with tempfile.TemporaryDirectory() as directory:
    embeds = write_units(
      pathlib.Path(directory) / "embeds.npy", arguments.rows, arguments.dims
    )
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(arguments.queries, arguments.dims))
    queries = (queries / np.linalg.norm(queries, axis=1)[:, None]).astype("f4")
    exact = compare(make_sides(embeds, queries, k, graph=False), rounds)
    graph = None
    if some := min(arguments.graph_rows, arguments.rows):
      sides = make_sides(embeds[:some], queries, k, graph=True)
      graph = compare(sides, rounds)
  ratios = exact.ratios("FAISS")
  differ = int(np.sum(exact.found["ours"] != exact.found["FAISS"]))
  least, _, most = statistics.quantiles(ratios, n=4)
  versions = " and ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("faiss-cpu", "usearch")
  )
  text = (
    f"{arguments.rows:,} x {arguments.dims}, {arguments.queries} queries, "
    f"k = {k}, {os.cpu_count()} cores, {versions}; "
    f"{differ} of {exact.found['ours'].size} rows differ.\n\n"
    f"{exact.table()}\n"
    f"Ours take {statistics.median(ratios):.3f} of FAISS's time (quartiles "
    f"{least:.3f} to {most:.3f}, {rounds} rounds).\n"
  )
  report = {
    "seconds": exact.seconds,
    "mib": exact.mib,
    "ratios": ratios,
    "rows_that_differ": differ,
  }
  if graph is not None:
    text += f"\nThe first {some:,} rows:\n\n{graph.table()}"
    report["graph"] = {
      "rows": some,
      "seconds": graph.seconds,
      "recall": graph.recall("usearch"),
    }
  tables.write(arguments, report, text)


if __name__ == "__main__":
  main()
