"""The action `data stats`."""

import argparse
from typing import Any

from clip_jax import preprocess, terminal
from clip_jax.cli import verb
from clip_jax.cli.commands import data
from clip_jax.data import account, sources
from clip_jax.data.statistics import examine, summary
from clip_jax.results import data_page

_ROWS = {
  "captions of an image": ("captions", "per_record"),
  "characters": ("captions", "characters"),
  "words": ("captions", "words"),
  "tokens": ("captions", "tokens"),
  "width": ("images", "width"),
  "height": ("images", "height"),
  "width over height": ("images", "aspect"),
  "bytes": ("images", "bytes"),
}
_SHOWN = 5


def stats(arguments: argparse.Namespace) -> verb.Answer:
  """Measures captions and images of a source, and draws them."""
  if arguments.out is not None:
    data_page.check(arguments.out)
  source = sources.open_source(arguments.data)
  account.tell(source, arguments.data)
  with terminal.Progress("stats", unit="records") as progress:
    seen = summary.look(
      source,
      workers=arguments.workers,
      decode=arguments.decode,
      by_language=arguments.languages,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      on_record=lambda done: progress(done, len(source)),
    )
  found = summary.summarize(seen, source)
  payload: dict[str, Any] = {"data": arguments.data, **found}
  text = _text(arguments.data, found)
  if arguments.out is not None:
    samples = summary.samples(seen, source, data_page.SAMPLES)
    payload["page"] = data_page.write(
      arguments.out, found, samples, address=arguments.data
    )
    text += f"\n\nWrote {payload['page']}"
  problem = data.nothing_good(arguments.data, found)
  return verb.Answer(payload, text, problem=problem)


def _text(address: str, found: dict[str, Any]) -> str:
  captions, images = found["captions"], found["images"]
  lines = [
    f"{address}: {terminal.counted(found['records'], 'record')}, "
    f"{found['good']} good",
    f"bad: {terminal.counts(found['bad'])}",
    f"captions: {captions['number']}, {captions['different']} different; "
    f"{captions['cut']} ({terminal.percent(captions['cut_share'])}) have more "
    f"than {examine.CONTEXT} tokens and are cut",
    f"scripts: {terminal.counts(captions['scripts'])}",
    *(
      [f"languages: {terminal.counts(captions['languages'])}"]
      if captions["languages"] is not None
      else []
    ),
    f"images: {images['different']} different; "
    f"{terminal.counts(images['formats'])}; {terminal.counts(images['modes'])}",
  ]
  rows = []
  for name, (part, key) in _ROWS.items():
    numbers = found[part][key]
    if numbers["percentiles"]:
      middle = [numbers["percentiles"][p] for p in ("5", "50", "95")]
      least, most = numbers["min"], numbers["max"]
      rows.append((name, *(f"{x:.4g}" for x in (least, *middle, most))))
  heads = ("", "least", "5 %", "median", "95 %", "most")
  lines += ["", terminal.table(heads, rows)] if rows else []
  for kind, name in ((captions, "caption"), (images, "key")):
    if top := kind["top"][:_SHOWN]:
      shown = [(terminal.escaped(x[name], limit=60), x["count"]) for x in top]
      lines += ["", terminal.table((f"repeated {name}", "times"), shown)]
  return "\n".join(lines)
