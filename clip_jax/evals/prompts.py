"""Labels and templates as users give them, and the prompts made of them."""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from clip_jax import errors, json_text, tokenizer

_LOGGER = logging.getLogger(__name__)

DEFAULT_TEMPLATE = "a photo of a {}."  # Paper, section 3.1.4.
_PROMPTS_PER_CALL = 1024
_FEW_WORDS = 2  # Of a name rather than a prompt.
_WORDNET = re.compile(r"n\d{8}")
# splitlines() would end lines at U+2028 and others, too.
_LINE_END = re.compile("\r\n?|\n")

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


def read_labels(text: str | os.PathLike) -> Labels:
  """Returns the labels of a text: a file, or names as `parted` reads them.

  A text file holds a label a line; a JSON file a list of labels (an inner list
  holds synonyms), a dictionary from a label to its full prompts, or
  `{"names": {label: [name, …]}}`, whose names are put into the templates.
  """
  path = _as_file(text, what="labels")
  if path is None:
    text = os.fspath(text)
    is_name = os.sep not in text and text not in (os.curdir, os.pardir)
    if is_name and os.path.isdir(text):
      _LOGGER.warning(
        "%r is a directory here, too, and is read as one label, not as a "
        "file of labels.",
        text,
      )
    elif os.path.isdir(text) or (
      os.sep in text and "," not in text and len(lines(text)) < 2
    ):
      what = "are a directory" if os.path.isdir(text) else "are no file"
      raise errors.UserError(
        f"The labels {text!r} look like a path, and {what}."
        f"{errors.beside(text)} Write names separated by commas, or the path "
        "of a file."
      )
    return parted(text)
  if not path.suffix and str(path) == text:
    _LOGGER.warning(
      "The labels are read from the file %r, which is here; for one label of "
      'this name give a file with ["%s"].',
      *(text, text),
    )
  labels = _read(path, what="labels")
  if isinstance(labels, list) and _looks_parted(labels, path):
    _LOGGER.warning(
      "Each line of the file %r is a label, as it stands: %d in all, and the "
      "first is %r. Where a line holds several, write them one a line, or a "
      'list such as ["cat", "dog"] in a file that ends in .json.',
      *(str(path), len(labels), labels[0][:100]),
    )
  if not isinstance(labels, dict):
    return labels
  names = labels.get("names")
  if len(labels) == 1 and isinstance(names, dict):
    return NamesByClass(names)
  if by_id := _class_index(labels):
    return by_id
  texts = [x for x in labels.values() if isinstance(x, str)]
  if texts and len(texts) == len(labels) and max(_words(texts)) <= _FEW_WORDS:
    _LOGGER.warning(
      "The texts of %r are full prompts, as they stand: %r. For names that a "
      'template takes, write {"names": {…}} around them.',
      *(str(path), texts[0][:100]),
    )
  return labels


def _words(texts: Iterable[str]) -> Iterator[int]:
  return (len(text.split()) for text in texts)


def _class_index(labels: Mapping) -> NamesByClass | None:
  """Returns the names in a file {"0": ["n01440764", "tench"], …} by their ids.

  Keras and torchvision's examples write the classes of ImageNet so.
  """
  pairs = labels.values()
  if not all(isinstance(x, list) and len(x) == 2 for x in pairs):
    return None
  if not all(isinstance(x, str) for pair in pairs for x in pair):
    return None
  if not all(_WORDNET.fullmatch(pair[0]) for pair in pairs):
    return None
  return NamesByClass({key: name.replace("_", " ") for key, name in pairs})


def _looks_parted(found: Sequence[str], path: pathlib.Path) -> bool:
  """Whether the lines of a text file look like several labels, or as JSON."""
  if not found or path.suffix == ".json":
    return False
  one = len(found) == 1 and re.search("[,;\t]", found[0]) is not None
  return one or found[0][0] in "[{" or path.suffix in (".csv", ".tsv")


def parted(text: str) -> list[str]:
  """Returns the names in a text: one a line, or of one line between commas.

  Raises:
    UserError: a name of one line begins as JSON's or CSV's lists of names do.
  """
  found = lines(text)
  if len(found) > 1:
    return found
  names = [x.strip() for x in text.split(",")]
  if any(name.startswith(("[", "{", '"', '("', "('")) for name in names):
    raise errors.UserError(
      f"The labels {text!r:.100} have brackets or quotes, which would be part "
      "of their names: write cat,dog. A name with a comma or a quote in it "
      "stands on a line of its own in a file, and JSON in a file that ends in "
      ".json."
    )
  return names


def lines(text: str) -> list[str]:
  """Returns the lines of a text that are not blank, stripped."""
  return [x.strip() for x in _LINE_END.split(text) if x.strip()]


def read_templates(text: str | os.PathLike) -> tuple[str, ...]:
  """Returns the templates of a text: a file, or itself one template.

  A text file holds a template a line, a JSON file a list of templates.
  """
  path = _as_file(text, what="templates")
  if path is None:
    return (os.fspath(text),)
  templates = _read(path, what="templates")
  if not isinstance(templates, list):
    raise errors.UserError(f"{path}: templates are a list, not a dictionary.")
  if not templates:
    raise errors.UserError(
      f"{path}: there are no templates; name at least one."
    )
  return tuple(templates)


def _as_file(text: str | os.PathLike, *, what: str) -> pathlib.Path | None:
  """Returns the file that `text` names, None where it names none."""
  is_path, text = isinstance(text, os.PathLike), os.fspath(text)
  if not is_path and ("{" in text or "\n" in text or len(text) > 1024):
    return None
  path = pathlib.Path(os.path.expanduser(text))
  if os.path.isfile(path):  # Unlike Path.is_file, False for too long a name.
    return path
  if is_path or path.suffix in (".txt", ".json"):
    why = "is a directory" if os.path.isdir(path) else "does not exist"
    raise errors.UserError(
      f"The file of {what} {text!r} {why}.{errors.beside(path)}"
    )
  return None


def _read(path: pathlib.Path, *, what: str) -> list | dict:
  try:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
      return lines(text)
    content = json_text.parse(text, kind=(list, dict))
  except UnicodeDecodeError as error:
    start = error.object[:20]
    known = "UTF-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "no UTF-8"
    raise errors.UserError(
      f"The file of {what} {str(path)!r} is {known} text: it begins {start!r}. "
      "Save it as UTF-8 text with one a line, or as JSON with a list."
    ) from None
  except ValueError as error:
    raise errors.UserError(
      f"{path}: cannot read {what} ({error}); write text with one a line, "
      "or JSON with a list."
    ) from None
  return content


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
  if isinstance(templates, str) or not isinstance(templates, Sequence | None):
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
