"""The verb `data`: which function runs each of its actions."""

import argparse

from clip_jax import preprocess, terminal
from clip_jax.cli import verb
from clip_jax.cli.commands import curation, mixing, stats, suite
from clip_jax.cli.commands import queries as queries_command
from clip_jax.data import account, copying, inspection, prepare, sources
from clip_jax.data.curation import curate
from clip_jax.data.curation import queries as queries_lib

_MOST_BAD_SHOWN = 20  # Lines; --json holds more.


def data(arguments: argparse.Namespace) -> verb.Answer:
  """Runs one action: inspects, prepares, curates … data."""
  if (command := _OPEN_THEMSELVES.get(arguments.action)) is not None:
    return command(arguments)
  source = sources.open_source(arguments.data)
  with terminal.Progress(arguments.action, unit="records") as progress:
    return _ACTIONS[arguments.action](
      arguments, source, lambda done: progress(done, len(source))
    )


def _inspect(arguments, source, on_record) -> verb.Answer:
  found = inspection.inspect(
    source, limits=_limits(arguments), on_record=on_record
  )
  lines = [
    f"{arguments.data}: {terminal.counted(found['records'], 'record')}, "
    f"{found['good']} good, {terminal.counted(found['texts'], 'text')}, "
    f"{terminal.quantity(found['image_bytes'])}B",
    f"bad: {terminal.counts(found['bad'])}",
  ]
  bad_keys = found["bad_keys"][:_MOST_BAD_SHOWN]
  lines += [f"  {terminal.escaped(k)}: {why}" for k, why in bad_keys]
  if more := sum(found["bad"].values()) - len(bad_keys):
    lines.append(f"  and {more} more; --json lists {len(found['bad_keys'])}")
  lines += [
    f"{why}: {terminal.escaped(hint, limit=400)}."
    for why, hint in found["hints"].items()
  ]
  losses = account.of(source)
  if losses.lost_records:
    lines.append(f"lost: {losses.lost_in_words}, which are not counted above")
  lines += losses.sentences(most_files=_MOST_BAD_SHOWN)
  lines += [note for note in found["notes"] if note not in losses.notes]
  names = found["class_names"]
  if names:
    shown = [terminal.printable(name, limit=40) for name in names[:10]]
    more = ", …" if len(names) > len(shown) else ""
    lines.append(f"classes: {len(names)} ({', '.join(shown)}{more})")
  rows = [
    (
      terminal.escaped(entry["key"]),
      f"{entry['width']}x{entry['height']}",
      "-" if entry["label"] is None else entry["label"],
      " | ".join(entry["texts"]),
    )
    for entry in found["first"]
  ]
  table = terminal.table(("key", "size", "label", "texts"), rows)
  return verb.Answer(
    {"data": arguments.data, **found},
    "\n".join([*lines, "", table]),
    problem=stats.nothing_good(arguments.data, found),
  )


def _prepare(arguments, source, on_record) -> verb.Answer:
  losses = account.of(source)
  account.tell(source, arguments.data)
  summary = prepare.prepare(
    source,
    arguments.out,
    address=arguments.data,
    drop_bad=arguments.drop_bad,
    limits=_limits(arguments),
    shortest_side=arguments.shortest_side,
    quality=arguments.quality or copying.QUALITY,
    workers=arguments.workers,
    on_record=on_record,
  )
  did = "Wrote" if summary["written"] else "Already there:"
  parts = [terminal.counted(summary["records"], "record")]
  if arguments.shortest_side is not None:
    parts.append(
      f"{terminal.counted(summary['resized'], 'image')} made smaller"
    )
  bad = sum(summary["bad"].values())
  left_out = f"{terminal.noun(bad, 'bad one')} left out"
  what = left_out if arguments.drop_bad else "of them bad"
  why = f" ({terminal.counts(summary['bad'])})" if bad else ""
  parts.append(f"{bad} {what}{why}")
  if losses.lost_records:
    parts.append(f"{losses.lost_in_words} lost")
  text = f"{did} {', '.join(parts)}; train on arrayrecord:{arguments.out}"
  payload = {"out": arguments.out, **summary, **losses.to_dict()}
  return verb.Answer(payload, text)


def _curate(arguments, source, on_record) -> verb.Answer:
  account.tell(source, arguments.data)
  rule = curate.Rule(
    queries_lib.read_all(arguments.queries),
    max_per_query=arguments.max_per_query,
    tail_share=arguments.tail_share,
    size=arguments.size,
    seed=arguments.seed,
    ignore_case=arguments.ignore_case,
  )
  found = curate.curate(
    source,
    arguments.out,
    rule,
    address=arguments.data,
    workers=arguments.workers,
    limits=_limits(arguments),
    on_record=on_record,
    fill=curation.fill(arguments),
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


def _limits(arguments):
  return preprocess.Limits(max_pixels=arguments.max_pixels)


_ACTIONS = {"inspect": _inspect, "prepare": _prepare, "curate": _curate}
# The actions that open the data themselves.
_OPEN_THEMSELVES = {
  "doctor": suite.doctor,
  "filter": curation.filter_pairs,
  "dedupe": curation.dedupe,
  "mix": mixing.mix,
  "queries": queries_command.queries,
  "stats": stats.stats,
}
