"""Numbers of a whole source, from what was found of each record."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, preprocess, terminal
from clip_jax.data import account
from clip_jax.data import record as record_lib
from clip_jax.data.curation import balancing, findings, survey
from clip_jax.data.statistics import examine, scripts

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_TOP = 20
_LONGEST = 1000  # Characters of a caption that is named.
# The lower edges of a histogram's bars; the last one has no upper edge.
_EDGES: dict[str, Sequence[float]] = {
  "characters": range(0, 301, 10),
  "words": range(0, 61, 2),
  "tokens": range(0, 101, 4),
  "bytes": [0, *(2**power for power in range(9, 26))],
  "side": [0, *(2 ** (half / 2) for half in range(8, 27))],
  "aspect": [
    *(0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 0.9),
    *(1.1, 4 / 3, 3 / 2, 2, 3, 4),
  ],
}


@dataclasses.dataclass(frozen=True)
class Sample:
  """A record that is shown.

  Attributes:
    key: of the record.
    texts: its captions.
    image: the encoded image.
    width: in pixels.
    height: likewise.
  """

  key: str
  texts: tuple[str, ...]
  image: bytes
  width: int
  height: int


def look(
  source: record_lib.Source,
  *,
  workers: int = 1,
  decode: bool = False,
  by_language: bool = False,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  on_record: Callable[[int], None] | None = None,
) -> findings.Found:
  """Returns the findings of `examine.Examine` about every record.

  Args:
    source: what is read.
    workers: processes that read; one reads in this process.
    decode: decode every image.
    by_language: find out the language of each caption, too.
    limits: images beyond these are bad.
    on_record: called with the number of records examined.

  Raises:
    Interrupted: a process that read was killed.
    UserError: the library that tells languages is missing.
  """
  asked = examine.Examine(limits=limits, decode=decode, by_language=by_language)
  return survey.survey(source, asked, workers=workers, on_record=on_record)


def summarize(
  found: findings.Found, source: record_lib.Source
) -> dict[str, Any]:
  """Returns all numbers, as `--json` holds them; exact, not estimated.

  `languages` of the captions is None where none was found out.

  Reads the records of the most frequent captions and images again.
  """
  good = np.flatnonzero(found.good)
  column = {name: array[good] for name, array in found.columns.items()}
  captions = found.values["captions"]
  rows = np.repeat(np.arange(len(found.good)), found.lengths["captions"])
  width, height = (
    column[name].astype(np.int64) for name in ("width", "height")
  )
  cut = int(np.count_nonzero(captions["tokens"] > examine.CONTEXT))
  return {
    "records": len(found.good),
    "good": len(good),
    "bad": found.bad(),
    "captions": {
      "number": len(captions),
      "per_record": _numbers(found.lengths["captions"][good]),
      **{
        name: _described(captions[name], name)
        for name in ("characters", "words", "tokens")
      },
      "cut": cut,
      "cut_share": cut / max(1, len(captions)),
      "scripts": _by_number(captions["script"], scripts.SCRIPTS),
      "languages": _by_number(captions["language"], examine.languages())
      if "language" in (captions.dtype.names or ())
      else None,
      **_repeats(
        captions["digest"], lambda i: _caption(source, rows[i], captions[i])
      ),
    },
    "images": {
      "bytes": _described(column["bytes"], "bytes"),
      "width": _described(width, "side"),
      "height": _described(height, "side"),
      "shortest_side": _described(np.minimum(width, height), "side"),
      "aspect": _described(width / np.maximum(height, 1), "aspect"),
      "formats": _by_name(column["format"]),
      "modes": _by_name(column["mode"]),
      **_repeats(
        column["digest"], lambda i: {"key": _again(source, good[i]).key}
      ),
    },
    **account.of(source).to_dict(),
  }


def _numbers(values: np.ndarray) -> dict[str, Any]:
  """Returns extremes, mean and percentiles; each of the last is a value."""
  if not len(values):
    return {"min": None, "mean": None, "max": None, "percentiles": {}}
  found = np.percentile(values, PERCENTILES, method="inverted_cdf")
  return {
    "min": values.min().item(),
    "mean": float(values.mean(dtype=np.float64)),
    "max": values.max().item(),
    "percentiles": {
      str(p): value.item() for p, value in zip(PERCENTILES, found, strict=True)
    },
  }


def _described(values: np.ndarray, kind: str) -> dict[str, Any]:
  edges = _EDGES[kind]
  counts, _ = np.histogram(values, [*edges, np.inf])
  return {
    **_numbers(values),
    "histogram": {"from": list(edges), "counts": counts.tolist()},
  }


def _by_name(values: np.ndarray) -> dict[str, int]:
  """Returns the count of each name, the most frequent first."""
  names, counts = np.unique(values, return_counts=True)
  order = np.argsort(-counts, kind="stable")
  return {names[i].item().decode(): int(counts[i]) for i in order}


def _by_number(values: np.ndarray, names: Sequence[str]) -> dict[str, int]:
  counts = np.bincount(values, minlength=len(names))
  order = map(int, np.argsort(-counts, kind="stable"))
  return {names[i]: int(counts[i]) for i in order if counts[i]}


def _repeats(
  digests: np.ndarray, describe: Callable[[int], dict[str, str]]
) -> dict[str, Any]:
  """Returns the number of different ones, and the most frequent.

  Args:
    digests: uint64 (n, 2).
    describe: from a row of it to what names it.
  """
  _, first, counts = np.unique(
    digests, axis=0, return_index=True, return_counts=True
  )
  # Of equal counts, the one that comes first in the data.
  order = np.lexsort((first, -counts))[:_TOP]
  return {
    "different": len(first),
    "repeated": len(digests) - len(first),
    "top": [
      {**describe(int(first[i])), "count": int(counts[i])}
      for i in order
      if counts[i] > 1
    ],
  }


def _again(source: record_lib.Source, slot: int) -> record_lib.Record:
  """Returns a record that was read before."""
  try:
    return source[int(slot)]
  except record_lib.BadRecord as error:
    raise _changed(error.key) from None


def _caption(
  source: record_lib.Source, slot: int, row: np.ndarray
) -> dict[str, str]:
  record = _again(source, slot)
  for text in record.texts:
    data = text.encode("utf-8", "surrogatepass")
    if balancing.digest(data) == tuple(row["digest"].tolist()):
      return {"caption": text[:_LONGEST]}
  raise _changed(record.key)


def _changed(key: str) -> errors.UserError:
  return errors.UserError(
    f"The data have changed while they were read: {terminal.escaped(key)} is "
    "another record now. Start again."
  )


def samples(
  found: findings.Found, source: record_lib.Source, number: int
) -> list[Sample]:
  """Returns `number` different images, the same in any order of the data.

  They are those of the smallest digests, which is as good as at random.
  """
  good = np.flatnonzero(found.good)
  digests = found.columns["digest"][good]
  _, first = np.unique(digests, axis=0, return_index=True)
  chosen = []
  for slot in good[first[:number]].tolist():
    record = _again(source, slot)
    width, height = (int(found.columns[n][slot]) for n in ("width", "height"))
    chosen.append(Sample(record.key, record.texts, record.image, width, height))
  return chosen
