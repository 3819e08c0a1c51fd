"""Measures what `data dedupe` finds of duplicates planted among drawings.

  python tools/bench/duplicates.py --data data/openclipart --model runs/locked

`docs/openclipart.md` says how to make the drawings and train the model. Each
drawing of all splits is parted into one of two halves, and of every third a
copy of one kind is added: of the same bytes with another caption, compressed
again, enlarged, darker, mirrored, cut off at its sides, turned, or in other
colours. The limits, bits for near images and cosine for semantic ones, are
those of the highest F1 on one half; the other half is reported.

A copy is found where it ends in the group of its drawing. Of the rows that
`data dedupe` writes, those are right that link a copy with its drawing, or two
that were the same before anything was planted: none, as tools/data/openclipart
keeps equal pictures once. So drawings that look alike without being copies,
such as flags with other crests, count as errors.
"""

import argparse
import collections
import io
import pathlib
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import curation  # Beside this script.
import numpy as np
import tables  # Likewise.
from PIL import Image, ImageEnhance, ImageOps

import clip_jax
from clip_jax import errors
from clip_jax.data import record, sources
from clip_jax.data.curation import likeness, linking
from clip_jax.search import clusters

EVERY = 3  # Of so many drawings one has a copy.
DISTANCES = range(0, 13)
SIMILARITIES = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
WHITE = (255, 255, 255)


def _png(image: Image.Image) -> bytes:
  return curation.encoded(image, "PNG")


def _cut(image: Image.Image, share: float) -> bytes:
  """Returns the image without `share` of each side's length, half at each end.

  At a fraction of a pixel, as a larger picture is cut, and of the same size.
  """
  width, height = image.size
  edge = share / 2
  box = (width * edge, height * edge, width * (1 - edge), height * (1 - edge))
  return _png(image.resize(image.size, Image.Resampling.BICUBIC, box))


def _turned(image: Image.Image, degrees: float) -> bytes:
  return _png(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=WHITE))


def _other_colours(image: Image.Image) -> bytes:
  hue, *rest = image.convert("HSV").split()
  moved = hue.point([(value + 96) % 256 for value in range(256)])
  return _png(Image.merge("HSV", (moved, *rest)).convert("RGB"))


def _smaller(image: Image.Image) -> bytes:
  """Returns the drawing at three quarters of its size on white."""
  side = image.width * 3 // 4
  page = Image.new("RGB", image.size, WHITE)
  at = (image.width - side) // 2
  page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (at, at))
  return _png(page)


Change = Callable[[Image.Image], bytes]
# What each kind of copy is; the file itself for the first.
CHANGES: dict[str, Change | None] = {
  "same file, other caption": None,
  "JPEG of quality 80": lambda image: curation.encoded(
    image, "JPEG", quality=80
  ),
  "JPEG of quality 40": lambda image: curation.encoded(
    image, "JPEG", quality=40
  ),
  "WebP of quality 60": lambda image: curation.encoded(
    image, "WEBP", quality=60
  ),
  "enlarged by 2.3": lambda image: _png(
    ImageOps.scale(image, 2.3, Image.Resampling.BICUBIC)
  ),
  "darker by 15 %": lambda image: _png(
    ImageEnhance.Brightness(image).enhance(0.85)
  ),
  "mirrored": lambda image: _png(ImageOps.mirror(image)),
  "4 % cut off": lambda image: _cut(image, 0.04),
  "10 % cut off": lambda image: _cut(image, 0.10),
  "20 % cut off": lambda image: _cut(image, 0.20),
  "smaller, on white": _smaller,
  "turned by 10 degrees": lambda image: _turned(image, 10),
  "grey": lambda image: _png(ImageOps.grayscale(image)),
  "other colours": _other_colours,
}


def read_drawings(data: pathlib.Path) -> list[record.Record]:
  """Returns the drawings of all splits."""
  found = []
  for split in ("train", "validation", "test"):
    source = sources.open_source(f"wds:{data}/{split}-*.tar?captions=lines")
    found += [source[slot] for slot in range(len(source))]
  return found


def plant(
  drawings: Iterable[record.Record], path: pathlib.Path, *, first: int = 0
) -> dict[str, str]:
  """Writes a tar of drawings and copies; returns the kind of each copy by key.

  Args:
    drawings: of one half.
    path: of the tar.
    first: the position in `CHANGES` of the first copy; the next one's follows.
  """
  kinds = list(CHANGES)
  planted: dict[str, str] = {}
  with tarfile.open(path, "w") as tar:
    for number, drawing in enumerate(drawings):
      key = f"{number:05d}"
      _add(tar, key, drawing.image, drawing.texts[0])
      if number % EVERY:
        continue
      kind = kinds[(first + number // EVERY) % len(kinds)]
      change, data = CHANGES[kind], drawing.image
      if change is not None:
        data = change(Image.open(io.BytesIO(data)).convert("RGB"))
      _add(tar, f"{key}c", data, f"another look at {drawing.texts[-1]}")
      planted[f"{key}c"] = kind
  return planted


def _add(tar: tarfile.TarFile, key: str, image: bytes, text: str) -> None:
  curation.add(tar, f"{key}.png", image)  # Of whatever format it is.
  curation.add(tar, f"{key}.txt", text.encode())


class Half:
  """Drawings with planted copies; compares them by any rule."""

  def __init__(self, path: pathlib.Path, planted: dict[str, str]):
    """Opens the tar of `plant`; what is found is kept beside it."""
    self._source = sources.open_source(f"wds:{path}")
    self._keep = path.with_suffix("")
    self.planted = planted

  def score(self, rule: likeness.Rule) -> dict[str, Any]:
    """Returns the rows, how many are right, and what is found, of each kind.

    Returns:
      `rows` and `right` by kind of rule; `found` by kind of copy; `recall` of
      all copies, `precision` and `f1`.
    """
    pairs = linking.Set(self._source, rule, linking.Work(), self._keep)
    links, _, largest = linking.drop_duplicates(pairs, rule)
    kept: dict[str, str] = {}
    rows, right = collections.Counter(), collections.Counter()
    for slot, other, kind, _ in links:
      key, stays = pairs.key(slot), pairs.key(other)
      kept[key] = stays
      rows[kind] += 1
      right[kind] += key[:5] == stays[:5]
    found = collections.Counter(
      kind
      for key, kind in self.planted.items()
      if _end(key, kept) == _end(key[:5], kept)
    )
    recall = found.total() / len(self.planted)
    precision = right.total() / max(rows.total(), 1)
    return {
      "rows": dict(rows),
      "right": dict(right),
      "found": dict(found),
      "largest_group": largest,
      "recall": recall,
      "precision": precision,
      "f1": 2 * recall * precision / max(recall + precision, 1e-9),
    }


def _end(key: str, kept: dict[str, str]) -> str:
  while key in kept:
    key = kept[key]
  return key


def best(half: Half, rules: dict[float, likeness.Rule]) -> tuple[float, dict]:
  """Returns the limit of the highest F1 on a half, and the scores of all."""
  scores = {limit: half.score(rule) for limit, rule in rules.items()}
  return max(scores, key=lambda limit: scores[limit]["f1"]), scores


def measure(data: pathlib.Path, model: Any, seed: int) -> dict[str, Any]:
  """Plants, chooses on one half and returns the scores on the other."""
  drawings = read_drawings(data)
  order = np.random.default_rng(seed).permutation(len(drawings))

  def semantic(least: float) -> likeness.Semantic:
    return likeness.Semantic(
      model,
      clusters.near_within,
      clusters.near_between,
      min_similarity=float(least),
    )

  def rule(bits: int | None, least: float | None) -> likeness.Rule:
    return likeness.Rule(
      exact=True,
      max_distance=bits,
      mirrored=bits is not None,
      semantic=None if least is None else semantic(least),
    )

  with tempfile.TemporaryDirectory() as folder:
    halves = []
    for number in range(2):
      path = pathlib.Path(folder, f"half{number}.tar")
      some = [drawings[at] for at in order[number::2].tolist()]
      halves.append(Half(path, plant(some, path, first=number)))
    choose, test = halves
    bits, by_bits = best(choose, {d: rule(d, None) for d in DISTANCES})
    least, by_least = best(
      choose, {s: rule(None, float(s)) for s in SIMILARITIES}
    )
    # Semantic ones after the near ones have gone: a limit of its own.
    last, by_last = best(
      choose, {s: rule(int(bits), float(s)) for s in SIMILARITIES}
    )
    chosen = {
      "exact": likeness.Rule(max_distance=None),
      "exact, near": rule(int(bits), None),
      "exact, semantic": rule(None, float(least)),
      "exact, near, semantic": rule(int(bits), float(last)),
    }
    return {
      "drawings": len(drawings),
      "planted": dict(collections.Counter(test.planted.values())),
      "limits": {"bits": bits, "cosine": least, "cosine after near": last},
      "test": {name: test.score(each) for name, each in chosen.items()},
      "choice": {
        name: {f"{limit:.3f}": x["f1"] for limit, x in scores.items()}
        for name, scores in (
          ("bits", by_bits),
          ("cosine", by_least),
          ("cosine after near", by_last),
        )
      },
    }


def markdown(found: dict[str, Any]) -> str:
  """Returns the tables in Markdown."""
  test, planted = found["test"], found["planted"]
  limits = ", ".join(f"{name} {x:.3g}" for name, x in found["limits"].items())
  lines = [
    f"{found['drawings']} drawings in two halves, copies of every third; "
    f"limits chosen on one half: {limits}. On the other:\n",
    f"| copy | planted | {' | '.join(test)} |",
    "|---|---|" + "---|" * len(test),
  ]
  for kind in CHANGES:
    cells = [str(score["found"].get(kind, 0)) for score in test.values()]
    lines.append(f"| {kind} | {planted[kind]} | {' | '.join(cells)} |")
  for name in ("recall", "precision", "f1"):
    cells = [f"{score[name]:.1%}" for score in test.values()]
    lines.append(f"| {name} | | {' | '.join(cells)} |")
  cells = [
    "; ".join(
      f"{kind} {score['right'].get(kind, 0)} of {rows}"
      for kind, rows in score["rows"].items()
    )
    for score in test.values()
  ]
  lines.append(f"| rows that are right | | {' | '.join(cells)} |")
  cells = [str(score["largest_group"]) for score in test.values()]
  lines.append(f"| largest group | | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description="Measures what `data dedupe` finds of planted duplicates."
  )
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    required=True,
    metavar="DIR",
    help="what tools/data/openclipart.py has made",
  )
  parser.add_argument("--model", required=True, help="that embeds images")
  parser.add_argument("--seed", type=int, default=0, metavar="N")
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  model = clip_jax.load(arguments.model)
  found = measure(arguments.data, model, arguments.seed)
  tables.write(arguments, found, markdown(found))


if __name__ == "__main__":
  try:
    main()
  except errors.UserError as error:
    sys.exit(f"Error: {error}")
