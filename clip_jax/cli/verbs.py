"""The verbs: each calls one part of the library and words its answer.

Everything heavy is imported inside the verb that needs it, so that `--help`
and usage errors come at once.
"""

import argparse
import collections
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

from clip_jax import errors, terminal

# As long as JAX waits by itself.
_JOIN_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a verb found: for programs, and for people."""

  payload: Any
  text: str
  code: int = 0


def train(arguments: argparse.Namespace) -> Answer:
  """Trains a model as a config says."""
  join_processes(arguments)
  from clip_jax import config
  from clip_jax.train import loop

  summary = loop.train(
    config.load(arguments.config, arguments.overrides),
    arguments.workdir,
    allow_changes=arguments.allow_changes,
  )
  rows = [
    (name, measure, value)
    for name, result in summary["evals"].items()
    for measure, value in measures(result)
  ]
  steps, now = summary["steps"], summary["steps_now"]
  lines = [
    f"Trained {steps} steps{f' ({now} of them now)' if now < steps else ''} in "
    f"{terminal.duration(summary['seconds'])}: {arguments.workdir}"
  ]
  if rows:
    lines += ["", terminal.table(("evaluation", "measure", "value"), rows)]
  if summary.get("report"):
    lines += ["", f"Report: {summary['report']}"]
  return Answer(summary, "\n".join(lines))


def join_processes(arguments: argparse.Namespace) -> None:
  """Joins the processes of a run; no device may have been used before."""
  if arguments.coordinator is None and not arguments.distributed:
    return
  import jax

  if arguments.coordinator:
    others = "process 0" if arguments.process_id else "the other processes"
    logging.info(
      "Waiting for %s at %s (up to %d s)",
      others,
      arguments.coordinator,
      _JOIN_SECONDS,
    )
  try:
    # What is None is found in the cluster's environment.
    jax.distributed.initialize(
      coordinator_address=arguments.coordinator,
      num_processes=arguments.processes,
      process_id=arguments.process_id,
      initialization_timeout=_JOIN_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
      f"Cannot join the other processes: {error} Where no cluster's "
      "environment names them, give --coordinator, --processes and "
      "--process-id."
    ) from error


def evaluate(arguments: argparse.Namespace) -> Answer:
  """Measures a model on one task."""
  from clip_jax import inference
  from clip_jax.evals import tasks

  tasks.check_task(arguments.task)
  clip = inference.load(arguments.model)
  with terminal.Progress("eval") as progress:
    result = tasks.evaluate(
      arguments.task,
      arguments.data,
      embed_images=clip.embed_images,
      embed_texts=clip.encode_text,
      preprocess=clip.preprocess,
      labels=arguments.labels,
      templates=arguments.templates,
      batch_size=arguments.batch_size,
      threads=arguments.threads,
      progress=progress,
    )
  result = {**result, "model": clip.path, "step": clip.step}
  title = f"{arguments.task} on {arguments.data}, step {clip.step}"
  rows = measures(result)
  return Answer(
    result, f"{title}\n\n{terminal.table(('measure', 'value'), rows)}"
  )


def measures(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns the measures of an evaluation as pairs of words."""
  rows = []
  for name, value in result.items():
    if name.startswith("top1_interval"):
      low, high = value
      level = name.removeprefix("top1_interval_")
      rows.append(
        (f"top-1, {level} % interval", f"{100 * low:.1f} to {100 * high:.1f} %")
      )
    elif name in _FRACTIONS:
      rows.append((_FRACTIONS[name], f"{100 * value:.2f} %"))
    elif name in ("text_to_image", "image_to_text"):
      way = name.replace("_", " ")
      rows += [
        (f"{way}, {key.upper()}", f"{100 * part:.2f} %")
        for key, part in value.items()
        if key.startswith("r@")
      ]
      rows.append((f"{way}, median rank", f"{value['median_rank']:g}"))
    elif name in ("examples", "classes", "images", "texts"):
      rows.append((name, str(value)))
    elif name == "bad_records" and value:
      reasons = ", ".join(f"{n} {reason}" for reason, n in value.items())
      rows.append(("left out as bad", reasons))
  return rows


_FRACTIONS = {
  "top1": "top-1",
  "top5": "top-5",
  "mean_per_class": "mean per class",
}


def classify(arguments: argparse.Namespace) -> Answer:
  """Gives each image the probability of each label."""
  from clip_jax import inference
  from clip_jax.evals import prompts

  labels = prompts.read_labels(arguments.labels)
  templates = None
  if arguments.templates:
    templates = prompts.read_templates(arguments.templates)
  names = prompts.resolve(labels, templates).names
  if len(names) == 1:
    logging.warning(
      "There is one label, %r, so it has all of the probability. Several are "
      "parted by commas.",
      names[0],
    )
  check_files(arguments.images)
  clip = inference.load(arguments.model)
  probabilities = clip.classify(arguments.images, labels, templates=templates)
  payload = [
    {
      "image": image,
      "probabilities": dict(zip(names, row.tolist(), strict=True)),
    }
    for image, row in zip(arguments.images, probabilities, strict=True)
  ]
  rows = []
  for entry in payload:
    ranked = sorted(entry["probabilities"].items(), key=lambda pair: -pair[1])
    for i, (name, probability) in enumerate(ranked[:5]):
      image = entry["image"] if i == 0 else ""
      rows.append((image, name, f"{100 * probability:.1f} %"))
  return Answer(
    payload, terminal.table(("image", "label", "probability"), rows)
  )


def check_files(paths: Sequence[str]) -> None:
  """Raises OSError, before anything long, where an image is not there."""
  for path in paths:
    os.stat(path)


def embed(arguments: argparse.Namespace) -> Answer:
  """Makes an index of the images of some data."""
  from clip_jax import inference, search
  from clip_jax.data import pipeline, sources
  from clip_jax.evals import tasks

  search.check_replaceable(arguments.out)
  clip = inference.load(arguments.model)
  source = sources.open_source(arguments.data)
  bad = collections.Counter()
  with (
    terminal.Progress("embed") as progress,
    pipeline.eval_batches(
      source,
      batch_size=arguments.batch_size,
      preprocess=clip.preprocess,
      threads=arguments.threads,
    ) as batches,
  ):
    meta = search.build(
      arguments.out,
      batches=tasks.watch(batches, bad, total=len(source), progress=progress),
      embed_images=clip.embed_images,
      model=clip.path,
      fingerprint=clip.fingerprint,
      dtype=arguments.dtype,
      facts={"step": clip.step, "data": arguments.data, "bad_records": bad},
    )
  left_out = f", {bad.total()} bad records left out" if bad else ""
  return Answer(
    {"out": arguments.out, **meta},
    f"Embedded {meta['count']} images into {arguments.out}{left_out}.",
  )


def search(arguments: argparse.Namespace) -> Answer:
  """Finds the records of an index that are nearest to a text or an image."""
  from clip_jax import inference
  from clip_jax import search as search_lib

  if arguments.image is not None:
    check_files([arguments.image])
  index = search_lib.Index(arguments.index)
  path = index.model_path(arguments.model)
  try:
    clip = inference.load(path, step=index.meta.get("step"))
  except errors.UserError as error:
    raise errors.UserError(
      f"Cannot load the model of index {arguments.index}: {error} Give the "
      "model with --model, or make the index again with `clip-jax embed`."
    ) from None
  index.check_model(clip.path, clip.fingerprint)
  if arguments.image is None:
    query = clip.encode_text(arguments.query)[0]
  else:
    query = clip.encode_image(arguments.image)[0]
  hits = index.search(query, k=arguments.k)
  results = [
    {
      "key": hit.key,
      "score": hit.score,
      "caption": hit.captions[0],
      "captions": list(hit.captions),
    }
    for hit in hits
  ]
  rows = [(f"{hit.score:.4f}", hit.key, hit.captions[0]) for hit in hits]
  return Answer(
    {"results": results, "index": arguments.index},
    terminal.table(("score", "key", "caption"), rows),
  )


def convert(arguments: argparse.Namespace) -> Answer:
  """Turns a checkpoint into another format."""
  from clip_jax import convert as convert_lib

  options = convert_lib.Options(
    activation=arguments.activation,
    heads=arguments.heads,
    pooling=arguments.pooling,
    image_size=arguments.image_size,
    resize_method=arguments.resize_method,
    old_grid=arguments.old_grid,
    drop_logit_bias=arguments.drop_logit_bias,
    headers_only=arguments.dry_run,
  )
  with terminal.Progress("convert", unit="arrays") as progress:
    report = convert_lib.convert(
      arguments.source,
      arguments.destination,
      to=arguments.to,
      source_format=arguments.source_format,
      options=options,
      overwrite=arguments.overwrite,
      progress=progress,
    )
  did = "Nothing was written (--dry-run)."
  if not arguments.dry_run:
    did = (
      f"Wrote {arguments.destination}; every number was read back and compared."
    )
  return Answer(
    {**report.to_dict(), "destination": arguments.destination},
    f"{report.to_text()}\n\n{did}",
  )


def verify(arguments: argparse.Namespace) -> Answer:
  """Compares a conversion with its source, stage by stage."""
  from clip_jax import convert as convert_lib
  from clip_jax.convert import verification

  found = verification.verify(
    arguments.source,
    arguments.model,
    source_format=arguments.source_format,
    options=convert_lib.Options(
      activation=arguments.activation,
      heads=arguments.heads,
      pooling=arguments.pooling,
    ),
    double=arguments.float64,
    examples=arguments.examples,
    seed=arguments.seed,
  )
  return Answer(found.to_dict(), found.to_text(), code=0 if found.passed else 1)


def models(arguments: argparse.Namespace) -> Answer:
  """Lists the named models; nothing is computed."""
  del arguments
  from clip_jax.models import flops, variants

  payload = []
  for name in variants.VARIANTS:
    model = variants.create_model(name)
    sizes = flops.tower_sizes(model)
    payload.append(
      {
        "name": name,
        "parameters": flops.parameter_count(model, sizes),
        "image_size": model.image.image_size,
        "flops_image": sizes["image"].flops,
        "flops_text": sizes["text"].flops,
      }
    )
  rows = [
    (
      entry["name"],
      terminal.quantity(entry["parameters"]),
      entry["image_size"],
      terminal.quantity(entry["flops_image"]),
      terminal.quantity(entry["flops_text"]),
    )
    for entry in payload
  ]
  header = ("name", "parameters", "image size", "FLOPs/image", "FLOPs/text")
  return Answer(payload, terminal.table(header, rows))


def data(arguments: argparse.Namespace) -> Answer:
  """Inspects data, or prepares it for training."""
  from clip_jax.data import sources

  source = sources.open_source(arguments.data)
  with terminal.Progress(arguments.action, unit="records") as progress:
    return _DATA_ACTIONS[arguments.action](
      arguments, source, lambda done: progress(done, len(source))
    )


def _inspect(arguments, source, on_record) -> Answer:
  from clip_jax.data import prepare

  found = prepare.inspect(source, on_record=on_record)
  bad = ", ".join(f"{n} {reason}" for reason, n in found["bad"].items())
  lines = [
    f"{arguments.data}: {found['records']} records, {found['good']} good, "
    f"{found['texts']} texts, {terminal.quantity(found['image_bytes'])}B",
    f"bad: {bad or 'none'}",
  ]
  lines += [f"  {terminal.printable(k)}: {why}" for k, why in found["bad_keys"]]
  for path, offset, why in found["damages"]:
    lines.append(f"  {path} at byte {offset}: {why}")
  names = found["class_names"]
  if names:
    shown = [terminal.printable(name, limit=40) for name in names[:10]]
    more = ", …" if len(names) > len(shown) else ""
    lines.append(f"classes: {len(names)} ({', '.join(shown)}{more})")
  rows = [
    (
      entry["key"],
      f"{entry['width']}x{entry['height']}",
      "-" if entry["label"] is None else entry["label"],
      " | ".join(entry["texts"]),
    )
    for entry in found["first"]
  ]
  table = terminal.table(("key", "size", "label", "texts"), rows)
  return Answer(
    {"data": arguments.data, **found}, "\n".join([*lines, "", table])
  )


def _prepare(arguments, source, on_record) -> Answer:
  from clip_jax.data import prepare

  summary = prepare.prepare(
    source,
    arguments.out,
    address=arguments.data,
    drop_bad=arguments.drop_bad,
    on_record=on_record,
  )
  did = "Wrote" if summary["written"] else "Already there:"
  bad = sum(summary["bad"].values())
  what = "bad ones left out" if arguments.drop_bad else "of them bad"
  text = (
    f"{did} {summary['records']} records, {bad} {what}; train on "
    f"arrayrecord:{arguments.out}"
  )
  return Answer({"out": arguments.out, **summary}, text)


_DATA_ACTIONS = {"inspect": _inspect, "prepare": _prepare}

RUN = {
  "data": data,
  "train": train,
  "eval": evaluate,
  "classify": classify,
  "embed": embed,
  "search": search,
  "convert": convert,
  "verify": verify,
  "models": models,
}
