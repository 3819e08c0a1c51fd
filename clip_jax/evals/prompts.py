"""The prompts that labels and templates make, and their embeddings."""

import collections
import dataclasses
import hashlib
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from clip_jax import errors, tokenizer

DEFAULT_TEMPLATE = "a photo of a {}."  # Paper, section 3.1.4.
_PROMPTS_PER_CALL = 1024

EmbedTexts = Callable[[list[str]], np.ndarray]
# A list of names, in which a list stands for synonyms; or full prompts by name,
# or names by class (`NamesByClass`).
Labels = Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]]


class NamesByClass(dict[str, str | Sequence[str]]):
  """Labels whose values are names for the templates, not full prompts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompts:
  """The classes of a zero-shot classifier and every prompt of each class."""

  names: tuple[str, ...]
  texts: tuple[tuple[str, ...], ...]

  @property
  def digest(self) -> str:
    """SHA-256 of the names and of every text."""
    content = json.dumps([self.names, self.texts], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def resolve(
  labels: Labels,
  templates: Sequence[str] | None = None,
  *,
  may_repeat: bool = False,
) -> Prompts:
  """Returns the prompts of `labels`, each name put into each template.

  Labels of a dictionary bring their full prompts, which no template changes;
  those of `NamesByClass` bring names for the templates.

  Args:
    labels: of the classes.
    templates: None takes "a photo of a {}.".
    may_repeat: whether classes may have the same name, as those of data may.

  Raises:
    UserError: no label, an empty one or one given twice; no template, or one
      without exactly one placeholder.
  """
  if isinstance(templates, np.ndarray) and templates.ndim == 1:
    templates = templates.tolist()
  is_one = isinstance(templates, str | bytes | bytearray)
  if is_one or not isinstance(templates, Sequence | None):
    raise errors.UserError(
      "Templates must be a list of texts with a placeholder {}, got "
      f"{templates!r:.100}."
    )
  if templates is not None and not len(templates):
    raise errors.UserError(
      "There is no template in an empty list; leave templates out to take "
      f"{DEFAULT_TEMPLATE!r}."
    )
  if isinstance(labels, str):
    raise errors.UserError(
      f"Labels must be a list of texts, got the text {labels!r}; write "
      f"[{labels!r}]."
    )
  if isinstance(labels, bytes | bytearray):
    raise errors.UserError(
      "Labels must be a list of texts, got bytes; write them as .decode()."
    )
  if isinstance(labels, set | frozenset) or (
    not isinstance(labels, Iterable) or getattr(labels, "shape", None) == ()
  ):
    ordered = "; a set has no order: write sorted(labels)"
    raise errors.UserError(
      f"Labels must be a list of texts, got {type(labels).__name__}"
      f"{ordered if isinstance(labels, set | frozenset) else ''}."
    )
  if isinstance(labels, Mapping):
    names = tuple(labels)
    texts = tuple(_synonyms(value) for value in labels.values())
  else:
    texts = tuple(_synonyms(label) for label in labels)
    names = tuple(several[0] for several in texts)
  if not takes_templates(labels):
    if templates is not None:
      raise errors.UserError(
        "The labels are full prompts, which no template changes: leave the "
        'template out, or write {"names": {…}} around names for it.'
      )
  else:
    if templates is None:
      templates = (DEFAULT_TEMPLATE,)
    fills = [parse_template(t) for t in templates]
    texts = tuple(
      tuple(
        before + name + after for name in several for before, after in fills
      )
      for several in texts
    )
  if not names:
    raise errors.UserError("There are no labels; name at least one.")
  if not may_repeat and (twice := repeated(names)):
    raise errors.UserError(
      f"Labels must differ, but given more than once: {', '.join(twice[:5])}."
    )
  return Prompts(names, texts)


def takes_templates(labels: Labels) -> bool:
  """Whether the labels are names, and not full prompts."""
  return not isinstance(labels, Mapping) or isinstance(labels, NamesByClass)


def label_names(labels: Labels) -> list[str]:
  """Returns the name of each label: of synonyms the first."""
  if isinstance(labels, Mapping):
    return list(labels)
  return [_synonyms(label)[0] for label in labels]


def _synonyms(label: str | Sequence[str]) -> tuple[str, ...]:
  several = tuple(label) if isinstance(label, list | tuple) else (label,)
  texts = tuple(s for s in several if isinstance(s, str) and s.strip())
  if not texts or len(texts) < len(several):
    raise errors.UserError(
      f"A label must be a text or a list of texts, none of them empty; got "
      f"{label!r:.200}."
    )
  return texts


def repeated(names: Sequence[str]) -> list[str]:
  """Returns the names that stand for more than one class, sorted."""
  counts = collections.Counter(names)
  return sorted(name for name, count in counts.items() if count > 1)


def look_alikes(prompts: Prompts) -> list[str]:
  """Returns the names that most models cannot tell from a later class's.

  Such are those whose prompts differ in capitals and white space alone, or in
  nothing.
  """
  groups: dict[str, list[str]] = {}
  for name, texts in zip(prompts.names, prompts.texts, strict=True):
    groups.setdefault(tokenizer.plain("\n".join(texts)), []).append(name)
  return [names[0] for names in groups.values() if len(names) > 1]


def parse_template(template: str) -> tuple[str, str]:
  """Returns the texts before and after the one placeholder of `template`.

  Raises:
    UserError: the placeholder, `{}` or `{word}`, is missing or not alone.
  """
  try:
    pieces = list(string.Formatter().parse(template))
  except (ValueError, TypeError) as error:
    raise _template_error(template, str(error)) from None
  holes = [i for i, piece in enumerate(pieces) if piece[1] is not None]
  if len(holes) != 1:
    raise _template_error(template, f"it has {len(holes)}")
  _, field, layout, conversion = pieces[holes[0]]
  if layout or conversion or not (not field or field.isidentifier()):
    raise _template_error(template, "it is not a plain {}")
  texts = [piece[0] for piece in pieces]
  return "".join(texts[: holes[0] + 1]), "".join(texts[holes[0] + 1 :])


def _template_error(template: str, why: str) -> errors.UserError:
  return errors.UserError(
    f"Template {template!r:.200} must have exactly one placeholder {{}} for "
    f"the label ({why}); for example {DEFAULT_TEMPLATE!r}."
  )


def class_embeddings(prompts: Prompts, embed_texts: EmbedTexts) -> np.ndarray:
  """Returns one unit vector a class: the mean direction of its prompts.

  The ensemble is made in the embedding space (paper, section 3.1.4): each
  prompt's embedding is scaled to unit length, their mean again.
  """
  sums = class_sums(prompts, embed_texts)
  return normalize(sums, what="class").astype(np.float32)  # (classes, embed)


def class_sums(prompts: Prompts, embed_texts: EmbedTexts) -> np.ndarray:
  """Returns the sum of the unit embeddings of each class's prompts, float64."""
  owners = np.repeat(
    np.arange(len(prompts.names)), [len(several) for several in prompts.texts]
  )
  flat = [text for several in prompts.texts for text in several]
  sums = None
  for start in range(0, len(flat), _PROMPTS_PER_CALL):
    part = slice(start, start + _PROMPTS_PER_CALL)
    embeds = normalize(embed_texts(flat[part]), what="text")
    if sums is None:
      sums = np.zeros((len(prompts.names), embeds.shape[1]))
    np.add.at(sums, owners[part], embeds)
  assert sums is not None  # A class has a prompt.
  return sums  # (classes, embed)


def normalize(embeds: np.ndarray, *, what: str) -> np.ndarray:
  """Returns `embeds` (n, embed) at unit length.

  Raises:
    UserError: a value is not finite, or a vector has no direction.
  """
  embeds = np.asarray(embeds)
  norms = np.linalg.norm(embeds, axis=1, keepdims=True)
  if not np.all(np.isfinite(norms)) or not np.all(norms > 0):
    broken = int(np.sum(~(np.isfinite(norms) & (norms > 0))))
    raise errors.UserError(
      f"The model gives {broken} of {len(embeds)} {what} embeddings that are "
      "zero or not finite; its parameters are damaged or its training "
      "diverged. Use an earlier checkpoint."
    )
  return embeds / norms
