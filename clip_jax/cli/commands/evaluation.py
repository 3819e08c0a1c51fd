"""The verb `eval`."""

import argparse
import dataclasses
import functools
from typing import Any

import jax

from clip_jax import (
  host_memory,
  hosts,
  loading,
  names,
  shared_batches,
  terminal,
)
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.cli import verb
from clip_jax.cli.commands import joining, measures, suite
from clip_jax.convert import interpolation, opening
from clip_jax.evals import (
  few_shot,
  folds,
  groups,
  linear_probe,
  prompt_search,
  reading,
  robustness,
  shots,
  tasks,
)


def evaluate(arguments: argparse.Namespace) -> verb.Answer:
  """Measures a model on one task, or on a suite of data sets."""
  host_memory.keep_freed()
  with joining.joined_processes(arguments):
    joining.check_same_command(arguments)
    if arguments.suite is not None:
      return suite.evaluate(arguments)
    return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> verb.Answer:
  """Measures a model on one task."""
  clip = loading.load(arguments.model).with_max_pixels(arguments.max_pixels)
  if jax.process_count() > 1:
    hosts.check_same({"model": clip.fingerprint})
  probe = arguments.task in linear_probe.TASKS
  clip.check_towers("image", *(() if probe else ("text",)))
  title = f"{arguments.task} on {arguments.data}"
  if clip.step is not None:
    title += f", step {clip.step}"
  if arguments.interpolate is not None:
    clip.check_embeds()
    return _evaluate_between(arguments, clip, title)
  result = _measure(arguments, clip)
  rows = measures.to_rows(result)
  table = terminal.table(("measure", "value"), rows)
  return verb.Answer(result, f"{title}\n\n{table}{measures.left_out(result)}")


def _measure(arguments, clip, *, tell: bool = True) -> dict[str, Any]:
  if arguments.task in linear_probe.TASKS:
    return _probe(arguments, clip)
  cuts = tokenizer_lib.Cuts()
  if arguments.task != "zero_shot" or arguments.search_templates:
    clip.check_embeds()
  model = clip.for_evaluation(cuts)
  options = {"labels": arguments.labels, "templates": arguments.templates}
  with terminal.Progress("eval") as progress:
    options["reading"] = _reading(arguments, clip, progress)
    if arguments.task == few_shot.TASK:
      result = _few_shot(arguments, clip, model, options)
    elif arguments.task == robustness.TASK:
      result = robustness.evaluate(arguments.data, model, **options)
    elif arguments.task == groups.TASK:
      options["groups"] = arguments.groups
      result = groups.evaluate(arguments.data, model, **options)
    elif arguments.search_templates:
      options["templates"] = arguments.search_templates
      options["train_data"] = arguments.train_data
      result = prompt_search.evaluate(arguments.data, model, **options)
    else:
      options["duplicates"] = arguments.duplicates
      options["subtract_prior"] = arguments.subtract_prior
      result = tasks.evaluate(arguments.task, arguments.data, model, **options)
  if tell:
    cuts.tell(clip.tokenizer.context_length)
  return {**result, "texts_cut": cuts.cut, **_about(clip)}


def _about(clip) -> dict[str, Any]:
  """Returns which model a result is of, as `card` asks for it."""
  return {
    "model": clip.path,
    "fingerprint": clip.fingerprint,
    "step": clip.step,
  }


def _reading(arguments, clip, progress) -> reading.Reading:
  """Returns how data are read, by the flags of `flags.add_batches`."""
  return reading.Reading(
    batch_size=arguments.batch_size,
    threads=arguments.threads,
    progress=None if jax.process_index() else progress,
    open_batches=shared_batches.opener(clip.encoder),
  )


def _few_shot(arguments, clip, model, options) -> dict[str, Any]:
  features, embed = _features(arguments, clip)
  result = few_shot.evaluate(
    arguments.data,
    embed=embed,
    embed_images=clip.embed_images,
    embed_texts=model.embed_texts,
    preprocess=model.preprocess,
    train_data=arguments.train_data,
    shots=arguments.shots or few_shot.SHOTS,
    seeds=arguments.seeds or shots.SEEDS,
    **options,
  )
  return {**result, "features": features}


def _features(arguments, clip):
  """Returns the name of the features of a probe, and what gives them."""
  name = arguments.features or names.FEATURES[0]
  functions = (clip.image_features, clip.embed_images)
  return name, dict(zip(names.FEATURES, functions, strict=True))[name]


def _probe(arguments, clip) -> dict[str, Any]:
  """Measures a classifier on the features of a model."""
  features, embed = _features(arguments, clip)
  with terminal.Progress("eval") as progress:
    evaluate_probe = linear_probe.evaluate
    if arguments.folds:
      evaluate_probe = functools.partial(folds.evaluate, folds=arguments.folds)
    result = evaluate_probe(
      arguments.task,
      arguments.data,
      embed=embed,
      preprocess=clip.preprocess,
      train_data=arguments.train_data,
      neighbours=arguments.neighbours or linear_probe.NEIGHBOURS,
      reading=_reading(arguments, clip, progress),
    )
  return {**result, "features": features, **_about(clip)}


def _evaluate_between(arguments, clip, title) -> verb.Answer:
  """Measures models between a fine-tuned one and the one it started from."""
  first = opening.open_first(arguments.model, arguments.interpolate_with)
  found = []
  for share in arguments.interpolate:
    variables = interpolation.between(first, clip.variables, share)
    between = dataclasses.replace(clip, variables=variables)
    # What is cut is the same for all.
    result = _measure(arguments, between, tell=not found)
    found.append({"share": share, **result})
  rows = [
    (f"{result['share']:g}", *(value for _, value in measures.to_rows(result)))
    for result in found
  ]
  names = [name for name, _ in measures.to_rows(found[0])]
  table = terminal.table(("share", *names), rows)
  return verb.Answer(
    {"interpolate": found},
    f"{title}: share of the fine-tuned weights\n\n{table}"
    f"{measures.left_out(found[0])}",
  )
