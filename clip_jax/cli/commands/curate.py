"""The action `data curate`."""

import argparse
import shlex

from clip_jax import errors, preprocess, terminal
from clip_jax.cli import verb
from clip_jax.data import account, sources
from clip_jax.data.curation import beam_runner, survey
from clip_jax.data.curation import curate as curate_lib
from clip_jax.data.curation import queries as queries_lib


def fill(arguments: argparse.Namespace) -> survey.Fill | None:
  """Returns the function for --runner; None for processes here."""
  if arguments.runner == "local":
    return None
  try:
    words = shlex.split(arguments.beam_options or "")
  except ValueError as error:
    raise errors.UserError(
      f"--beam-options {arguments.beam_options!r} cannot be split into words: "
      f"{error}."
    ) from None
  return beam_runner.fill(words, workers=arguments.workers)


def curate(arguments: argparse.Namespace) -> verb.Answer:
  """Writes a part of data in which no query of a list has too many pairs."""
  source = sources.open_source(arguments.data)
  account.tell(source, arguments.data)
  rule = curate_lib.Rule(
    queries_lib.read_all(arguments.queries),
    max_per_query=arguments.max_per_query,
    tail_share=arguments.tail_share,
    size=arguments.size,
    seed=arguments.seed,
    ignore_case=arguments.ignore_case,
  )
  with terminal.Progress("curate", unit="records") as progress:
    found = curate_lib.curate(
      source,
      arguments.out,
      rule,
      address=arguments.data,
      workers=arguments.workers,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      on_record=lambda done: progress(done, len(source)),
      fill=fill(arguments),
    )
  did = "Kept" if found["written"] else "Already there:"
  repeated = found["queries_repeated"]
  again = terminal.counted(repeated, "more line repeats", "more lines repeat")
  entropy = found["entropy_bits"]
  lines = [
    f"{did} {found['kept']} of {terminal.counted(found['pairs'], 'pair')}; "
    f"train on arrayrecord:{arguments.out}",
    f"dropped: {terminal.counts(found['dropped'])}",
    f"queries: {found['queries']}, {found['queries_matched']} of them in "
    f"captions{f'; {again} a query' if repeated else ''}",
    f"threshold: {found['threshold']:.6g} "
    f"{terminal.noun(found['threshold'], 'pair')}; "
    f"{terminal.counted(found['queries_limited'], 'query has', 'queries have')}"
    f" more, and {terminal.percent(found['limited_share'])} of all matches",
    f"entropy of queries: {entropy['before']:.2f} bits before, "
    f"{entropy['after']:.2f} after",
  ]
  lines += [
    f"{each['language']}: "
    f"{terminal.counted(each['matched'], 'pair contains', 'pairs contain')} "
    "one of "
    f"{terminal.counted(each['queries_matched'], 'query', 'queries')}, "
    f"{each['kept']} of them {terminal.noun(each['kept'], 'stays', 'stay')}; "
    f"threshold {each['threshold']:.6g}, below it "
    f"{terminal.percent(each['tail_share'])} of matches"
    for each in found.get("languages", ())
  ]
  rows = [
    (terminal.escaped(top["query"], limit=60), top["before"], top["after"])
    for top in found["top"]
  ]
  table = terminal.table(("query", "pairs before", "after"), rows)
  return verb.Answer(
    {"data": arguments.data, "out": arguments.out, **found},
    "\n".join([*lines, "", table]),
  )
