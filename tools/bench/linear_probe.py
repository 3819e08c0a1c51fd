"""Times the linear probe against scikit-learn's under the same search.

    pip install scikit-learn
    python tools/bench/linear_probe.py [--json FILE] [--markdown FILE]

Both choose the penalty by the paper's search (appendix A.3) on the same fifth
of the training examples, then fit to all of them. scikit-learn gets `max_iter`
1000 and otherwise its defaults; its matrix products run on as many threads as
are fastest here, which is measured first. The seven coarse fits and the last
one alternate; of the finer eight each side has its own. The time to compile is
given by itself: it is spent once for each shape of data.
"""

import argparse
import functools
import os
import platform
import statistics
import time
import warnings

import jax
import numpy as np
import sklearn
import tables  # Beside this script.
import threadpoolctl
from sklearn import exceptions, linear_model

from clip_jax.data import builtin
from clip_jax.evals import linear_probe, logistic


def digits():
  """Returns the built-in scans as training and test data, 64 pixels each."""
  images, labels = builtin.scans()
  pixels = images.reshape(len(images), -1).astype(np.float32)
  held = np.random.default_rng(0).permutation(len(labels)) % 5 == 0
  return (pixels[~held], labels[~held]), (pixels[held], labels[held])


def synthetic(examples, width, classes, *, distance=0.11):
  """Returns classes that overlap, in features with a slowly falling spectrum.

  The classes' means are so near to each other that a penalty pays.
  """
  rng = np.random.default_rng(0)
  spectrum = np.arange(1, width + 1) ** -0.25
  turn = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
  means = distance * rng.normal(size=(classes, width))
  parts = []
  for rows in (examples, examples // 5):
    labels = rng.integers(classes, size=rows)
    features = (means[labels] + rng.normal(size=(rows, width))) * spectrum
    parts.append((features.astype(np.float32) @ turn, labels))
  return parts


class Ours:
  """Fits by `logistic.Regression`, as `linear_probe.linear_probe` does."""

  def __init__(self, features, labels, counted, classes):
    self._whole = logistic.Regression(features, labels, classes)
    self._part, self._counted = linear_probe.part_of(self._whole, counted)

  def fit(self, penalties, everything=False):
    if everything:
      found = self._whole.fit_all(penalties)
    else:
      found = self._part.fit_all(penalties, self._counted)
    return [(weights.scores, weights.steps) for weights in found]


class Theirs:
  """Fits by scikit-learn."""

  def __init__(self, features, labels, counted, tolerance):
    self._all = features, labels
    self._part = features[counted], labels[counted]
    self._tolerance = tolerance

  def fit(self, penalties, *, everything=False):
    found = []
    for penalty in penalties:
      model = linear_model.LogisticRegression(
        C=1 / penalty, max_iter=1000, tol=self._tolerance
      )
      model.fit(*(self._all if everything else self._part))
      found.append((model.decision_function, int(model.n_iter_[0])))
    return found


class Timed:
  """One side of the comparison and the seconds that its fits took."""

  def __init__(self, side, held):
    self._side, self._held = side, held
    self.seconds, self.processor_seconds, self.steps = 0.0, 0.0, 0
    self.known = {}

  def fit(self, places, **options):
    wall, processor = time.perf_counter(), time.process_time()
    found = self._side.fit(
      [linear_probe.PENALTIES[place] for place in places], **options
    )
    self.seconds += time.perf_counter() - wall
    self.processor_seconds += time.process_time() - processor
    self.steps += sum(steps for _, steps in found)
    return [score for score, _ in found]

  def score_all(self, places):
    new = [place for place in places if place not in self.known]
    for place, score in zip(new, self.fit(new) if new else [], strict=True):
      self.known[place] = right(score, *self._held)
    return [self.known[place] for place in places]


def right(score, features, labels):
  return float(np.mean(score(features).argmax(axis=1) == labels))


def fastest_threads(features, labels):
  """Returns the number of BLAS threads at which scikit-learn is fastest.

  On a machine that does other work, too, several may be slower than one.
  """
  rows = slice(0, 10_000)
  model = linear_model.LogisticRegression(C=1e-4, max_iter=5)
  seconds = {1: [], os.cpu_count(): []}
  for threads in [*seconds] * 5:
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
      start = time.perf_counter()
      model.fit(features[rows], labels[rows])
      seconds[threads].append(time.perf_counter() - start)
  return min(seconds, key=lambda threads: statistics.median(seconds[threads]))


def compare(name, train, test, tolerance):
  """Returns both sides' choices, accuracies and seconds on one data set."""
  features, labels = train
  classes = int(labels.max()) + 1
  fitted, held = linear_probe.split(labels, seed=0)
  counted = np.zeros(len(labels), bool)
  counted[fitted] = True
  start = time.perf_counter()
  warm_up = Ours(features, labels, counted, classes)
  warm_up.fit([1e6])
  warm_up.fit([1e6], everything=True)
  compiling = time.perf_counter() - start
  held = features[held], labels[held]
  start = time.perf_counter()
  ours = Timed(Ours(features, labels, counted, classes), held)
  ours.seconds = time.perf_counter() - start  # Of the principal axes.
  ours.processor_seconds = ours.seconds
  theirs = Timed(Theirs(features, labels, counted, tolerance), held)
  threads = fastest_threads(features, labels)
  limit = functools.partial(
    threadpoolctl.threadpool_limits, threads, user_api="blas"
  )
  sides = {"ours": ours, "theirs": theirs}

  def each(step, turn):
    found = {}
    for side in sorted(sides, reverse=bool(turn % 2)):
      with limit():
        found[side] = step(side)
    return found

  # The coarse places, as the search asks for them, one by one.
  for turn, place in enumerate(reversed(range(0, 97, 16))):
    each(lambda side, place=place: sides[side].score_all([place]), turn)
  found = each(lambda side: linear_probe.search(sides[side].score_all), 0)
  last = each(
    lambda side: sides[side].fit([found[side][0]], everything=True)[0], 1
  )
  row = {"data": name, "blas_threads": threads, "compile_seconds": compiling}
  for side, timed in sides.items():
    row[side] = {
      "place": found[side][0],
      "regularisation": linear_probe.PENALTIES[found[side][0]],
      "validation_top1": found[side][1],
      "top1": right(last[side], *test),
      "seconds": timed.seconds,
      "processor_seconds": timed.processor_seconds,
      "steps": timed.steps,
    }
  row["ratio"] = theirs.seconds / ours.seconds
  row["processor_ratio"] = theirs.processor_seconds / ours.processor_seconds
  return row


def markdown(result):
  """Returns the table."""
  lines = [
    f"{result['machine']}; jax {result['jax']}, scikit-learn "
    f"{result['sklearn']}, tol {result['tolerance']:g}.",
    "",
    "| data | side | threads | penalty | validation | test | evaluations | s | "
    "processor s | times faster | by processor s | compile, s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in result["rows"]:
    for side in ("ours", "theirs"):
      own = row[side]
      tail = (
        f"{row['ratio']:.1f} | {row['processor_ratio']:.1f} | "
        f"{row['compile_seconds']:.1f} |"
        if side == "ours"
        else "| | |"
      )
      lines.append(
        f"| {row['data']} | {side} | "
        f"{row['blas_threads'] if side == 'theirs' else ''} | "
        f"10^({own['place'] / 8 - 6:g}) | "
        f"{100 * own['validation_top1']:.2f} % | {100 * own['top1']:.2f} % | "
        f"{own['steps']} | {own['seconds']:.2f} | "
        f"{own['processor_seconds']:.2f} | {tail}"
      )
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shape", type=int, nargs=3, default=(100_000, 512, 100))
  parser.add_argument("--tolerance", type=float, default=1e-4)
  tables.add_outputs(parser)
  args = parser.parse_args()
  warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
  data = {"digits": digits()}
  data[" x ".join(f"{size:,}" for size in args.shape)] = synthetic(*args.shape)
  result = {
    "rows": [
      compare(name, *parts, args.tolerance) for name, parts in data.items()
    ],
    "tolerance": args.tolerance,
    "machine": platform.machine(),
    "jax": jax.__version__,
    "sklearn": sklearn.__version__,
  }
  tables.write(args, result, markdown(result))


if __name__ == "__main__":
  main()
