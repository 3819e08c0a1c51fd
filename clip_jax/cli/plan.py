"""The verb that says what a run needs, before any chip is rented."""

import argparse
import os

from clip_jax.cli import flags, verb

DOES_NOT_FIT = 1
# Data are not read: any address will do.
_NO_DATA = "data.train=not-read"


def _add_plan(parser: flags.Parser) -> None:
  flags.add_config(parser)
  parser.add_argument(
    "--topology",
    default="local",
    metavar="NAME",
    help="chips and the shape of a slice, such as v5e:16x16, v4:4x4x8, "
    "v5p:4x4x4, v6e:16x16; or local, the devices here (default: local)",
  )
  parser.add_argument(
    "--suggest",
    action="store_true",
    help="search mesh, remat, micro-batches and loss for what fits",
  )
  parser.add_argument(
    "--examples",
    type=flags.count,
    metavar="N",
    help="pairs in the data, for a config that counts epochs",
  )
  parser.add_argument(
    "--caption-tokens",
    type=flags.count,
    metavar="N",
    help="tokens of a caption in the mean, start and end included, for texts "
    "that are packed or cut; their spread is taken from CC3M's captions "
    "(default: each as many as the tower takes)",
  )
  parser.add_argument(
    "--price-per-chip-hour",
    type=_price,
    metavar="X",
    help="of one chip for an hour, in any currency; gives the cost",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE [--topology NAME] [--config.FIELD=VALUE ...] "
    "[--suggest]\n       [--examples N] [--caption-tokens N] "
    "[--price-per-chip-hour X] [--json]"
  )


def _price(text: str) -> float:
  try:
    price = float(text)
  except ValueError:
    price = -1.0
  if not 0 <= price < float("inf"):
    raise argparse.ArgumentTypeError(f"must be at least 0; got {text!r}")
  return price


def plan(arguments: argparse.Namespace) -> verb.Answer:
  """Compiles the step of a config and words what it takes."""
  if arguments.topology != "local":
    # Nothing runs; a TPU that is here stays free for others.
    os.environ["JAX_PLATFORMS"] = "cpu"
  from clip_jax import config as config_lib
  from clip_jax.plan import jobs, planner, report, topology

  config = config_lib.load(arguments.config, [*arguments.overrides, _NO_DATA])
  where = topology.make_topology(arguments.topology)
  price = {"price_per_chip_hour": arguments.price_per_chip_hour}
  if arguments.suggest:
    return _suggest(arguments, config, where, price)
  job = jobs.make_job(config, where, **_options(arguments))
  found = planner.make_plan(job)
  return verb.Answer(
    report.to_dict(found, **price),
    report.to_text(found, **price),
    code=DOES_NOT_FIT if found.fits is False else 0,
  )


def _options(arguments) -> dict[str, int | None]:
  return {
    "examples": arguments.examples,
    "caption_tokens": arguments.caption_tokens,
  }


def _suggest(arguments, config, where, price) -> verb.Answer:
  from clip_jax.plan import report, suggest

  found = suggest.suggest(config, where, **_options(arguments))
  options = {**price, "searched": True}
  flags_of = " ".join(f"--config.{change}" for change in found.overrides)
  said = "The cheapest that fits" if found.fits else "Nothing fits; closest is"
  payload = {
    **report.to_dict(found.plan, **options),
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
  text = f"{said}:\n\n  {flags_of}\n\n{report.to_text(found.plan, **options)}"
  return verb.Answer(payload, text, code=0 if found.fits else DOES_NOT_FIT)


VERBS = {
  "plan": verb.Verb(
    "say what a run needs and takes, before it starts",
    _add_plan,
    plan,
    takes_overrides=True,
  ),
}
