"""The table of verbs, in the order in which `clip-jax --help` lists them."""

import importlib
from collections.abc import Callable
from typing import Any

from clip_jax import collector, interrupts
from clip_jax.cli import flags
from clip_jax.cli.arguments import (
  completion,
  conversion,
  data,
  doctor,
  models,
  plan,
  results,
  training,
  use,
)
from clip_jax.cli.verb import Verb


def _command(module: str, function: str) -> Callable[..., Any]:
  """Returns a function of `cli.commands`, imported when called."""

  def call(*arguments: Any) -> Any:
    commands = importlib.import_module(f"clip_jax.cli.commands.{module}")
    collector.resume()
    with interrupts.raised():
      return getattr(commands, function)(*arguments)

  return call


DATA_ACTIONS = {
  "inspect": _command("data", "inspect_data"),
  "prepare": _command("data", "prepare_data"),
  "doctor": _command("suite", "doctor"),
  "curate": _command("curate", "curate"),
  "filter": _command("curation", "filter_pairs"),
  "dedupe": _command("curation", "dedupe"),
  "mix": _command("mixing", "mix"),
  "queries": _command("queries", "queries"),
  "stats": _command("stats", "stats"),
}

VERBS = {
  "train": Verb(
    "train a model",
    training.add_train,
    _command("training", "train"),
    check=flags.check_processes,
    takes_overrides=True,
  ),
  "plan": Verb(
    "say what a run needs and takes, before it starts",
    plan.add_plan,
    _command("plan", "plan"),
    takes_overrides=True,
  ),
  "doctor": Verb(
    "look at devices, data and learning before a run",
    doctor.add_doctor,
    _command("doctor", "doctor"),
    check=doctor.check_doctor,
    takes_overrides=True,
  ),
  "eval": Verb(
    "measure a model on data",
    use.add_eval,
    _command("evaluation", "evaluate"),
    check=use.check_eval,
  ),
  "report": Verb(
    "draw the results of runs and evaluations",
    results.add_report,
    _command("results", "report"),
  ),
  "card": Verb(
    "write the card of a model, for people and for the hub",
    results.add_card,
    _command("results", "card"),
  ),
  "push": Verb(
    "upload a model to the HuggingFace Hub",
    results.add_push,
    _command("results", "push"),
  ),
  "classify": Verb(
    "say which label fits an image",
    use.add_classify,
    _command("classify", "classify"),
  ),
  "embed": Verb(
    "make an index of images to search in",
    use.add_embed,
    _command("embedding", "embed"),
    check=flags.check_processes,
  ),
  "search": Verb(
    "find images of an index by a text or an image",
    use.add_search,
    _command("search", "search"),
    check=use.check_search,
  ),
  "app": Verb(
    "show a model on a page in the browser",
    use.add_app,
    _command("app", "app"),
    check=use.check_app,
  ),
  "convert": Verb(
    "turn a checkpoint into another format, exactly",
    conversion.add_convert,
    _command("conversion", "convert"),
    check=conversion.check_convert,
  ),
  "verify": Verb(
    "compare a conversion with its source's own library",
    conversion.add_verify,
    _command("conversion", "verify"),
  ),
  "models": Verb(
    "list the named models, their sizes and their formats",
    models.add_models,
    _command("models", "models"),
  ),
  "data": Verb(
    "look at data, prepare it, or make a balanced part of it",
    data.add_data,
    lambda arguments: DATA_ACTIONS[arguments.action](arguments),
    check=data.check_data,
    has_actions=True,
  ),
  "completion": Verb(
    "print what a shell needs to complete commands",
    completion.add_completion,
    _command("completion", "completion"),
  ),
}

# Returns the names of a config's fields; imports the config only when called.
config_fields = _command("completion", "config_fields")
