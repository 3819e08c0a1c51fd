"""Which label stands for which class of some data, by their names."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from clip_jax.evals import prompts
from clip_jax.evals.suite import data_sets

_LETTER = re.compile(r"^/[a-z]/")  # SUN397 writes "/a/abbey".
_IMAGENET = "imagenet"


def normalise(name: str) -> str:
  """Returns the part of a class's name that is compared: letters and digits.

  Of a number, its zeros at the beginning do not count.
  """
  name = unicodedata.normalize("NFKC", name).casefold().strip()
  kept = "".join(filter(str.isalnum, _LETTER.sub("", name)))
  is_number = kept.isascii() and kept.isdigit()
  return (kept.lstrip("0") or "0") if is_number else kept


def in_order(
  labels: prompts.Labels, names: Sequence[str]
) -> prompts.Labels | None:
  """Returns labels in the order of the classes, if they are named as these.

  Capitals, spaces and punctuation may differ. Labels of further classes, of
  which the data have no image, come last.

  Args:
    labels: in any order.
    names: of the data's classes.

  Returns:
    None where a class has no label of its name, or several.
  """
  own = prompts.label_names(labels)
  if len(own) == len(names) and set(own) == set(names):
    return _chosen(labels, [own.index(name) for name in names])
  for key in (str, normalise):
    places = {key(name): place for place, name in enumerate(own)}
    wanted = list(map(key, names))
    is_unique = len(places) == len(own) and len(set(wanted)) == len(wanted)
    if is_unique and places.keys() >= set(wanted):
      chosen = [places.pop(name) for name in wanted]
      return _chosen(labels, [*chosen, *places.values()])
  return None


def _chosen(labels: prompts.Labels, places: Sequence[int]) -> prompts.Labels:
  """Returns the labels at these places."""
  if isinstance(labels, Mapping):
    kind = prompts.NamesByClass if prompts.takes_templates(labels) else dict
    names = list(labels)
    return kind({names[place]: labels[names[place]] for place in places})
  return [labels[place] for place in places]


def of_wordnet(names: Sequence[str]) -> prompts.NamesByClass | None:
  """Returns the names of classes that are called by ImageNet's WordNet ids.

  They are those that OpenAI made for the paper's prompts. None where a class is
  called otherwise.
  """
  classes = data_sets.classes_of(_IMAGENET)
  known = dict(zip(classes.keys, classes.synonyms, strict=True))
  if not names or not set(names) <= known.keys():
    return None
  return prompts.NamesByClass({name: known[name] for name in names})
