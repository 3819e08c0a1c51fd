"""Files and texts of labels and templates, as users give them."""

import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from clip_jax import errors, json_text
from clip_jax.evals import prompts

_LOGGER = logging.getLogger(__name__)

_FEW_WORDS = 2  # Of a name rather than a prompt.
_WORDNET = re.compile(r"n\d{8}")
# splitlines() would end lines at U+2028 and others, too.
_LINE_END = re.compile("\r\n?|\n")


def read_labels(text: str | os.PathLike) -> prompts.Labels:
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
    return prompts.NamesByClass(names)
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


def _class_index(labels: Mapping) -> prompts.NamesByClass | None:
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
  if twice := prompts.repeated([key for key, _ in pairs]):
    raise errors.UserError(
      f"Labels must differ, but given more than once: {', '.join(twice[:5])}."
    )
  return prompts.NamesByClass(
    {key: name.replace("_", " ") for key, name in pairs}
  )


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
    content = json_text.parse(text, kind=(list, dict), strict=True)
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
