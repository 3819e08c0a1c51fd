"""The arguments of eval, classify, embed, search and app."""

import argparse
import os
from typing import Any

from clip_jax import names
from clip_jax.cli import flags

_EVAL_TASKS = (*names.TASKS, *names.PROBE_TASKS, *names.FURTHER_TASKS)
_OR_FILE = "or a FILE.faiss or FILE.usearch of one"
# Flags of `eval` that only some tasks take.
_FLAGS_OF = {
  "--train-data": (*names.PROBE_TASKS, "few_shot"),
  "--features": (*names.PROBE_TASKS, "few_shot"),
  "--folds": names.PROBE_TASKS,
  "--neighbours": ("knn",),
  "--shots": ("few_shot",),
  "--seeds": ("few_shot",),
  "--groups": ("groups",),
  "--labels": (*names.TASKS, *names.FURTHER_TASKS),
  "--template": (*names.TASKS, *names.FURTHER_TASKS),
  "--duplicates": ("retrieval",),
  "--search-templates": ("zero_shot",),
  "--subtract-prior": ("zero_shot",),
}


def add_eval(parser: flags.Parser) -> None:
  """Adds the arguments of `eval`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument(
    "--task",
    metavar="TASK",
    choices=_EVAL_TASKS,
    help=", ".join(_EVAL_TASKS),
  )
  parser.add_argument("--data", metavar="DATA", help=flags.DATA)
  _add_suite(parser)
  _add_of_tasks(parser)
  parser.add_argument("--labels", default="", help=f"classes; {flags.LABELS}")
  parser.add_argument(
    "--template",
    "--templates",
    default="",
    dest="templates",
    help=f"{flags.TEMPLATE}the data's own, else 'a photo of a {{}}.')",
  )
  flags.add_duplicates(parser)
  parser.add_argument(
    "--subtract-prior",
    action="store_true",
    help="of a model that predicts captions (objective.kind bow or lm): "
    "subtract the logarithm of the mean probability over all images",
  )
  flags.add_interpolate(parser, type=flags.shares)
  flags.add_batches(parser)
  flags.add_max_pixels(parser)
  flags.add_processes(parser)
  flags.add_json(parser)


def _add_suite(parser: flags.Parser) -> None:
  flags.add_suite(parser)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="of a suite: where each set's result goes; those that are there are "
    "not measured again (default: a directory of this model in runs/eval)",
  )
  parser.add_argument(
    "--csv",
    metavar="FILE",
    help="of a suite: also write the measures as CLIP_benchmark does",
  )


def _add_of_tasks(parser: flags.Parser) -> None:
  """Adds flags of probes, of few_shot, of groups and of template search."""
  probes = ", ".join(_FLAGS_OF["--train-data"])
  parser.add_argument(
    "--train-data",
    default="",
    metavar="DATA",
    help=f"{probes}, --search-templates: what to train on, where --data is "
    "what to test on (default: the splits of --data)",
  )
  parser.add_argument(
    "--search-templates",
    default="",
    metavar="FILE",
    help="zero_shot: templates, one a line, of which those are taken that tell "
    "the classes of the training data apart best",
  )
  parser.add_argument(
    "--features",
    choices=names.FEATURES,
    help=f"{probes}: of images, before the projection (the default) or after "
    "it",
  )
  parser.add_argument(
    "--folds",
    default="",
    metavar="PATH",
    help=f"{', '.join(names.PROBE_TASKS)}: the mean over published folds: "
    "STL-10's fold_indices.txt, or a directory of UCF101's trainlist01.txt, "
    "testlist01.txt and so on",
  )
  parser.add_argument(
    "--neighbours",
    type=flags.count,
    metavar="N",
    help="knn: training examples that vote (default: 20)",
  )
  parser.add_argument(
    "--shots",
    type=flags.counts,
    metavar="K,…",
    help="few_shot: training examples of each class (default: 1,2,4,8,16)",
  )
  parser.add_argument(
    "--seeds",
    type=flags.count,
    metavar="N",
    help="few_shot: random draws of the examples (default: 3)",
  )
  parser.add_argument(
    "--groups",
    metavar="FILE",
    help="groups: a CSV file of the images' keys and, in further columns, "
    "their groups",
  )


def check_eval(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if problem := _check_suite(arguments) or flags.check_processes(arguments):
    return problem
  for flag, takes in _FLAGS_OF.items():
    given = _given(arguments, flag)
    if flag == "--train-data" and arguments.search_templates:
      takes = (*takes, "zero_shot")
    if given and arguments.task not in takes:
      return f"{flag} works with --task {' or '.join(takes)} only"
  if arguments.search_templates and arguments.templates:
    return "--search-templates finds the templates; leave out --template"
  if arguments.search_templates and arguments.subtract_prior:
    return "--subtract-prior does not go with --search-templates"
  if arguments.task == "groups" and not arguments.groups:
    return "--task groups takes a table of the groups: --groups FILE"
  return flags.check_interpolate(arguments)


def _given(arguments: argparse.Namespace, flag: str) -> Any:
  """Returns the value of a flag; what was not given is false."""
  name = flag.removeprefix("--").replace("-", "_")
  return getattr(arguments, "templates" if name == "template" else name)


def _check_suite(arguments: argparse.Namespace) -> str | None:
  """Returns the error of --suite and the flags that go with it, or None."""
  one_task = {"--task": arguments.task, "--data": arguments.data}
  of_suite = {
    "--data-root": arguments.data_root,
    "--out": arguments.out,
    "--csv": arguments.csv,
  }
  if arguments.suite is None:
    if missing := [flag for flag, value in one_task.items() if not value]:
      required = f"the following arguments are required: {', '.join(missing)}"
      return f"{required}; or --suite and --data-root"
    given = [flag for flag, value in of_suite.items() if value]
    return f"{given[0]} goes with --suite" if given else None
  flags_of_tasks = ("--task", "--data", *_FLAGS_OF, "--interpolate")
  if given := [flag for flag in flags_of_tasks if _given(arguments, flag)]:
    return f"{given[0]} does not go with --suite, which says what is measured"
  if not arguments.data_root:
    return "--suite needs --data-root, the directory of the data sets"
  return None


def add_classify(parser: flags.Parser) -> None:
  """Adds the arguments of `classify`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
  parser.add_argument("--labels", required=True, help=flags.LABELS)
  parser.add_argument(
    "--template",
    "--templates",
    default="",
    dest="templates",
    help=f"{flags.TEMPLATE}'a photo of a {{}}.')",
  )
  parser.add_argument(
    "--probabilities",
    choices=names.PROBABILITIES,
    help="softmax: they add up to 100 %% over the labels; sigmoid, of a model "
    "that was trained with it: each label by itself, so that none or several "
    "may fit (default: the one that the model was trained with)",
  )
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def add_embed(parser: flags.Parser) -> None:
  """Adds the arguments of `embed`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument("--data", required=True, metavar="DATA", help=flags.DATA)
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="the index; an index that is there is replaced (of several processes, "
    "the first one alone writes it)",
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=names.INDEX_DTYPES,
    help="how the index stores numbers (default: float32; int8 takes a quarter "
    "of the bytes)",
  )
  flags.add_batches(parser)
  flags.add_max_pixels(parser)
  flags.add_processes(parser)
  flags.add_json(parser)


def _add_keys(parser: flags.Parser) -> None:
  parser.add_argument(
    "--keys",
    metavar="DIR",
    help="of a FILE.faiss or FILE.usearch: the index that it was made of "
    "(default: DIR of DIR.faiss)",
  )


def add_search(parser: flags.Parser) -> None:
  """Adds the arguments of `search`."""
  parser.add_argument(
    "index",
    metavar="INDEX",
    help=f"made by `clip-jax embed`; {_OR_FILE}",
  )
  parser.add_argument("query", metavar="TEXT", nargs="?", help="what to find")
  parser.add_argument("--image", metavar="FILE", help="an image to find like")
  parser.add_argument(
    "-k",
    type=flags.count,
    default=10,
    metavar="N",
    help="results (default: 10)",
  )
  _add_keys(parser)
  parser.add_argument(
    "--export",
    metavar="FILE",
    help="write INDEX as FILE.faiss or FILE.usearch instead of searching",
  )
  parser.add_argument(
    "--model", metavar="MODEL", help="the index's model, if it has moved"
  )
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def check_search(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if arguments.export is not None:
    rest = (arguments.query, arguments.image, arguments.model, arguments.keys)
    if any(value is not None for value in rest):
      return (
        "--export writes INDEX; leave out TEXT, --image, --model and --keys"
      )
    return None
  if (arguments.query is None) == (arguments.image is None):
    return "give a text to search for, or --image FILE"
  if arguments.query is not None and not arguments.query.strip():
    return "the text to search for is empty"
  if arguments.query is not None and os.path.isfile(arguments.query):
    return f"{arguments.query} is a file; search with --image {arguments.query}"
  return None


def add_app(parser: flags.Parser) -> None:
  """Adds the arguments of `app`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument(
    "--index",
    metavar="INDEX",
    help="to search in, made of this model by `clip-jax embed`; " + _OR_FILE,
  )
  _add_keys(parser)
  parser.add_argument(
    "--runs",
    "--workdir",
    metavar="DIR",
    help="a workdir, or a directory of several, to watch (default: MODEL, "
    "where that is a workdir)",
  )
  parser.add_argument(
    "--labels",
    default="",
    metavar="LABELS",
    help=f"labels that are there at first: {flags.LABELS}, of a list of names",
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    metavar="NAME",
    help="where the page listens; 0.0.0.0 for every network of this machine "
    "(default: 127.0.0.1, for this machine alone)",
  )
  parser.add_argument(
    "--port",
    type=flags.port,
    default=7860,
    metavar="N",
    help="0 takes a free one (default: 7860)",
  )
  parser.add_argument(
    "--password",
    metavar="WORD",
    help="that visitors are asked for, with any user name; other users of this "
    "machine can see arguments, but not CLIP_JAX_APP_PASSWORD, the variable "
    "that it may stand in instead",
  )
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def check_app(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if arguments.keys is not None and arguments.index is None:
    return "--keys goes with --index"
  if arguments.password == "":
    return "--password is empty; leave it out, or give a word"
  return None
