"""The actions of `data` that read records as they are: inspect and prepare."""

import argparse
from typing import Any

from clip_jax import preprocess, terminal
from clip_jax.cli import verb
from clip_jax.data import account, copying, inspection, prepare, sources

_MOST_BAD_SHOWN = 20  # Lines; --json holds more.


def inspect_data(arguments: argparse.Namespace) -> verb.Answer:
  """Says what is in data, and what is wrong with it."""
  source = sources.open_source(arguments.data, with_texts=False)
  with terminal.Progress("inspect", unit="records") as progress:
    found = inspection.inspect(
      source,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      on_record=lambda done: progress(done, len(source)),
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
    problem=nothing_good(arguments.data, found),
  )


def nothing_good(address: str, found: dict[str, Any]) -> str:
  """Returns the sentence on data without any good record; "" for others."""
  if found["good"]:
    return ""
  bad = terminal.counts(found["bad"])
  return f"{terminal.escaped(address)} has no good record: {bad}."


def prepare_data(arguments: argparse.Namespace) -> verb.Answer:
  """Writes data as files that are read fast and in any order."""
  source = sources.open_source(arguments.data)
  losses = account.of(source)
  account.tell(source, arguments.data)
  with terminal.Progress("prepare", unit="records") as progress:
    summary = prepare.prepare(
      source,
      arguments.out,
      address=arguments.data,
      drop_bad=arguments.drop_bad,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      shortest_side=arguments.shortest_side,
      quality=arguments.quality or copying.QUALITY,
      workers=arguments.workers,
      on_record=lambda done: progress(done, len(source)),
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
