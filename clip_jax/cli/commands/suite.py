"""The suite of data sets: eval --suite, and data doctor."""

import argparse
import collections
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from clip_jax import inference, loading, names, shared_batches, terminal
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.cli import verb
from clip_jax.evals import reading
from clip_jax.evals.suite import (
  agreement,
  check,
  data_sets,
  measuring,
  result_files,
)
from clip_jax.evals.suite import subject as subject_lib
from clip_jax.models import variants

_LOGGER = logging.getLogger(__name__)

_OUT = pathlib.Path("runs/eval")
# What makes image towers alike, so that their figures compare.
_SHAPE = ("kind", "width", "depth", "depths", "patch_size", "image_size")
_NO_ARCHITECTURE = "clip_jax"  # In CLIP_benchmark's CSV.
_SAID = {
  result_files.DAMAGED: "damaged",
  result_files.WRONG: "not what the table says",
  result_files.NO_METRIC: "without a figure",
  result_files.MISSING: "not there",
}


def evaluate(arguments: argparse.Namespace) -> verb.Answer:
  """Measures a model on the data sets of a suite."""
  entries = data_sets.choose(arguments.suite)
  if arguments.csv:
    csv = pathlib.Path(os.path.expanduser(arguments.csv))
    agreement.on_first(lambda: result_files.check_csv(csv))
  clip = loading.load(arguments.model).with_max_pixels(arguments.max_pixels)
  clip.check_towers("image", "text")
  cuts = tokenizer_lib.Cuts()
  subject = subject_lib.Subject(
    model=clip.for_evaluation(cuts),
    fingerprint=clip.fingerprint,
    path=clip.path,
    step=clip.step,
    architecture=architecture(clip),
    cuts=cuts,
  )
  out = pathlib.Path(os.path.expanduser(arguments.out or _default_out(subject)))
  with terminal.Progress("eval", unit="images") as progress:

    def show(name: str, done: int, total: int) -> None:
      progress.name = name
      progress(done, total)

    found = list(
      measuring.run(
        entries,
        arguments.data_root,
        subject,
        out=out,
        how=reading.Reading(
          batch_size=arguments.batch_size,
          threads=arguments.threads,
          open_batches=shared_batches.opener(clip.encoder),
        ),
        max_pixels=arguments.max_pixels,
        progress=None if jax.process_index() else show,
      )
    )
  cuts.tell(clip.needed_tokenizer().context_length)
  cut_before = sum(x.get("texts_cut", 0) for x in found if x.get("kept"))
  if cut_before:
    _LOGGER.warning(
      "Of the sets measured before, %d texts were cut off, too.", cut_before
    )
  if arguments.csv and jax.process_index() == 0:
    result_files.write_csv(
      arguments.csv,
      found,
      model=subject.architecture or _NO_ARCHITECTURE,
      weights=subject.path,
    )
  counts = collections.Counter(result["status"] for result in found)
  bad = (result_files.DAMAGED, result_files.WRONG)
  problem = _problem(found, "status", good=result_files.MEASURED, bad=bad)
  payload = {
    "suite": arguments.suite,
    "data_root": arguments.data_root,
    "out": str(out),
    "model": subject.path,
    "fingerprint": subject.fingerprint,
    "step": subject.step,
    "architecture": subject.architecture,
    "counts": dict(counts),
    "texts_cut": cuts.cut + cut_before,
    "sets": found,
  }
  return verb.Answer(payload, _text(found, out), problem=problem)


def _problem(
  found: list[dict[str, Any]], field: str, *, good: str, bad: Sequence[str]
) -> str:
  """Returns the sentence on sets of which none is `good`, or some are `bad`."""
  wrong = [result["set"] for result in found if result[field] in bad]
  if wrong:
    sets = terminal.counted(len(found), "set")
    are = terminal.noun(len(wrong), "is", "are")
    return f"{len(wrong)} of {sets} {are} damaged or wrong: {_listed(wrong)}."
  if any(result[field] == good for result in found):
    return ""
  there = [x["set"] for x in found if x[field] != result_files.MISSING]
  if there:
    return f"No set that is there gives its metric: {_listed(there)}."
  if len(found) == 1:
    return f"{found[0]['set']} is not there."
  return f"None of the {len(found)} sets is there."


def _listed(sets: Sequence[str]) -> str:
  return f"{', '.join(sets[:5])}{', …' if sets[5:] else ''}"


def architecture(clip: inference.Clip) -> str:
  """Returns the name of OpenAI's model that is built so; "" for none."""
  for name in names.OPENAI_MODELS:
    tower = variants.spec(name)["image"]
    own = clip.spec.get("image", {})
    if all(tower.get(field) == own.get(field) for field in _SHAPE):
      return name
  return ""


def _default_out(subject: subject_lib.Subject) -> pathlib.Path:
  name = re.sub(r"[^\w.-]+", "-", pathlib.Path(subject.path).name)
  return _OUT / f"{name or 'model'}-{subject.fingerprint[:8]}"


def _text(found: list[dict[str, Any]], out: pathlib.Path) -> str:
  rows = []
  for result in found:
    for metric, value in result.get("values", {}).items():
      if metric.endswith(("r@5", "r@10")):  # They are in the file.
        continue
      rows.append(
        (
          result["set"],
          metric,
          terminal.percent(value["value"]),
          _half_width(value["interval_95"]),
          f"{result['examples']:,}",
          *_published(value["published"]),
        )
      )
  header = (
    *("set", "metric", "value", "± (95 %)", "images"),
    *("published", "of"),
  )
  lines = [terminal.table(header, rows)] if rows else []
  for status, words in _SAID.items():
    some = [result for result in found if result["status"] == status]
    if some:
      lines.append(f"{len(some)} {words}:")
      lines += [f"  {result['set']}: {_why(result)}" for result in some]
  warned = [
    f"{result['set']}: {sentence}"
    for result in found
    for sentence in result.get("warnings", ())
    if result["status"] == result_files.MEASURED
  ]
  kept = sum(bool(result.get("kept")) for result in found)
  if kept:
    lines.append(f"{kept} measured before, with nothing changed since.")
  if rows:
    lines.append(f"Results are in {out}.")
  return "\n".join([*lines, *warned])


def _half_width(interval: list[float] | None) -> str:
  if interval is None:
    return "-"
  return terminal.percent((interval[1] - interval[0]) / 2)


def _published(figure: dict[str, Any] | None) -> tuple[str, str]:
  if figure is None:
    return "-", "-"
  source = figure["source"].replace("_", " ")
  return terminal.percent(figure["value"]), f"{figure['model']}, {source}"


def _why(result: dict[str, Any]) -> str:
  if result["status"] == result_files.MISSING:
    return result["get"]
  if problem := result.get("problem"):
    return problem
  bad = ", ".join(f"{n} {why}" for why, n in result["bad_records"].items())
  left_out = [f"left out as bad: {bad}."] if bad else []
  return " ".join([*left_out, *result["warnings"]])


def doctor(arguments: argparse.Namespace) -> verb.Answer:
  """Says which data sets of a suite are there, and how to get the others."""
  entries = data_sets.choose(arguments.suite)
  found = list(check.check(entries, arguments.data_root))
  rows = [
    (
      said["set"],
      said["state"],
      "-" if said["classes"] is None else said["classes"],
      "-" if said["examples"] is None else f"{said['examples']:,}",
      f"{said['expected_examples'][0]:,}",
      said["metric"],
      said["title"],
    )
    for said in found
  ]
  header = ("set", "state", "classes", "images", "in the paper", "metric", "")
  lines = [terminal.table(header, rows)]
  for said in found:
    if said["state"] == check.WRONG:
      lines.append(f"{said['set']}: {said['problem']}")
    lines += [f"{said['set']}: {choice}" for choice in said["choices"]]
  for said in found:
    if said["state"] == check.MISSING:
      note = f" ({said['note']})" if said["note"] else ""
      lines.append(f"{said['set']}: {said['get']}{note}")
  counts = collections.Counter(said["state"] for said in found)
  payload = {
    "suite": arguments.suite,
    "data_root": arguments.data_root,
    "counts": dict(counts),
    "sets": found,
  }
  problem = _problem(found, "state", good=check.THERE, bad=[check.WRONG])
  return verb.Answer(payload, "\n".join(lines), problem=problem)
