"""The card of a model: Markdown for people, a block of metadata for the hub."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import huggingface_hub

from clip_jax import buckets, errors, inference, loading, terminal, whole_files
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import opening
from clip_jax.results import (
  addresses,
  collected,
  gathering,
  limitations,
  markdown,
  model_facts,
  tables,
)
from clip_jax.train import metric_log

# Says that the card was made here, and may be replaced.
MARK = "<!-- Made by `clip-jax card`. -->"
# By the format of the model; the hub shows how the library loads it.
_LIBRARY = "clip_jax"
_LIBRARIES = {"huggingface": "transformers", "open-clip": "open_clip"}
_PIPELINE = "zero-shot-image-classification"
_TASK_TYPES = {
  "zero_shot": _PIPELINE,
  "retrieval": "image-text-retrieval",
}
_OTHER_TASK_TYPE = "image-classification"
# The hub's names of measures; others keep ours.
_METRIC_TYPES = {"top1": "accuracy", "top5": "top_5_accuracy"}


@dataclasses.dataclass(frozen=True)
class Card:
  """A card and what went into it.

  Attributes:
    name: of the model.
    text: the card, metadata first.
    metadata: what its block of YAML says.
    results: how many evaluations it tells of.
    left_out: results that it does not tell, and why.
  """

  name: str
  text: str
  metadata: Mapping[str, Any]
  results: int
  left_out: Sequence[collected.LeftOut]


def make(
  model: str | os.PathLike,
  *,
  reports: Iterable[str | os.PathLike] = (),
  license: str = "other",
  name: str | None = None,
  address: str | None = None,
  target: str = "clip-jax",
) -> Card:
  """Returns the card of a model.

  Args:
    model: any that `loading.load` takes.
    reports: directories or files with results; those of this model are told.
    license: of the model, as the hub writes it.
    name: of the model; None takes the last part of its path.
    address: what its readers load it by; None for a path of the name.
    target: the format that they get it in.

  Raises:
    UserError: there is no such model, or no result where some are named.
  """
  where = os.fspath(model)
  path = pathlib.Path(os.path.expanduser(where))
  if buckets.is_address(where):
    path = opening.find(where)
  path = pathlib.Path(workdir_lib.split_step(path)[0])
  is_workdir = workdir_lib.recognise(path)
  own = path if is_workdir and (path / metric_log.METRICS).is_file() else None
  found = _read(list(reports), own)  # Before the model, which takes longer.
  clip = loading.load(model)
  places = {clip.path, *([] if own is None else [str(own.resolve())])}
  results, left_out = _results(clip, found, places)
  name = terminal.printable(name or _name(clip.path), limit=96) or "model"
  library = _LIBRARIES.get(target, _LIBRARY)
  data = _metadata(name, license, library, results)
  facts = None
  if is_workdir:
    assert clip.step is not None
    facts = model_facts.of_workdir(path, clip.step)
  return Card(
    name=name,
    text=f"---\n{data.to_yaml()}\n---\n"
    + _body(name, address, clip, facts, results),
    metadata=data.to_dict(),
    results=len(results),
    left_out=left_out,
  )


def save(card: Card, path: str | os.PathLike) -> None:
  """Writes a card, whole or not at all.

  Raises:
    UserError: something else than a card is at `path`.
  """
  errors.check_local("The card", path)
  path = pathlib.Path(os.path.expanduser(path))
  if path.exists() and not (
    path.is_file() and MARK in path.read_text("utf-8", errors="replace")
  ):
    raise errors.UserError(
      f"{path} is there and was not made by `clip-jax card`; give a new path "
      "with --out."
    )
  if not path.parent.is_dir():
    raise errors.UserError(f"{path.parent} is no directory; make it first.")
  whole_files.write(path, card.text.encode())


def _name(path: str) -> str:
  """Returns the last part of a path, or of hf-hub:ORG/NAME@REVISION.

  A checkpoint of a workdir has the workdir's name.
  """
  path, _ = workdir_lib.split_step(path)
  last = addresses.last(path.removeprefix("hf-hub:"))
  return last.partition("@")[0] if path.startswith("hf-hub:") else last


def _read(
  reports: Sequence[str | os.PathLike], own: pathlib.Path | None
) -> collected.Collection | None:
  """Returns the results of the reports and of the run; None without any."""
  try:
    places = [*reports] if own is None else [own, *reports]
    return gathering.read_all(places) if places else None
  except errors.UserError:
    if reports:
      raise
    return None  # A run without a line of metrics.


def _results(
  clip: inference.Clip,
  collection: collected.Collection | None,
  places: Collection[str],
) -> tuple[list[collected.Result], list[collected.LeftOut]]:
  """Returns the results of this model at its step, and what was left out.

  Args:
    clip: the model.
    collection: results of any models and steps.
    places: the paths and addresses of the model.
  """
  if collection is None:
    return [], []
  taken, left_out = [], list(collection.left_out)
  for result in collection.results:
    if why := _why_not(result, clip, places):
      about = f"{result.model}: {result.task} on {result.data}"
      left_out.append(collected.LeftOut(about, why))
    else:
      # The same model may have been measured at another place.
      taken.append(dataclasses.replace(result, model=_name(clip.path)))
  told = gathering.latest(
    dataclasses.replace(collection, results=taken, left_out=left_out)
  )
  return list(told.results), list(told.left_out)


def _why_not(
  result: collected.Result, clip: inference.Clip, places: Collection[str]
) -> str:
  """Returns why a result is not told of the model; "" where it is.

  A fingerprint decides. Without one, the result must name the model's path and
  its step: other weights may lie at a path later.
  """
  fingerprint = result.values.get("fingerprint")
  if isinstance(fingerprint, str) and fingerprint == clip.fingerprint:
    return ""
  if fingerprint is None and not isinstance(result.values.get("model"), str):
    return "names no model"
  if result.origin not in places:
    return "is of another model"
  if result.step != clip.step:
    its, own = map(_step_words, (result.step, clip.step))
    return f"is of {its}, and the model of {own}"
  if fingerprint is not None:
    return "is of other weights or settings than lie there now"
  return ""


def _step_words(step: int | None) -> str:
  return "no known step" if step is None else f"step {step}"


def _metadata(
  name: str, license: str, library: str, results: Sequence[collected.Result]
) -> huggingface_hub.ModelCardData:
  """Returns the hub's block, with a `model-index` of all measures."""
  measured = [
    huggingface_hub.EvalResult(
      task_type=_TASK_TYPES.get(result.task, _OTHER_TASK_TYPE),
      dataset_type=result.compared
      or (plain if result.differs else result.data),
      dataset_name=plain,
      metric_type=_METRIC_TYPES.get(measure, measure),
      # Tasks of one type on one set are one entry: the name tells them apart.
      metric_name=", ".join(
        [
          tables.task_words(result.task),
          tables.measure_words(measure),
          *result.apart,
        ]
      ),
      metric_value=round(value, 6),
    )
    for result in results
    for plain in [dataclasses.replace(result, apart=()).title]
    for measure, value, _ in tables.measured(result)
  ]
  return huggingface_hub.ModelCardData(
    license=license,
    library_name=library,
    pipeline_tag=_PIPELINE,
    tags=["clip", "jax", "contrastive-learning"],
    model_name=name,
    eval_results=measured or None,
  )


def _body(
  name: str,
  address: str | None,
  clip: inference.Clip,
  facts: tuple[model_facts.Facts, model_facts.Facts] | None,
  results: Sequence[collected.Result],
) -> str:
  parts = [MARK, f"# {markdown.text(name)}", _summary(clip)]
  parts += ["## How to use it", _usage(name, address, clip)]
  parts += ["## Architecture", _facts(model_facts.architecture(clip))]
  if facts is not None:
    data, training = facts
    parts += ["## Data", _facts(data), "## Training", _facts(training)]
  else:
    parts += ["## Data and training", "The checkpoint says nothing of them."]
  parts += ["## Results", _table_of(results)]
  parts += ["## Intended use", limitations.INTENDED, "## Limitations"]
  if measured := limitations.measured(results):
    parts += ["Measured:", _list(markdown.text(x) for x in measured)]
  parts += [
    "Of models of this kind (Radford et al. 2021, sections 6 and 7):",
    _list(limitations.GENERAL),
  ]
  return "\n\n".join(parts) + "\n"


def _summary(clip: inference.Clip) -> str:
  if not (clip.preprocess and clip.tokenizer):
    tower = "image" if clip.preprocess else "text"
    return f"The {tower} tower of a model of images and texts, for JAX."
  if not clip.module.contrastive:
    return (
      "A model for JAX that predicts the words of an image's caption (section "
      "2.3 of the paper compares it with CLIP). It has no text tower: a class "
      "is scored by how likely its name is as a caption."
    )
  loss = clip.probabilities
  return (
    "A CLIP model for JAX: an image tower and a text tower whose embeddings of "
    "unit length are compared by their cosine. A label's probability is the "
    f"{loss} of scaled cosines."
  )


def _usage(name: str, address: str | None, clip: inference.Clip) -> str:
  """Returns the code that loads the model and uses it."""
  call = 'clip.classify("photo.png", labels=["cat", "dog"])'
  if not clip.preprocess:
    call = 'clip.encode_text(["a photo of a cat"])'
  elif not clip.tokenizer:
    call = 'clip.encode_image(["photo.png"])'
  elif not clip.module.contrastive:
    call = 'clip.score_texts(["a photo of a cat"]).of_images'
  lines = ["import clip_jax", ""]
  if address is None:
    lines.append("# The directory of the model, or hf-hub:ORG/NAME.")
  lines += [
    f"clip = clip_jax.load({json.dumps(address or name)})",
    f"print({call})",
  ]
  # No name ends the block: json.dumps leaves backticks, a fence has more.
  fence = "`" * max(3, _longest_run(name) + 1)
  return "\n".join([f"{fence}python", *lines, fence])


def _longest_run(name: str) -> int:
  """Returns the length of the longest run of backticks."""
  runs = "".join(c if c == "`" else " " for c in name).split()
  return max(map(len, runs), default=0)


def _facts(facts: model_facts.Facts) -> str:
  return _list(f"{name}: {markdown.text(value)}" for name, value in facts)


def _list(sentences: Iterable[str]) -> str:
  return "\n".join(f"- {sentence}" for sentence in sentences)


def _data(result: collected.Result) -> str:
  """Returns the name of a result's data, with the address in brackets."""
  if result.set is None:
    return result.title
  more = filter(None, (result.data, result.differs, *result.apart))
  return f"{result.name} ({'; '.join(dict.fromkeys(more))})"


def _table_of(results: Sequence[collected.Result]) -> str:
  rows = [
    (
      tables.task_words(result.task),
      _data(result),
      tables.measure_words(measure),
      tables.percent(value),
      interval,
    )
    for result in results
    for measure, value, interval in tables.measured(result)
  ]
  if not rows:
    return (
      "There is none yet: `clip-jax eval … --json > results/NAME.json` "
      "measures, and `clip-jax card … --reports results` adds it."
    )
  header = ("task", "data", "measure", "%", "95 % interval")
  note = (
    "By `clip-jax eval`. Intervals are Clopper-Pearson's. Linear probes take "
    "the image tower's features, as the paper's appendix A.3 does."
  )
  parts = [markdown.table(header, rows), note]
  told = sorted(filter(None, {tables.protocol(x) for x in results}))
  if told:
    parts.append(_list(map(markdown.text, told)))
  return "\n\n".join(parts)
