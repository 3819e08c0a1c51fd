"""The data sets of the suite: what each is, and what others measured on it."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from clip_jax import errors, names
from clip_jax.evals import published

PROMPTS_FILE = "suite_prompts.json"  # In assets.
_WORDNET_FILE = "wordnet_names.json"  # Beside it.
# The key of an evaluation's result that holds each metric.
METRICS = {
  "accuracy": "top1",
  "mean_per_class": "mean_per_class",
  "map_11_point": "map_11_point",
  "roc_auc": "roc_auc",
  "mean_top1_top5": "mean_top1_top5",
}
RECALL = "recall"
WAYS = ("text_to_image", "image_to_text")
# Whose figures stand beside those of a model that is none of OpenAI's.
USUAL_MODEL = "ViT-B-32"
_HUB = "clip-benchmark"  # Of HuggingFace; holds CLIP_benchmark's tars.


@dataclasses.dataclass(frozen=True)
class Classes:
  """The classes of a data set, in the order of its published prompts.

  Attributes:
    synonyms: of each class all names that go into the templates.
    templates: with `{}` where a name goes.
    keys: of each class what data sources may call it, such as its WordNet id;
      empty where there is nothing of the kind.
    also: further names in data sources, to the first of a class's own.
    numbered: whether data sources may call a class by its number in this order,
      from 0.
  """

  synonyms: tuple[tuple[str, ...], ...]
  templates: tuple[str, ...]
  keys: tuple[str, ...] = ()
  also: Mapping[str, str] = dataclasses.field(default_factory=dict)
  numbered: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    """The first name of each class."""
    return tuple(several[0] for several in self.synonyms)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One data set of the suite.

  Attributes:
    name: its name here, and that of its directory.
    group: the table that it stands in.
    title: its full name.
    metric: one of `METRICS`, or `RECALL`.
    examples: test images of the paper's protocol.
    page: where its owners publish it.
    classes: number of classes; None for retrieval.
    texts: number of captions, of retrieval.
    other_counts: numbers of test images in other protocols.
    prompts: the name of its classes in `PROMPTS_FILE`, where it is not `name`.
    keys: of each class what sources of this set may call it, where that is not
      true of other sets with these classes; empty takes `Classes.keys`.
    numbered: whether its published folders are called by the numbers of the
      classes, from 0.
    within: the name of classes that a source may list, of which it has some.
    others_left_out: whether sources hold classes that are not measured.
    clip_benchmark: its name there.
    wds: the directory of CLIP_benchmark's tars.
    wds_options: of the address.
    tfds: NAME/SPLIT of TensorFlow Datasets.
    tfds_options: of the address.
    config: which of the hub's configs it is, where it has several.
    karpathy: the file of its captions and splits.
    lists: a directory of lists of splits, over which the metric is averaged.
    note: what differs between protocols.
    published_as: its name in `published.table()`, where it is not `name`.
  """

  name: str
  group: str
  title: str
  metric: str
  examples: int
  page: str = ""
  classes: int | None = None
  texts: int | None = None
  other_counts: tuple[int, ...] = ()
  prompts: str = ""
  keys: tuple[str, ...] = ()
  numbered: bool = False
  within: str = ""
  others_left_out: bool = False
  clip_benchmark: str = ""
  wds: str = ""
  wds_options: str = ""
  tfds: str = ""
  tfds_options: str = ""
  config: str = ""
  karpathy: str = ""
  lists: str = ""
  note: str = ""
  published_as: str = ""

  @property
  def published(self) -> dict[str, dict[str, Any]]:
    """Figures of OpenAI's models by `metric`, by model and by source.

    They are fractions; for retrieval, recalls by way.
    """
    measured = METRICS.get(self.metric, RECALL)
    return published.by_openai(
      self.task, self.published_as or self.name, measured
    )

  @property
  def task(self) -> str:
    """The evaluation that measures it, one of `names.TASKS`."""
    return "retrieval" if self.metric == RECALL else "zero_shot"

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of test images in any protocol."""
    return (self.examples, *self.other_counts)

  def how_to_get(self, root: str) -> str:
    """Returns the command, or the page, that gets it into `root`."""
    if self.wds:
      return (
        f"hf download {_HUB}/{self.wds} --repo-type dataset --local-dir "
        f"{root}/{self.wds}"
      )
    if self.tfds:
      name = self.tfds.rpartition("/")[0]
      return f"tfds build {name} --data_dir {root} --file_format=array_record"
    return f"{self.page} (as class folders in {root}/{self.name}/test)"


@functools.cache
def entries() -> dict[str, Entry]:
  """Returns all data sets by their names, in the order of the tables."""
  found = {}
  for group in names.SUITE_GROUPS:
    for name, fields in _read(f"evals/suite/{group}.json").items():
      for several in ("other_counts", "keys"):
        fields[several] = tuple(fields.get(several, ()))
      found[name] = Entry(name=name, group=group, **fields)
  return found


def choose(suite: str) -> list[Entry]:
  """Returns the data sets that a text names: groups, sets, or "all".

  Args:
    suite: one or more of these, separated by commas.

  Raises:
    UserError: one is unknown.
  """
  chosen: dict[str, Entry] = {}
  for name in (part.strip() for part in suite.split(",")):
    some = {
      entry.name: entry
      for entry in entries().values()
      if name in ("all", entry.group, entry.name)
    }
    if not some:
      known = ("all", *names.SUITE_GROUPS, *entries())
      raise errors.unknown("suite or data set", name, known)
    chosen.update(some)
  return list(chosen.values())


@functools.cache
def _prompts() -> dict[str, Any]:
  return _read(f"assets/{PROMPTS_FILE}")


@functools.cache
def wordnet_names() -> dict[str, str]:
  """Returns all words for each class of ImageNet by its WordNet id.

  HuggingFace's imagenet-1k has them as names: "tench, Tinca tinca".
  """
  return _read(f"assets/{_WORDNET_FILE}")


def _read(path: str) -> dict[str, Any]:
  place = importlib.resources.files("clip_jax") / path
  return json.loads(place.read_text("utf-8"))


@functools.cache
def classes_of(name: str) -> Classes:
  """Returns the classes called `name` in `PROMPTS_FILE`."""
  fields = _prompts()[name]
  return Classes(
    synonyms=tuple(
      (each,) if isinstance(each, str) else tuple(each)
      for each in fields["classes"]
    ),
    templates=tuple(fields["templates"]),
    keys=tuple(fields.get("keys", ())),
    also=fields.get("also", {}),
  )


def classes(entry: Entry) -> Classes:
  """Returns the classes of a data set for zero-shot classification."""
  found = classes_of(entry.prompts or entry.name)
  return dataclasses.replace(
    found, keys=entry.keys or found.keys, numbered=entry.numbered
  )


@dataclasses.dataclass(frozen=True)
class Figure:
  """A published figure of a data set.

  Attributes:
    value: a fraction.
    model: which of OpenAI's models was measured.
    source: one of `published.SOURCES`, whose protocols differ.
  """

  value: float
  model: str
  source: str


def figure(
  entry: Entry, metric: str, *, architecture: str = "", examples: int = 0
) -> Figure | None:
  """Returns the published figure that is next to a measure, if there is one.

  Args:
    entry: the data set.
    metric: that of `entry`, or such as "text_to_image_r@1".
    architecture: of the model; its own figures come first, then those of
      `USUAL_MODEL`, then any.
    examples: number of test images; if it is not the paper's, the paper's
      figures come last.
  """
  order = (published.OPEN_CLIP, published.CLIP_BENCHMARK)
  if examples and examples != entry.examples:
    order = (*order, published.PAPER)
  else:
    order = (published.PAPER, *order)
  known = entry.published
  for model in (architecture, USUAL_MODEL, *sorted(known)):
    rows = known.get(model, {})
    for source in order:
      value = rows.get(source)
      if isinstance(value, Mapping):
        way, _, recall = metric.rpartition("_")
        value = value[way].get(recall)
      if value is not None:
        return Figure(value, model, source)
  return None
