"""Words that tell results apart whose model, task and data are called the same.

A set may have been measured with other templates, from other files, or with
other labels.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from clip_jax import terminal
from clip_jax.results import addresses, collected

_PROMPTS = re.compile(r"\b(\d+) prompts? of \d+ class")
_CAPTIONS = re.compile(r"\b(captions as ('[^']*'|\"[^\"]*\"))")
_LONGEST = 60


def name_apart(results: Iterable[collected.Result]) -> list[collected.Result]:
  """Returns the results in their order; `apart` says how each differs.

  The only one that is measured as published keeps the plain name.
  """
  found = [dataclasses.replace(x, apart=()) for x in results]
  alike: dict[tuple[str, str, str], list[int]] = {}
  for place, result in enumerate(found):
    key = (result.model, result.task, result.title)
    alike.setdefault(key, []).append(place)
  for places in alike.values():
    several = [found[place] for place in places]
    published = [x for x in several if x.as_published and x.compared]
    for place, words in zip(places, _words(several), strict=True):
      if len(several) > 1 and published != [found[place]]:
        found[place] = dataclasses.replace(found[place], apart=words)
  return found


def _words(several: Sequence[collected.Result]) -> list[tuple[str, ...]]:
  """Returns what differs of each result, enough that no two are the same."""
  words: list[tuple[str, ...]] = [()] * len(several)
  for say in (_said, *_FURTHER):
    found = [say(x) for x in several]
    differ = [
      any(part != x[i] for x in found) for i, part in enumerate(found[0])
    ]
    words = [
      (*own, *(part for part, other in zip(x, differ, strict=True) if other))
      for own, x in zip(words, found, strict=True)
    ]
    words = [tuple(filter(None, own)) for own in words]
    if len(set(words)) == len(words):
      return words
  return [(*own, f"number {n}") for n, own in enumerate(words, 1)]


def _said(result: collected.Result) -> tuple[str, ...]:
  """Returns what is always said where it differs: data, prompts, labels."""
  data, protocol = result.values.get("data"), result.values.get("protocol")
  data = addresses.shown(data, limit=_LONGEST) if isinstance(data, str) else ""
  protocol = protocol if isinstance(protocol, str) else ""
  prompts, captions = _PROMPTS.search(protocol), _CAPTIONS.search(protocol)
  return (
    data,
    _counted(prompts[1], "prompt") if prompts else "",
    terminal.printable(captions[1], limit=_LONGEST) if captions else "",
    _number(result, "classes", "class", "classes"),
  )


def _counted(number: str, what: str) -> str:
  return f"{number} {what if number == '1' else terminal.noun(2, what)}"


def _number(
  result: collected.Result, name: str, one: str, many: str = ""
) -> str:
  found = result.number(name)
  if found is None:
    return ""
  return f"{found:,.15g} {terminal.noun(found, one, many)}"


def _text(name: str, words: str, *, limit: int = _LONGEST):
  """Returns what says a text of a result, behind some words."""

  def say(result: collected.Result) -> tuple[str, ...]:
    value = result.values.get(name)
    if not isinstance(value, str):
      return ("",)
    return (f"{words} {addresses.shown(value)[:limit]}",)

  return say


def _shots(result: collected.Result) -> tuple[str, ...]:
  shots = collected.entries(result.values.get("shots"))
  found = [collected.number(entry.get("k")) for entry in shots]
  listed = ", ".join(f"{k:g}" for k in found if k is not None)
  return (f"shots {listed[:_LONGEST]}" if listed else "",)


_Say = Callable[[collected.Result], tuple[str, ...]]
# Said as far as they are needed, in this order.
_FURTHER: tuple[_Say, ...] = (
  _text("prompts_hash", "prompts", limit=8),
  _text("features", "features"),
  lambda x: (_number(x, "neighbours", "neighbour"),),
  _shots,
  _text("duplicates", "duplicates:"),
  _text("groups", "groups of"),
  _text("train_data", "trained on"),
  _text("folds_from", "folds of"),
  lambda x: (_number(x, "examples", "example"),),
  lambda x: ("" if x.step is None else f"step {x.step}",),
  lambda x: (x.file,),
)
