"""Measures how the memory of each action of `data` grows with the data.

  python tools/bench/curation_memory.py [--pairs N] [--times K] [--only A,B]

Each action runs as a process of its own on N pairs and on K times as many, of
small images that all differ, with captions of words drawn by Zipf's law. What
is told is the most memory that the process had, Python and libraries included.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import curation  # Beside this script.
import numpy as np
import tables  # Likewise.
from PIL import Image

_SIDE = 12
_SHARD = 10_000  # Pairs of a tar.
_RULES = ("--min-words", "2", "--max-caption-repeats", "100", "--max-run", "9")


def write(directory: pathlib.Path, number: int, queries: int) -> None:
  """Writes tars of pairs, and a list of queries."""
  directory.mkdir()
  draw, rng = curation.Captions(3), np.random.default_rng(3)
  names = "\n".join(draw.queries(queries))
  (directory / "queries.txt").write_text(names + "\n")
  for shard, first in enumerate(range(0, number, _SHARD)):
    texts = draw.texts(min(_SHARD, number - first))
    with tarfile.open(directory / f"{shard:05d}.tar", "w") as tar:
      for slot, text in enumerate(texts, first):
        pixels = rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
        image = curation.encoded(Image.fromarray(pixels), "png")
        curation.add(tar, f"{slot:09d}.png", image)
        curation.add(tar, f"{slot:09d}.txt", text.encode())


def commands(directory: pathlib.Path) -> dict[str, list[str]]:
  """Returns the arguments of each action."""
  data = f"wds:{directory}/*.tar"
  out = lambda name: str(directory / name)  # noqa: E731
  queries = str(directory / "queries.txt")
  return {
    "inspect": [data],
    "stats": [data],
    "prepare": [data, out("copy")],
    "prepare --shortest-side": [data, out("small"), "--shortest-side", "8"],
    "queries": [data, out("list.txt"), "--min-count", "50"],
    "curate": [
      *(data, out("balanced"), "--queries", queries),
      *("--max-per-query", "50"),
    ],
    "filter": [data, out("clean"), *_RULES],
    "dedupe --by exact": [data, out("single"), "--by", "exact"],
    "dedupe --by exact,near": [data, out("seen"), "--by", "exact,near"],
    "dedupe --against": [
      data,
      out("report"),
      "--against",
      data,
      "--report-only",
    ],
  }


def peak_mib(action: str, words: list[str]) -> float:
  """Runs an action; returns the most memory that its process had.

  Raises:
    CalledProcessError: it failed.
  """
  command = [sys.executable, "-m", "clip_jax", "data", action.split()[0]]
  child = subprocess.Popen(
    [*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  assert child.stderr is not None
  said = child.stderr.read()
  _, status, used = os.wait4(child.pid, 0)
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode:
    raise subprocess.CalledProcessError(
      child.returncode, command, stderr=said.decode()
    )
  return used.ru_maxrss / 1024


def markdown(found: dict[str, list[float]], sizes: list[int]) -> str:
  """Returns the table in Markdown."""
  head = " | ".join(f"{size:,} pairs, MiB" for size in sizes)
  lines = [
    f"| action | {head} | ratio | bytes a pair |",
    "|---|---|---|---|---|",
  ]
  for name, (small, large) in found.items():
    grown = (large - small) * 2**20 / (sizes[1] - sizes[0])
    lines.append(
      f"| {name} | {small:,.0f} | {large:,.0f} | {large / small:.2f} | "
      f"{grown:,.0f} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description="Measures how the memory of each action of data grows."
  )
  parser.add_argument("--pairs", type=int, default=10_000, metavar="N")
  parser.add_argument("--times", type=int, default=10, metavar="K")
  parser.add_argument("--queries", type=int, default=20_000, metavar="N")
  parser.add_argument("--only", default="", metavar="ACTION,…")
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  if arguments.pairs < 1 or arguments.times < 2:
    parser.error("give --pairs of at least 1, and --times of at least 2")
  sizes = [arguments.pairs, arguments.pairs * arguments.times]
  only = [name for name in arguments.only.split(",") if name]
  known = {name.split()[0] for name in commands(pathlib.Path())}
  if unknown := set(only) - known:
    parser.error(
      f"--only {min(unknown)} is no action; known: {', '.join(sorted(known))}"
    )
  found: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    for size in sizes:
      directory = pathlib.Path(folder, str(size))
      write(directory, size, arguments.queries)
      for name, words in commands(directory).items():
        if only and name.split()[0] not in only:
          continue
        peak = peak_mib(name, words)
        found.setdefault(name, []).append(peak)
        print(f"{name}: {size} pairs, {peak:.0f} MiB", file=sys.stderr)
  report: dict[str, Any] = {"sizes": sizes, "mib": found}
  tables.write(arguments, report, markdown(found, sizes))


if __name__ == "__main__":
  main()
