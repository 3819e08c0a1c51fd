"""Measures the data tools a core, and computes what 400M and 10B pairs cost.

    pip install ahocorasick_rs
    python tools/bench/curation.py [--pairs N] [--queries N] [--json FILE]
      [--markdown FILE]

Captions are rows of words drawn by Zipf's law from a vocabulary; of the queries
two thirds are its most frequent words and one third rows of two words. Images
are JPEGs of 256 x 256 pixels. Times are processor time of one process, so that
other work beside it counts little. Costs are those times a pair, multiplied;
docs/scale.md has the table. What balancing keeps is simulated: counts of
queries for a sample of the pairs, with the limit scaled as the sample is.
"""

import argparse
import dataclasses
import io
import pathlib
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tables  # Beside this script.
from PIL import Image

from clip_jax import preprocess
from clip_jax.data import prepare, sources
from clip_jax.data.curation import (
  balancing,
  hamming,
  likeness,
  matching,
  pair_rules,
  rules,
  survey,
)

_SCALES = (400_000_000, 10_000_000_000)
_VOCABULARY = 1_000_000
_EXPONENT = 1.0  # Of Zipf's law, as words of English have it.
_WORDS = 10  # Of a caption, on average.
# Of what is simulated: pairs that hold a query, and the limit of a query; the
# first three as MetaCLIP has them (arXiv 2309.16671), and what it kept.
_POOLS = (
  (1.6e9, 20_000, 0.4e9),
  (10.7e9, 20_000, 1.0e9),
  (10.7e9, 170_000, 2.5e9),
  (400e6, 20_000, None),
  (10e9, 20_000, None),
)
_COUNTS_EXPONENT = 1.3  # Of the law of the queries' counts; see docs/scale.md.
_QUERIES_A_PAIR = 3.5


class Captions:
  """Draws captions and makes queries of the same words."""

  def __init__(self, seed: int):
    self._rng = np.random.default_rng(seed)
    weights = np.arange(1, _VOCABULARY + 1) ** -_EXPONENT
    self._edges = np.cumsum(weights / weights.sum())

  def ranks(self, number: int) -> np.ndarray:
    """Returns the ranks of `number` words, int64."""
    return np.searchsorted(self._edges, self._rng.random(number))

  def texts(self, number: int) -> list[str]:
    """Returns captions."""
    lengths = 1 + self._rng.poisson(_WORDS - 1, number)
    words = [f"w{rank}" for rank in self.ranks(int(lengths.sum()))]
    ends = np.cumsum(lengths)
    return [
      " ".join(words[end - length : end])
      for end, length in zip(ends, lengths, strict=True)
    ]

  def queries(self, number: int) -> list[str]:
    """Returns frequent words, then rows of two, each once."""
    found = dict.fromkeys(f"w{rank}" for rank in range(number * 2 // 3))
    while len(found) < number:
      first, second = self.ranks(2 * number).reshape(2, -1)
      for pair in zip(first, second, strict=True):
        if len(found) < number:
          found.setdefault(f"w{pair[0]} w{pair[1]}")
    return list(found)


def write_shard(path: pathlib.Path, captions: list[str]) -> None:
  """Writes a tar of images that differ, one for each caption."""
  rng = np.random.default_rng(0)
  with tarfile.open(path, "w") as tar:
    for number, caption in enumerate(captions):
      coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
      image = Image.fromarray(coarse).resize(
        (256, 256), Image.Resampling.BICUBIC
      )
      noise = rng.integers(-12, 13, (256, 256, 3))
      pixels = np.clip(np.asarray(image, np.int16) + noise, 0, 255)
      image = Image.fromarray(pixels.astype(np.uint8))
      add(tar, f"{number:08d}.jpg", encoded(image, "jpeg", quality=85))
      add(tar, f"{number:08d}.txt", caption.encode())


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
  """Returns the bytes of an image in a format."""
  data = io.BytesIO()
  image.save(data, kind, **options)
  return data.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  """Adds a file to a tar."""
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def cpu_seconds(call: Callable[[], Any]) -> float:
  """Returns the processor time of this process that a call takes."""
  started = time.process_time()
  call()
  return time.process_time() - started


class Matching:
  """What `data curate` finds out about a record."""

  columns: Mapping[str, np.dtype] = {"pair": np.dtype(np.uint64)}
  ragged: Mapping[str, np.dtype] = {"queries": np.dtype(np.uint32)}
  identity = "matching"

  def __init__(self, matcher: matching.Matcher):
    self._matcher = matcher

  def __call__(self, record: Any) -> Mapping[str, Any]:
    """Returns the hash of a pair and its queries."""
    preprocess.check_header(record.image, limits=preprocess.DEFAULT_LIMITS)
    return {
      "pair": balancing.hash_pair(record),
      "queries": self._matcher.find(record.texts),
    }


def compare_matchers(captions: list[str], queries: list[str]) -> dict[str, Any]:
  """Returns captions a second of several ways to match, and memory."""
  before = _resident_mib()
  started = time.process_time()
  matcher = matching.Matcher(queries)
  built = time.process_time() - started
  memory = _resident_mib() - before
  found = [matcher.find([text]) for text in captions]
  ways = {
    "dictionary of rows of words (ours)": (
      len(captions),
      lambda text: matcher.find([text]),
    )
  }
  spaced = [f" {query} " for query in queries]
  ways["`in`, query by query"] = (
    20,
    lambda text: [i for i, query in enumerate(spaced) if query in f" {text} "],
  )
  some = queries[:2000]
  pattern = re.compile(
    "(?=( (?:" + "|".join(map(re.escape, sorted(some, reverse=True))) + ") ))"
  )
  ways[f"regular expression, {len(some):,} queries only"] = (
    50,
    lambda text: pattern.findall(f" {text} "),
  )
  try:
    import ahocorasick_rs  # Of this benchmark alone.
  except ImportError:
    pass
  else:
    automaton = ahocorasick_rs.AhoCorasick(spaced)
    ways["ahocorasick_rs"] = (
      len(captions),
      lambda text: automaton.find_matches_as_indexes(
        matching.spaced(f" {text} "), overlapping=True
      ),
    )
    theirs = [
      sorted({i for i, _, _ in ways["ahocorasick_rs"][1](text)})
      for text in captions
    ]
    assert theirs == found, "The matchers differ."
  naive = ways["`in`, query by query"][1]
  assert [naive(text) for text in captions[:20]] == found[:20]
  rates = {}
  for name, (number, match) in ways.items():
    texts = captions[:number]
    rates[name] = number / cpu_seconds(lambda t=texts, m=match: [*map(m, t)])
  return {"captions_per_second": rates, "build_s": built, "mib": memory}


def _resident_mib() -> float:
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of a pair: processor time, and bytes held until all pairs are decided."""

  seconds: float
  held: float


def measure(directory: pathlib.Path, number: int, queries: list[str]) -> dict:
  """Returns a `Cost` for each step, and the bytes of a pair."""
  captions = Captions(1).texts(number)
  write_shard(directory / "pairs.tar", captions)
  source = sources.open_source(f"wds:{directory / 'pairs.tar'}")
  limits = preprocess.DEFAULT_LIMITS
  filters = rules.Rules(
    min_side=64, max_aspect=3, min_words=3, min_letters=0.1, max_digits=0.95
  )
  steps = {
    "curate: read, match": Matching(matching.Matcher(queries)),
    "filter: read, rules": pair_rules.Examine(filters, limits),
    "dedupe: read, hash bytes": likeness.Examine(limits, looks=False),
    "dedupe: read, decode, hash looks": likeness.Examine(limits, looks=True),
  }
  costs = {}
  for name, examine in steps.items():
    found: list[Any] = []
    seconds = cpu_seconds(
      lambda e=examine, f=found: f.append(survey.survey(source, e))
    )
    arrays = (found[0].columns, found[0].lengths, found[0].values)
    held = sum(a.nbytes for group in arrays for a in group.values())
    costs[name] = Cost(
      seconds / number, (held + found[0].reasons.nbytes) / number
    )
  seconds = cpu_seconds(lambda: prepare.prepare(source, directory / "copy"))
  costs["any: write what stays"] = Cost(seconds / number, 0)
  matches = _matches(2_000_000, len(queries), _COUNTS_EXPONENT, _QUERIES_A_PAIR)
  hashes = np.arange(len(queries), dtype=np.uint64)
  seconds = cpu_seconds(lambda: balancing.kept(matches, hashes, 20.0))
  costs["curate: decide"] = Cost(seconds / len(matches.pairs), 0)
  size = (directory / "pairs.tar").stat().st_size / number
  return {"costs": costs, "pair_bytes": size}


def near_seconds(number: int) -> float:
  """Returns the time to find near hashes among `number` random ones."""
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**63, number).astype(np.uint64)
  labels = np.arange(number)
  confirm = lambda i, j: np.ones(len(i), bool)  # noqa: E731
  return cpu_seconds(
    lambda: hamming.join(hashes, hashes, 6, labels, confirm=confirm)
  )


def _matches(
  pairs: int, queries: int, exponent: float, mean: float
) -> balancing.Matches:
  """Returns the queries of pairs, drawn by Zipf's law.

  Args:
    pairs: number of pairs, each with at least one query.
    queries: number of queries.
    exponent: of the law.
    mean: queries of a pair, before what is drawn twice is taken out.
  """
  rng = np.random.default_rng(2)
  lengths = 1 + rng.poisson(mean - 1, pairs)
  weights = np.arange(1, queries + 1) ** -exponent
  edges = np.cumsum(weights / weights.sum())
  drawn = np.searchsorted(edges, rng.random(int(lengths.sum())) * edges[-1])
  rows = np.repeat(np.arange(pairs), lengths)
  rows, drawn = np.divmod(np.unique(rows * np.int64(queries) + drawn), queries)
  starts = np.searchsorted(rows, np.arange(pairs + 1))
  names = rng.integers(0, 2**63, pairs).astype(np.uint64)
  return balancing.Matches(names, starts, drawn.astype(np.uint32))


def simulate(queries: int, sample: int) -> list[dict[str, float]]:
  """Returns what a limit of pairs a query keeps of pairs that hold a query.

  A sample stands for all: what a pair's queries keep depends on limit / count,
  so that limit and counts are scaled alike. Half of the sample gives an answer
  of its own: what lies between the two is what the sample does not know.
  """
  found = []
  hashes = np.arange(queries, dtype=np.uint64)
  for total, limit, published in _POOLS:
    row: dict[str, Any] = {
      "pairs": total,
      "limit": limit,
      "published": published,
    }
    for name, number in (("kept", sample), ("kept_by_half", sample // 2)):
      matches = _matches(number, queries, _COUNTS_EXPONENT, _QUERIES_A_PAIR)
      counts = matches.counts(queries)
      scaled = limit * number / total
      row[name] = (
        balancing.expected_size(matches, counts, scaled) / number * total
      )
    drawn = balancing.kept(matches, hashes, scaled).mean()
    row["kept_in_a_draw"] = drawn * total
    row["head_share"] = 1 - balancing.tail_share(counts, scaled)
    found.append(row)
  return found


def report(
  measured: dict, matchers: dict, near: dict[int, float], kept: list[dict]
) -> str:
  """Returns the tables in Markdown."""
  costs: dict[str, Cost] = measured["costs"]
  lines = [
    f"A pair has {measured['pair_bytes']:,.0f} bytes in its tar.\n",
    "| way to match | captions a second |",
    "|---|---|",
    *(
      f"| {name} | {rate:,.0f} |"
      for name, rate in matchers["captions_per_second"].items()
    ),
    "",
    f"Ours is built in {matchers['build_s']:.1f} s and takes "
    f"{matchers['mib']:,.0f} MiB.\n",
    "| step | pairs a second and core | core-hours, 400M | core-hours, 10B | "
    "GB held, 400M | GB held, 10B |",
    "|---|---|---|---|---|---|",
  ]
  for name, cost in costs.items():
    hours = [total * cost.seconds / 3600 for total in _SCALES]
    held = [total * cost.held / 1e9 for total in _SCALES]
    lines.append(
      f"| {name} | {1 / cost.seconds:,.0f} | {hours[0]:,.0f} | {hours[1]:,.0f} "
      f"| {held[0]:,.0f} | {held[1]:,.0f} |"
    )
  lines += ["", "| random hashes compared | core-seconds |", "|---|---|"]
  lines += [
    f"| {number:,} | {seconds:,.1f} |" for number, seconds in near.items()
  ]
  lines += [
    "",
    "| pairs | limit | kept | by half of the sample | by one draw | matches of "
    "limited queries | published |",
    "|---|---|---|---|---|---|---|",
    *(
      f"| {row['pairs'] / 1e6:,.0f}M | {row['limit']:,} | "
      f"{row['kept'] / 1e6:,.0f}M | {row['kept_by_half'] / 1e6:,.0f}M | "
      f"{row['kept_in_a_draw'] / 1e6:,.0f}M | {row['head_share']:.1%} | "
      + (f"{row['published'] / 1e6:,.0f}M |" if row["published"] else "|")
      for row in kept
    ),
  ]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Measures everything and prints tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=4000)
  parser.add_argument("--queries", type=int, default=500_000)
  parser.add_argument("--sample", type=int, default=4_000_000)
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  draw = Captions(0)
  queries = draw.queries(arguments.queries)
  matchers = compare_matchers(draw.texts(20_000), queries)
  with tempfile.TemporaryDirectory() as directory:
    measured = measure(pathlib.Path(directory), arguments.pairs, queries)
  near = {number: near_seconds(number) for number in (50_000, 100_000, 200_000)}
  kept = simulate(arguments.queries, arguments.sample)
  found = {
    "matchers": matchers,
    "pair_bytes": measured["pair_bytes"],
    "costs": {k: dataclasses.asdict(v) for k, v in measured["costs"].items()},
    "near": near,
    "kept": kept,
  }
  tables.write(arguments, found, report(measured, matchers, near, kept))


if __name__ == "__main__":
  main()
