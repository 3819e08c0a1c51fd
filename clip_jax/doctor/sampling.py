"""Reads a sample of the records and reports the bad ones among them."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from clip_jax import errors, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account as account_lib
from clip_jax.data import elements, sources
from clip_jax.data import record as record_lib
from clip_jax.doctor.finding import OK, PROBLEM, WARNING, Finding

MOST_READ = 2000
# Decoding an image takes a hundred times as long as reading a record.
MOST_DECODED = 400
_SHOWN_KEYS = 3


@dataclasses.dataclass(frozen=True)
class Sample:
  """What was found in a sample of the records.

  Attributes:
    read: the number of records that were read, or could not be.
    decoded: the number of their images that were decoded, or could not be.
    texts: the first text of each readable record, in lower case with single
      spaces.
    images: digests of the readable records' encoded images.
    unreadable: the number of unreadable records by reason.
    undecodable: the number of images that cannot be decoded by reason.
    bad_keys: keys of the first bad records.
  """

  read: int
  decoded: int
  texts: list[str]
  images: list[bytes]
  unreadable: collections.Counter[str]
  undecodable: collections.Counter[str]
  bad_keys: list[str]

  @property
  def bad_fraction(self) -> float:
    """The estimated share of all records that training would count as bad."""
    readable = 1 - self.unreadable.total() / max(self.read, 1)
    return 1 - readable * (1 - self.undecodable.total() / max(self.decoded, 1))


def read(
  source: sources.Source,
  preprocess: preprocess_lib.Preprocess,
  *,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sample:
  """Reads records evenly spread over the data; decodes some of their images.

  Args:
    source: the training pairs.
    preprocess: the model's.
    progress: called with the numbers of records done and of all in the sample.
  """
  count = min(MOST_READ, len(source))
  slots = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
  stride = -(-count // MOST_DECODED)
  texts, images, keys, decoded = [], [], [], 0
  unreadable, undecodable = collections.Counter(), collections.Counter()
  for done, slot in enumerate(slots):
    progress(done, count)
    reasons = unreadable
    try:
      record = source[slot]
      texts.append(" ".join(record.texts[0].lower().split()))
      images.append(hashlib.blake2b(record.image, digest_size=8).digest())
      if done % stride:
        continue
      decoded, reasons = decoded + 1, undecodable
      elements.eval_element(record, preprocess=preprocess)
    except record_lib.BadRecord as error:
      reasons[error.reason] += 1
      keys.append(error.key)
  return Sample(
    count, decoded, texts, images, unreadable, undecodable, keys[:_SHOWN_KEYS]
  )


def account(source: sources.Source, *, max_bad_fraction: float) -> Finding:
  """Returns a finding on damaged files, lost records and files left out.

  Args:
    source: the training pairs.
    max_bad_fraction: `data.max_bad_fraction` of the config.
  """
  found = account_lib.of(source)
  facts = found.to_dict() | {"max_bad_fraction": max_bad_fraction}
  message = " ".join(found.sentences())
  if not message:
    return Finding("files", OK, "None is damaged, and all are read.", facts)
  try:
    account_lib.check(source, "Lost", max_bad_fraction=max_bad_fraction)
  except errors.UserError as error:
    return Finding("files", PROBLEM, f"{message} {error}", facts)
  return Finding("files", WARNING, message, facts)


def check(sample: Sample, *, max_bad_fraction: float) -> Finding:
  """Returns a finding on the share of bad records, and whether a run allows it.

  Args:
    sample: as `read` returns it.
    max_bad_fraction: `data.max_bad_fraction` of the config.
  """
  bad = sample.unreadable.total() + sample.undecodable.total()
  reasons = sample.unreadable + sample.undecodable
  facts = {
    "sampled": sample.read,
    "decoded": sample.decoded,
    "bad": bad,
    "bad_fraction": sample.bad_fraction,
    "max_bad_fraction": max_bad_fraction,
    "reasons": dict(reasons),
    "bad_keys": sample.bad_keys,
  }
  of = f"{sample.read} sampled records, {sample.decoded} of them decoded"
  if not bad:
    return Finding("records", OK, f"None is bad of {of}.", facts)
  words = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
  first = ", ".join(terminal.escaped(k, limit=60) for k in sample.bad_keys)
  message = (
    f"{bad} bad of {of} ({words}), first {first}: about "
    f"{sample.bad_fraction:.2%}, and data.max_bad_fraction allows "
    f"{max_bad_fraction:.2%}"
  )
  if sample.bad_fraction <= max_bad_fraction:
    return Finding("records", WARNING, f"{message}.", facts)
  return Finding(
    "records",
    PROBLEM,
    f"{message}: training would stop. `clip-jax data inspect` lists the bad "
    "records.",
    facts,
  )
