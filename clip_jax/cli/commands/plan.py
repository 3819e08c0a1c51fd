"""The verb `plan`: estimates a run's memory and time before it starts."""

import argparse

import jax

from clip_jax import config as config_lib
from clip_jax.cli import verb
from clip_jax.plan import jobs, planner, presentation, suggest, topology

# A config needs an address of data, which the planner never opens.
_NO_DATA = "data.train=not-read"


def plan(arguments: argparse.Namespace) -> verb.Answer:
  """Compiles a config's training step and prints its memory, time and cost."""
  if arguments.topology != "local":
    # Nothing runs on this machine's devices, so they are left to others.
    jax.config.update("jax_platforms", "cpu")
  config = config_lib.load(arguments.config, [*arguments.overrides, _NO_DATA])
  target = topology.make_topology(arguments.topology)
  price = {"price_per_chip_hour": arguments.price_per_chip_hour}
  if arguments.suggest:
    found = suggest.suggest(config, target, **_lengths(arguments))
    return _suggested(found, price)
  job = jobs.make_job(config, target, **_lengths(arguments))
  planned = planner.make_plan(job)
  payload = presentation.to_dict(planned, **price)
  verdict = presentation.verdict(payload).splitlines()[0].removesuffix(".")
  problem = f"{verdict}. --suggest looks for settings that fit."
  return verb.Answer(
    payload,
    presentation.to_text(planned, **price),
    problem=problem if planned.fits is False else "",
  )


def _lengths(arguments) -> dict[str, int | None]:
  """Returns the sizes of the data that the planner assumes."""
  return {
    "examples": arguments.examples,
    "caption_tokens": arguments.caption_tokens,
  }


def _suggested(found: suggest.Suggestion, price) -> verb.Answer:
  options = {**price, "searched": True}
  changed = " ".join(f"--config.{change}" for change in found.overrides)
  heading = (
    "The cheapest that fits" if found.fits else "Nothing fits; closest is"
  )
  payload = {
    **presentation.to_dict(found.plan, **options),
    "overrides": found.overrides,
    "tried": [
      {
        "overrides": choice.overrides(found.plan.job),
        "fits": tried.fits,
        "peak_bytes": tried.peak_bytes,
      }
      for choice, tried in found.tried
    ],
  }
  planned = presentation.to_text(found.plan, **options)
  text = f"{heading}:\n\n  {changed}\n\n{planned}"
  problem = "" if found.fits else "None of the settings that were tried fits."
  return verb.Answer(payload, text, problem=problem)
