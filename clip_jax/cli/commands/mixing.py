"""The action `data mix`."""

import argparse
import itertools
import shlex
from typing import Any

from clip_jax import config as config_lib
from clip_jax import errors, preprocess, terminal
from clip_jax.cli import verb
from clip_jax.data import account, mixing, mixture, prepare, shares, sources
from clip_jax.train import run_data


def mix(arguments: argparse.Namespace) -> verb.Answer:
  """Says what a run gets of several sources, or writes it."""
  if arguments.out is not None:
    errors.check_out(arguments.out)
  data = _data(arguments)
  mixed = run_data.open_training(data, sources.open_source)
  assert isinstance(mixed, mixture.Mixture)
  for part in mixed.parts:
    account.tell(part.source, part.address)
  number = arguments.examples or len(mixed)
  limits = preprocess.Limits(max_pixels=arguments.max_pixels)
  examples = mixing.Examples(mixed, number, seed=arguments.seed, limits=limits)
  payload = {
    "config": {
      "data.train": data.train,
      "data.temperature": data.temperature,
      "data.held_out": data.held_out,
      "seed": arguments.seed,
    },
    "records": len(mixed),
    "examples": number,
    "sources": _sources(mixed, number),
    "first": [
      {
        "key": record.key,
        "texts": record.texts,
        "replaces": [str(bad) for bad in met],
      }
      for record, met in map(
        examples.with_replaced, range(min(arguments.first, number))
      )
    ],
  }
  text = _text(payload)
  if arguments.out is not None:
    written = _write(examples, data.train, arguments)
    replaced = written.get("replaced", {})
    payload |= {"out": arguments.out, "written": written["written"]}
    payload["replaced"] = replaced
    did = "Wrote" if written["written"] else "Already there:"
    text += (
      f"\n\n{did} {terminal.counted(written['records'], 'example')}; read "
      f"{terminal.noun(written['records'], 'it', 'them in this order')} from "
      f"arrayrecord:{arguments.out}"
    )
    if replaced:
      why = ", ".join(f"{count} {reason}" for reason, count in replaced.items())
      text += (
        "\nBad records were replaced by others of their source, as in training"
        f": {why}. `clip-jax data inspect DATA` lists what is wrong."
      )
  return verb.Answer(payload, text)


def _data(arguments: argparse.Namespace) -> config_lib.Data:
  """Returns the fields of a run's config, checked as they are there."""
  weights = arguments.weights or itertools.repeat(1, len(arguments.data))
  data = config_lib.Data(
    train=config_lib.mixture(zip(arguments.data, weights, strict=True)),
    temperature=arguments.temperature or 0.0,
    held_out=arguments.held_out,
  )
  config = config_lib.Config(steps=1, seed=arguments.seed, data=data)
  return config_lib.check(config).data


def _sources(mixed: mixture.Mixture, examples: int) -> list[dict[str, Any]]:
  weights = [part.weight for part in mixed.parts]
  counts = shares.counts(weights, examples)
  return [
    {
      "address": part.address,
      "weight": part.weight,
      "share": part.weight / sum(weights),
      "records": len(part.source),
      "examples": count,
      "passes": count / len(part.source),
      "first_epoch_ends": end,
    }
    for part, count, end in zip(
      mixed.parts, counts, mixing.epoch_ends(mixed), strict=True
    )
  ]


def _write(
  examples: mixing.Examples, train: str, arguments: argparse.Namespace
) -> dict[str, Any]:
  with terminal.Progress("mix", unit="examples") as progress:
    return prepare.prepare(
      examples,
      arguments.out,
      address=train,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      workers=arguments.workers,
      on_record=lambda done: progress(done, len(examples)),
    )


def _text(found: dict[str, Any]) -> str:
  # All of them: a config may have others than the defaults.
  flags = [
    shlex.quote(f"--config.{field}={value}")
    for field, value in found["config"].items()
  ]
  rows = [
    (
      terminal.escaped(each["address"]),
      each["weight"],
      terminal.percent(each["share"]),
      each["records"],
      each["examples"],
      f"{each['passes']:.3g}",
      each["first_epoch_ends"],
    )
    for each in found["sources"]
  ]
  heads = ("source", "weight", "share", "records", "examples", "passes")
  lines = [
    f"{terminal.counted(found['examples'], 'example')} of "
    f"{terminal.counted(found['records'], 'record')}:",
    "",
    terminal.table((*heads, "first repeat after"), rows),
    "",
    "to train on it:",
    *(f"  {flag}" for flag in flags),
  ]
  if found["first"]:
    shown = [
      (
        number,
        terminal.escaped(each["key"], limit=60),
        terminal.escaped(" | ".join(each["texts"]), limit=60),
      )
      for number, each in enumerate(found["first"])
    ]
    lines += ["", terminal.table(("example", "record", "texts"), shown)]
    lines += [
      f"{number} is in place of "
      f"{terminal.escaped(', '.join(each['replaces']), limit=200)}"
      for number, each in enumerate(found["first"])
      if each["replaces"]
    ]
  return "\n".join(lines)
