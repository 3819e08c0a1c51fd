"""Reads all of a source, and tells what is good in it and what is not."""

import collections
from collections.abc import Callable
from typing import Any

from clip_jax import preprocess
from clip_jax.data import account, alike, copying
from clip_jax.data import record as record_lib


def inspect(
  source: record_lib.Source,
  *,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  first: int = 5,
  most_bad: int = 1000,
  on_record: Callable[[int], None] | None = None,
) -> dict[str, Any]:
  """Reads all of `source`, decodes every image and returns what was found.

  Returns:
    `records`: number of slots; `good`; `bad`: number of slots by reason;
    `bad_keys`: the first `most_bad` as (key, reason); `hints`: what to do about
    a reason, for its first record; `texts`: number of captions; `class_names`;
    `templates`; `labels`: number of records by label; `image_bytes`: their sum;
    `first`: the first `first` records; and what the account of the source holds
    (account.py), `left_out` and `damages` among it.
  """
  bad: collections.Counter[str] = collections.Counter()
  labels: collections.Counter[int] = collections.Counter()
  bad_keys: list[tuple[str, str]] = []
  hints: dict[str, str] = {}
  advice: dict[str, str] = {}
  shown: list[dict[str, Any]] = []
  texts = image_bytes = 0
  captions: set[str] = set()
  for slot in range(len(source)):
    item = copying.read(source, slot)
    if isinstance(item, record_lib.Record):
      try:
        image = preprocess.decode(item.image, limits=limits)
      except preprocess.ImageError as error:
        item = record_lib.BadRecord(error.reason, item.key)
    if isinstance(item, record_lib.BadRecord):
      bad[item.reason] += 1
      if item.hint:
        hints.setdefault(item.reason, item.hint)
      if item.advice:
        advice.setdefault(item.reason, item.advice)
      if len(bad_keys) < most_bad:
        bad_keys.append((item.key, item.reason))
    else:
      texts += len(item.texts)
      if len(captions) < 2:
        captions.update(item.texts)
      image_bytes += len(item.image)
      labels.update(item.labels or ())
      if item.label is not None:
        labels[item.label] += 1
      if len(shown) < first:
        shown.append(_describe(item, image.size))
    if on_record is not None:
      on_record(slot + 1)
  for why, todo in advice.items():
    if 2 * bad[why] > len(source):  # Else most were found where they lie.
      hints[why] = "; ".join(filter(None, (hints.get(why), todo)))
  about = account.of(source).to_dict()
  names = source.class_names or ()
  about["notes"] += alike.note_classes(names)
  if len(captions) == 1 < texts and len(names) != 1:
    (caption,) = captions
    about["notes"].append(alike.note_caption(caption, of="All records"))
  return {
    "records": len(source),
    "good": len(source) - bad.total(),
    "bad": dict(bad),
    "bad_keys": bad_keys,
    "hints": hints,
    **about,
    "texts": texts,
    "class_names": source.class_names,
    "templates": source.templates,
    "labels": dict(sorted(labels.items())),
    "image_bytes": image_bytes,
    "first": shown,
  }


def _describe(
  record: record_lib.Record, size: tuple[int, int]
) -> dict[str, Any]:
  return {
    "key": record.key,
    "texts": record.texts,
    "label": record.label,
    **({} if record.labels is None else {"labels": record.labels}),
    "width": size[0],
    "height": size[1],
    "bytes": len(record.image),
  }
