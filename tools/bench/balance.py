"""Trains on balanced and on unbalanced drawings, and compares classes.

  pip install '.[svg]'
  python tools/data/openclipart.py --download --held-out 300 --out data/drawings
  apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
  python tools/bench/balance.py --data data/drawings --text minilm \
    --wordnet wordnet/usr/share/wordnet --out runs/balance

`docs/openclipart.md` says where MiniLM is from. The queries are WordNet's
names, by `data queries`. For each seed, `data curate` draws a balanced part of
the drawings, and as many are drawn from those that hold a query; each part
trains configs/openclipart.py. What is finished is not run again.

The classes are the nouns that stand in title or keywords of at least
`--min-drawings` drawings that were held out, validation and test together. A
drawing counts once for each of its classes, as right where that class is first,
or among the first five, of all classes but the drawing's others. The accuracy
of a group is the mean over its classes. Head classes have more drawings for
training than the limit, tail classes at most as many, others none.
"""

import argparse
import collections
import csv
import dataclasses
import io
import json
import logging
import pathlib
import statistics
import sys
from typing import Any

import numpy as np
import tables  # Beside this script.
from PIL import Image

import clip_jax
from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.data import prepare, sources
from clip_jax.data.curation import (
  balancing,
  corpus,
  curate,
  making,
  matching,
  queries,
  wordnet,
)
from clip_jax.data.sources import views
from clip_jax.train import loop

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "openclipart.py"
# On half of the drawings these are as many passes as the config's 240 on all.
STEPS = 120
PARTS = ("unbalanced", "balanced")
GROUPS = ("head", "tail", "none")
_LEAST_LETTERS = 3  # Shorter nouns are mostly other words: "as", "in", "he".


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Drawings that were held out, and what they show.

  Attributes:
    images: of each drawing.
    classes: names.
    shows: whether a drawing shows a class, bool (drawings, classes).
    counts: drawings for training of each class, int64 (classes,).
  """

  images: list[Image.Image]
  classes: list[str]
  shows: np.ndarray
  counts: np.ndarray

  def group(self, limit: int) -> np.ndarray:
    """Returns the position in `GROUPS` of each class."""
    return np.where(self.counts > limit, 0, np.where(self.counts > 0, 1, 2))


def read_held_out(data: pathlib.Path, words: str, least: int) -> HeldOut:
  """Returns what was held out.

  Args:
    data: what tools/data/openclipart.py has made.
    words: the directory of WordNet.
    least: drawings that show a class.
  """
  nouns = wordnet.read_names(words, classes=["noun"])
  nouns = sorted({n.casefold() for n in nouns if len(n) >= _LEAST_LETTERS})
  matcher = matching.Matcher(nouns, ignore_case=True)
  images, found = [], []
  for split in ("validation", "test"):
    source = sources.open_source(f"wds:{data}/{split}_keywords-*.tar")
    for record in (source[slot] for slot in range(len(source))):
      images.append(Image.open(io.BytesIO(record.image)).convert("RGB"))
      found.append(matcher.find(record.texts))
  counts = collections.Counter(number for each in found for number in each)
  classes = sorted(number for number, n in counts.items() if n >= least)
  if len(classes) < 2:
    raise errors.UserError(
      f"{len(classes)} nouns stand in captions of {least} drawings that were "
      "held out; hold out more, or give a smaller --min-drawings."
    )
  place = {number: at for at, number in enumerate(classes)}
  shows = np.zeros((len(images), len(classes)), bool)
  for row, each in enumerate(found):
    shows[row, [place[number] for number in each if number in place]] = True
  trained = np.zeros(len(classes), np.int64)
  source = train_source(data)
  for record in (source[slot] for slot in range(len(source))):
    mine = [place[x] for x in matcher.find(record.texts) if x in place]
    trained[mine] += 1
  return HeldOut(images, [nouns[n] for n in classes], shows, trained)


def train_source(data: pathlib.Path):
  """Opens the drawings for training."""
  return sources.open_source(f"wds:{data}/train-*.tar?captions=lines")


def make_parts(
  data: pathlib.Path, names: pathlib.Path, limit: int, seed: int, out
) -> dict[str, Any]:
  """Writes the two parts of a seed; returns what `curate` says."""
  source = train_source(data)
  rule = curate.Rule(
    queries.read(names), max_per_query=limit, seed=seed, ignore_case=True
  )
  said = curate.curate(source, out / f"balanced-{seed}", rule)
  matcher = matching.Matcher(rule.texts, ignore_case=True)
  matched = np.array(
    [slot for slot in range(len(source)) if matcher.find(source[slot].texts)]
  )
  rng = np.random.default_rng(seed)
  some = np.sort(rng.choice(matched, said["kept"], replace=False))
  how = ("unbalanced", rule.to_dict()["queries_digest"], said["kept"], seed)
  part = views.Part(source, some, *how)
  prepare.prepare(part, out / f"unbalanced-{seed}")
  counts = collections.Counter(
    query for slot in some for query in matcher.find(source[slot].texts)
  )
  return said | {
    "entropy_unbalanced": balancing.entropy(np.array([*counts.values()]))
  }


def accuracies(clip, held_out: HeldOut) -> dict[str, np.ndarray]:
  """Returns the top-1 and top-5 accuracy of each class, (classes,)."""
  images = clip.encode_image(held_out.images)
  texts = clip.encode_text(held_out.classes)
  scores = np.asarray(images @ texts.T)  # (drawings, classes)
  return ranked(scores, held_out.shows)


def ranked(scores: np.ndarray, shows: np.ndarray) -> dict[str, np.ndarray]:
  """Returns how often each class is among the first of its drawings.

  Args:
    scores: of drawings and classes, (drawings, classes).
    shows: whether a drawing shows a class, of the same shape.
  """
  others = np.sort(np.where(shows, -np.inf, scores), axis=1)
  ahead = np.stack(
    [
      len(row) - np.searchsorted(row, own, "left")
      for row, own in zip(others, scores, strict=True)
    ]
  )  # Classes that the drawing does not show, at least as high.
  return {
    f"top{k}": (shows & (ahead < k)).sum(0) / shows.sum(0) for k in (1, 5)
  }


def measure(
  part: str, seed: int, out: pathlib.Path, held_out: HeldOut, arguments
) -> dict[str, Any]:
  """Trains on one part with one seed; returns accuracies of the groups."""
  changes = [
    *(f"data.train=arrayrecord:{out / f'{part}-{seed}'}", f"seed={seed}"),
    *(f"init.text={arguments.text}", "evals=", "report="),
    f"steps={STEPS}",
    *arguments.changes,
  ]
  workdir = out / f"run-{part}-{seed}"
  loop.train(config_lib.load(CONFIG, changes), workdir)
  found = accuracies(clip_jax.load(workdir), held_out)
  groups = held_out.group(arguments.max_per_query)
  report: dict[str, Any] = {"part": part, "seed": seed}
  for name, each in found.items():
    for number, group in enumerate(GROUPS):
      own = each[groups == number]
      report[f"{group}_{name}"] = float(own.mean()) if len(own) else None
    report[f"all_{name}"] = float(each.mean())
  return report


def markdown(
  runs: list[dict[str, Any]], said: list[dict[str, Any]], held_out, limit: int
) -> str:
  """Returns the tables in Markdown."""
  groups = held_out.group(limit)
  entropy = statistics.mean(each["entropy_unbalanced"] for each in said)
  after = statistics.mean(each["entropy_bits"]["after"] for each in said)
  lines = [
    f"At most {limit} drawings a query, on average: "
    f"{', '.join(str(each['kept']) for each in said)} of {said[0]['pairs']} "
    f"drawings stay ({said[0]['matched']} hold a query). Entropy of the "
    f"queries: {entropy:.2f} bits unbalanced, {after:.2f} balanced.\n",
    "| classes | number | part | top-1 | top-5 | top-5 of each run |",
    "|---|---|---|---|---|---|",
  ]
  for number, group in enumerate((*GROUPS, "all")):
    size = int((groups == number).sum()) if group in GROUPS else len(groups)
    for part in PARTS if size else ():
      own = [run for run in runs if run["part"] == part]
      top1, top5 = ([r[f"{group}_top{k}"] for r in own] for k in (1, 5))
      lines.append(
        f"| {group} | {size} | {part} | {statistics.mean(top1):.1%} | "
        f"{statistics.mean(top5):.1%} | "
        f"{', '.join(f'{x:.1%}' for x in top5)} |"
      )
  return "\n".join(lines) + "\n"


def _write_classes(path: pathlib.Path, held_out: HeldOut) -> None:
  with path.open("w", encoding="utf-8", newline="") as file:
    rows = csv.writer(file, delimiter="\t", lineterminator="\n")
    rows.writerow(("class", "train", "held_out"))
    shown = held_out.shows.sum(0).tolist()
    counts = held_out.counts.tolist()
    rows.writerows(zip(held_out.classes, counts, shown, strict=True))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description="Trains on balanced and on unbalanced drawings.",
    epilog="Further arguments change the config: --config.steps=200.",
    allow_abbrev=False,
  )
  for name, kind, said in (
    ("data", pathlib.Path, "what tools/data/openclipart.py has made"),
    ("wordnet", str, "the directory of WordNet's database"),
    ("text", str, "the text tower: MiniLM"),
    ("out", pathlib.Path, "where parts and runs go"),
  ):
    parser.add_argument(
      f"--{name}", type=kind, required=True, metavar="DIR", help=said
    )
  parser.add_argument("--max-per-query", type=int, default=5, metavar="N")
  parser.add_argument("--min-drawings", type=int, default=2, metavar="N")
  parser.add_argument("--seeds", type=int, default=3, metavar="N")
  tables.add_outputs(parser)
  arguments, rest = parser.parse_known_args()
  if wrong := [text for text in rest if not text.startswith("--config.")]:
    parser.error(f"unknown argument {wrong[0]}")
  arguments.changes = [text.removeprefix("--config.") for text in rest]
  return arguments


def main() -> None:
  """Makes the parts, trains on each, and prints tables."""
  arguments = _parse()
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  out = arguments.out.absolute()
  out.mkdir(parents=True, exist_ok=True)
  names = out / "queries.txt"
  if not names.exists():
    making.make(
      [corpus.open_input(f"wordnet:{arguments.wordnet}")],
      names,
      making.Rule(ignore_case=True),
    )
  held_out = read_held_out(
    arguments.data, arguments.wordnet, arguments.min_drawings
  )
  _write_classes(out / "classes.tsv", held_out)
  seeds, limit = range(arguments.seeds), arguments.max_per_query
  said = [make_parts(arguments.data, names, limit, s, out) for s in seeds]
  runs = []
  for seed in seeds:
    for part in PARTS:
      runs.append(measure(part, seed, out, held_out, arguments))
      print(json.dumps(runs[-1]), file=sys.stderr)
  report = {"runs": runs, "curation": said, "limit": limit}
  tables.write(arguments, report, markdown(runs, said, held_out, limit))


if __name__ == "__main__":
  try:
    main()
  except errors.UserError as error:
    sys.exit(f"Error: {error}")
