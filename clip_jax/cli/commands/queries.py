"""The action `data queries`."""

import argparse
import os

from clip_jax import errors, terminal
from clip_jax.cli import verb
from clip_jax.data import account
from clip_jax.data.curation import corpus, making


def queries(arguments: argparse.Namespace) -> verb.Answer:
  """Writes a list of queries."""
  rule = making.Rule(
    min_count=arguments.min_count,
    min_pmi=arguments.min_pmi,
    ignore_case=arguments.ignore_case,
  )
  _check_once(arguments.texts)
  inputs = [
    corpus.open_input(
      text, column=arguments.column, min_views=arguments.min_views or 0
    )
    for text in arguments.texts
  ]
  for text, each in zip(arguments.texts, inputs, strict=True):
    if isinstance(each, corpus.Captions):
      account.tell(each.source, text)
  with terminal.Progress("queries", unit="texts") as progress:
    found = making.make(
      inputs,
      arguments.out,
      rule,
      workers=arguments.workers,
      on_texts=lambda texts: progress(texts, None),
    )
  bad = ", ".join(f"{n} {why}" for why, n in found["bad"].items())
  lines = [
    f"Wrote {terminal.counted(found['queries'], 'query', 'queries')} to "
    f"{found['out']}, their sources and counts to {found['table']}",
    f"read: {terminal.quantity(found['texts'])} "
    f"{terminal.noun(found['texts'], 'text')}, "
    f"{terminal.quantity(found['words'])} "
    f"{terminal.noun(found['words'], 'word')}; bad: {bad or 'none'}",
  ]
  rows = [
    (kind, number, found["only"][kind], ", ".join(found["examples"][kind][:5]))
    for kind, number in found["sources"].items()
    if number
  ]
  table = terminal.table(("source", "queries", "nowhere else", "such as"), rows)
  return verb.Answer(
    {"inputs": arguments.texts, **found}, "\n".join([*lines, "", table])
  )


def _check_once(texts: list[str]) -> None:
  """Raises UserError where a text is named twice, which counts twice."""
  seen: dict[str, str] = {}
  for text in texts:
    name = os.path.realpath(text) if os.path.exists(text) else text
    if name in seen:
      raise errors.UserError(
        f"{text!r} is given twice, and would be counted twice; leave one out."
      )
    seen[name] = text
