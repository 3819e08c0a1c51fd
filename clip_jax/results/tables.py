"""From results to tables: all measures, retrieval, and published figures."""

from typing import Any

from clip_jax import terminal
from clip_jax.evals import published
from clip_jax.results import collected
from clip_jax.results.picture import Table

_TASKS = {
  "zero_shot": "zero-shot",
  "linear_probe": "linear probe",
  "knn": "nearest neighbours",
  "few_shot": "few-shot",
}
# In words, in the order in which they are told.
MEASURES = {
  "top1": "top-1",
  "top5": "top-5",
  "mean_per_class": "mean per class",
  "mean_top1_top5": "mean of top-1 and top-5",
  "map_11_point": "11-point mAP",
  "roc_auc": "ROC AUC",
}
WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_RECALLS = ("r@1", "r@5", "r@10")


def task_words(task: str) -> str:
  """Returns the name of a task."""
  return _TASKS.get(task, task)


def percent(value: float) -> str:
  """Returns a fraction in percent with one digit."""
  return f"{100 * value:.1f}"


def measured(result: collected.Result) -> list[tuple[str, float, str]]:
  """Returns the measures of a result: name, fraction and interval in words."""
  rows = []
  values = {name: result.fraction(name) for name in MEASURES}
  for way in WAYS:
    recalls = recalls_of(result.values, way)
    values |= {f"{way}/{name}": value for name, value in recalls.items()}
  for name, value in values.items():
    if value is not None:
      interval = result.interval(name)
      words = " to ".join(map(percent, interval)) if interval else ""
      rows.append((name, value, words))
  return rows


def measure_words(name: str) -> str:
  """Returns the name of a measure of `measured`."""
  way, slash, recall = name.partition("/")
  if slash:
    return f"{WAYS[way]}, {recall.upper()}"
  return MEASURES[name]


def protocol(result: collected.Result) -> str:
  """Returns a note on how a result was measured; "" without one."""
  found = result.values.get("protocol")
  return terminal.printable(found, limit=300) if isinstance(found, str) else ""


def recalls_of(values: Any, way: str) -> dict[str, float]:
  """Returns the recalls of one direction of retrieval."""
  entry = values.get(way)
  if not isinstance(entry, dict):
    return {}
  found = {name: collected.fraction(entry.get(name)) for name in _RECALLS}
  return {name: value for name, value in found.items() if value is not None}


def results(collection: collected.Collection) -> Table | None:
  """Returns all measures of all results."""
  rows = [
    (
      result.model,
      task_words(result.task),
      result.title,
      measure_words(name),
      percent(value),
      interval,
      _count(result),
      "" if i else protocol(result),  # Once for all measures of a result.
    )
    for result in collection.results
    for i, (name, value, interval) in enumerate(measured(result))
  ]
  header = (
    "model",
    "task",
    "data",
    "measure",
    "%",
    "95 % interval",
    "examples",
    "protocol",
  )
  note = "Clopper-Pearson intervals. The data are named without directories."
  return Table("results", "Results", note, header, rows) if rows else None


def _count(result: collected.Result) -> str:
  for name in ("examples", "images"):
    if (count := result.number(name)) is not None:
      return f"{count:,.0f}"
  return ""


def compared(collection: collected.Collection) -> Table | None:
  """Returns results on data sets of the paper beside published figures."""
  models = list(published.table()["models"])
  rows = []
  for task in ("zero_shot", "linear_probe"):
    for key, own in collection.of_sets(task).items():
      for source in published.SOURCES:
        others = published.figures(task, source, key)
        metric = published.metric(key, source)
        cells = {
          model: _own_cell(x, metric) for model, x in own.items() if metric
        }
        if others and any(cells.values()):
          assert metric is not None
          words = f"{task_words(task)}, {MEASURES[metric]} ({source})"
          title = f"{published.title(key)}, {words}"
          figures = [_cell(others.get(model)) for model in models]
          rows.append(
            (title, *(cells.get(x, "") for x in collection.models), *figures)
          )
  note = (
    "In percent. Rows “open_clip”: CLIP_benchmark's splits and prompts; rows "
    "“paper”: the paper's. They differ, and a row compares only with a result "
    "of the same protocol. Results on another number of images or classes than "
    "the set has are left out: “Results” says which they are."
  )
  if any("*" in cell for row in rows for cell in row):
    note += (
      " *: not with the prompts of the suite, or a probe not on the features "
      "of the image tower."
    )
  header = ("data set", *collection.models, *models)
  return (
    Table(
      "compared",
      "Beside published figures",
      note,
      header,
      rows,
      published_columns=len(models),
    )
    if rows
    else None
  )


def _own_cell(result: collected.Result, metric: str) -> str:
  """Returns the cell of a measure, marked where other prompts were taken."""
  value = _cell(result.fraction(metric))
  return f"{value} *" if value and result.as_published is False else value


def _cell(value: float | None) -> str:
  return "" if value is None else percent(value)


def retrieval(collection: collected.Collection) -> Table | None:
  """Returns recalls, and below them what is published on the same sets."""
  found = [x for x in collection.results if x.task == "retrieval"]
  rows = [
    (
      result.model,
      result.title,
      words,
      *(_cell(recalls.get(name)) for name in _RECALLS),
      _rank(result.values.get(way)),
    )
    for result in found
    for way, words in WAYS.items()
    if (recalls := recalls_of(result.values, way))
  ]
  if not rows:
    return None
  others = [
    (
      f"{model} ({source})",
      published.title(key),
      words,
      *(_cell(recalls_of(figures, way).get(name)) for name in _RECALLS),
      "",
    )
    for key in dict.fromkeys(
      x.compared for x in found if x.compared is not None
    )
    for source in published.SOURCES
    for model, figures in published.figures("retrieval", source, key).items()
    for way, words in WAYS.items()
  ]
  header = ("model", "data", "direction", "R@1", "R@5", "R@10", "median rank")
  note = (
    "In percent. Published figures count an equal caption of another image as "
    "a miss (--duplicates misses). They stand here where a result is on the "
    "set's number of images and captions. The paper writes “a photo of” before "
    "each caption, as the suite does, which gave its models 1 to 2 points of "
    "R@1; CLIP_benchmark (open_clip) does not. “Results” says what was done."
  )
  return Table(
    "retrieval",
    "Retrieval",
    note,
    header,
    rows + others,
    published_rows=len(others),
  )


def _rank(entry: Any) -> str:
  rank = entry.get("median_rank") if isinstance(entry, dict) else None
  found = collected.number(rank)
  return "" if found is None else f"{found:g}"


# Each table, with what it is made from.
TABLES = {
  "compared": (
    compared,
    "results on all images and classes of data sets of the paper, such as "
    "tfds:cifar10/test",
  ),
  "retrieval": (retrieval, "results of --task retrieval"),
  "results": (results, "results of any task"),
}
