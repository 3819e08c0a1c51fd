"""Published figures to compare with: `assets/published.json`, with sources.

The suite and reports read all such figures here. Where both have a figure,
OpenCLIP's table is taken instead of CLIP_benchmark's: it is newer (2023 instead
of 2022), has all twelve models, and calls the sets as the tars are called that
`suite/layouts.py` reads.
"""

import functools
import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any

from clip_jax.evals import shifts

FILE = "published.json"  # In assets.
PAPER, OPEN_CLIP, CLIP_BENCHMARK = "paper", "open_clip", "clip_benchmark"
# In the order in which reports show them.
SOURCES = (OPEN_CLIP, PAPER, CLIP_BENCHMARK)
# What directories and addresses put before the name of a data set.
_PREFIXES = re.compile("^(?:wds|vtab|clipbenchmark)+")

# Names of sets that a folder of anybody's own pictures may have.
_WORDS = frozenset(["aircraft", "cars", "flowers", "pets"])

# Parts of a path below the directory of a set.
_WITHIN_A_SET = re.compile(
  r"test|val|valid|validation|data|images|standard-part1-120k|[\d{*?\[].*"
  r"|(?!captions_).*\.(?:tar|parquet|json|csv|txt|token)"
)

# Options of an address; the "?" of a glob is not followed by `name=`.
_OPTIONS = re.compile(r"\?(?=[a-z_]+=)")
# Words for parts of a set of which nothing is published.
_TO_TRAIN_ON = frozenset(["dev", "restval", "extra", "unsupervised"])
_VALIDATION = frozenset(["val", "valid", "validation"])
# Sets whose published part is called so, or that have one part alone.
_ON_VALIDATION = frozenset(
  [
    *("food101", "imagenet", "imagenet_v2", "imagenet_a", "imagenet_r"),
    *("imagenet_sketch", "objectnet"),
  ]
)
# Of sets that are of one year.
_YEARS = {"voc2007": "2007", "imagenet": "2012", "coco": "2014"}
_YEAR = re.compile(r"(?:19|20)\d\d")
# Karpathy's files of all splits.
_ALL_SPLITS = re.compile(r"dataset_\w+\.json")


@functools.cache
def table() -> dict[str, Any]:
  """Returns the file: `sources`, `sets` and `models`."""
  assets = importlib.resources.files("clip_jax") / "assets"
  return json.loads((assets / FILE).read_text("utf-8"))


@functools.cache
def _names() -> dict[str, str]:
  """Returns the set of each name that is known for one."""
  return {
    _plain(name): key
    for key, entry in table()["sets"].items()
    for name in (key, entry["title"], *entry.get("also", ()))
  }


def _plain(name: str) -> str:
  return re.sub("[^a-z0-9]", "", name.lower())


def find_set(address: str) -> str | None:
  """Returns the set of `table()` that a DATA address or a name is of, or None.

  It is found by the last part of the path that names no split or file:
  `tfds:cifar10/test`, `wds:/data/wds_cifar10/test/{0..3}.tar`. Of a training
  split, of one's own (`held_out`), of another year and of a validation split
  beside a test split, nothing is published. A folder or a table that is called
  `pets` is not taken for Oxford Pets.
  """
  scheme, _, path = address.partition(":")
  path, *options = _OPTIONS.split(path or address, maxsplit=1)
  own = _WORDS if scheme in ("folder", "csv") else frozenset()
  # What says which part of the set it is.
  within = [
    option.removeprefix("split=")
    for option in "".join(options).split("&")
    if option.startswith("split=")
  ]
  for part in reversed(re.split(r"[/\\]", path)):
    name = _plain(part)
    for known in (name, _PREFIXES.sub("", name)):
      if known in _names() and known not in own:
        key = _names()[known]
        return key if _is_published(key, within) else None
    if part and not _WITHIN_A_SET.fullmatch(part):
      return None
    within.append(part)
  return None


def _is_published(key: str, within: Sequence[str]) -> bool:
  """Whether figures are published of a part of a set.

  Args:
    key: of the set.
    within: its split, and directories and files below its own directory.
  """
  text = " ".join(within).lower()
  words = frozenset(re.split("[^a-z]+", text))
  if "train" in text or "held_out" in text or words & _TO_TRAIN_ON:
    return False
  if words & _VALIDATION and key not in _ON_VALIDATION:
    return False
  if any(_ALL_SPLITS.fullmatch(part) for part in within):
    return "test" in within
  years = {part for part in within if _YEAR.fullmatch(part)}
  return key not in _YEARS or years <= {_YEARS[key]}


def title(key: str) -> str:
  """Returns the usual name of a set of `table()`."""
  return table()["sets"][key]["title"]


def metric(key: str, source: str) -> str | None:
  """Returns a source's measure on a set, such as "top1"; None without one."""
  return table()["sets"][key]["metric"].get(source)


def figures(task: str, source: str, key: str) -> dict[str, Any]:
  """Returns the models' figures on a set, by model.

  Args:
    task: "zero_shot" or "linear_probe", whose figures are fractions; or
      "retrieval", whose figures are recalls by direction.
    source: one of `SOURCES`.
    key: of the set.
  """
  found = {
    name: model.get(task, {}).get(source, {}).get(key)
    for name, model in table()["models"].items()
  }
  return {name: value for name, value in found.items() if value is not None}


def by_openai(task: str, key: str, measured: str) -> dict[str, dict[str, Any]]:
  """Returns the figures of OpenAI's models on a set, by model and source.

  Args:
    task: "zero_shot" or "retrieval".
    key: of the set; it may be unknown.
    measured: the measure, such as "top1" or "recall"; figures of other measures
      are left out.
  """
  metrics = table()["sets"].get(key, {}).get("metric", {})
  found: dict[str, dict[str, Any]] = {}
  for source in (name for name in SOURCES if metrics.get(name) == measured):
    for model, value in figures(task, source, key).items():
      if table()["models"][model]["by"] == "OpenAI":
        found.setdefault(model, {})[source] = value
  return found


def expected(shift: str, accuracy: float) -> float | None:
  """Returns the accuracy that a shift's baseline gives for one on ImageNet.

  None where no line is published for all of ImageNet's classes (shifts.py).

  Args:
    shift: the set.
    accuracy: on ImageNet, a fraction between 0 and 1, both excluded.
  """
  if shift not in shifts.of_all_classes():
    return None
  return shifts.baselines()[shift].expected(accuracy)
