"""A data set of the suite, opened for the evaluation that it asks for."""

import dataclasses
import pathlib

from clip_jax.evals import prompts as prompts_lib
from clip_jax.evals import tasks
from clip_jax.evals.suite import (
  data_sets,
  layouts,
  result_files,
  set_sources,
)
from clip_jax.evals.suite import subject as subject_lib

# Around every caption (paper, section 3.3.1: "a photo of").
RETRIEVAL_TEMPLATE = "a photo of {}"
# Published figures count another image's equal caption as a miss.
_DUPLICATES = "misses"


@dataclasses.dataclass(frozen=True)
class PreparedSet:
  """A data set that is there, opened for its evaluation.

  Attributes:
    opened: the data.
    evaluation: that the protocol wants.
    key: the digest of all that its measures depend on.
  """

  opened: set_sources.Opened
  evaluation: tasks.Evaluation
  key: str

  @property
  def in_words(self) -> str:
    """The DATA address of its test images, and their number."""
    count = len(self.opened.source)
    return f"{self.opened.found.address} with {count:,} records"

  @property
  def prompts_hash(self) -> str:
    """The digest of all its prompts, of retrieval of the template."""
    return _prompts_hash(self.evaluation)


def prepare(
  entry: data_sets.Entry,
  place: pathlib.Path,
  subject: subject_lib.Subject,
  max_pixels: int | None,
) -> PreparedSet | None:
  """Opens a set on this process; returns None where it is not there.

  Args:
    entry: of the set.
    place: the directory of the data sets.
    subject: the model.
    max_pixels: of the largest image that is read.

  Raises:
    UserError: it is not what the table says.
  """
  found = layouts.find(entry, place)
  if found is None:
    return None
  opened = set_sources.open_found(entry, found)
  evaluation = _evaluation(entry, opened)
  key = _key(entry, opened, evaluation, subject, max_pixels)
  return PreparedSet(opened, evaluation, key)


def _evaluation(
  entry: data_sets.Entry, opened: set_sources.Opened
) -> tasks.Evaluation:
  """Returns the evaluation that the protocol of `entry` wants."""
  labels, templates, options = None, (RETRIEVAL_TEMPLATE,), {}
  if entry.task == "retrieval":
    options["duplicates"] = _DUPLICATES
  else:
    classes = data_sets.classes(entry)
    labels = [list(several) for several in classes.synonyms]
    templates = classes.templates
  return tasks.Evaluation(
    task=entry.task,
    data=opened.found.address,
    source=opened.source,
    labels=labels,
    templates=templates,
    options=options,
  )


def _prompts_hash(evaluation: tasks.Evaluation) -> str:
  if evaluation.labels is None:
    return result_files.digest(list(evaluation.templates or ()))
  return prompts_lib.resolve(
    evaluation.labels, evaluation.templates, may_repeat=True
  ).digest


def _key(
  entry: data_sets.Entry,
  opened: set_sources.Opened,
  evaluation: tasks.Evaluation,
  subject: subject_lib.Subject,
  max_pixels: int | None,
) -> str:
  return result_files.digest(
    {
      "format": result_files.FORMAT,
      "model": subject.fingerprint,
      "data": opened.source.fingerprint,
      **(
        {"parts": [x.fingerprint for x in opened.parts]} if opened.parts else {}
      ),
      "prompts": _prompts_hash(evaluation),
      "protocol": [entry.task, entry.metric, evaluation.options],
      "published": dict(entry.published),
      "architecture": subject.architecture,
      "max_pixels": max_pixels,
    }
  )
