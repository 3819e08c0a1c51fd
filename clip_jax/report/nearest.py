"""The rows of a contact sheet: the images and texts nearest to each other."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.evals import embedding_model
from clip_jax.evals import probabilities as probabilities_lib
from clip_jax.evals import prompts as prompts_lib
from clip_jax.evals import reading as reading_lib

# Pictures are compared at this size, and are the same one where no value of 0
# to 255 differs by more: JPEG's losses stay below that.
_SMALL, _SAME = (16, 16), 8


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
  """One of the images nearest to a text; `correct` is None if not known."""

  image: Image.Image
  score: float
  correct: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Guess:
  """One of the texts nearest to an image; `correct` is None if not known."""

  text: str
  probability: float
  correct: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
  """The rows of a sheet: texts with images, and images with texts.

  Of the `missed` images, whose most probable text is not one of theirs, those
  where the model was surest of it are in `misses`; `images` were looked at.
  """

  by_text: Sequence[tuple[str, Sequence[Found]]]
  by_image: Sequence[tuple[Image.Image, Sequence[Guess]]]
  misses: Sequence[tuple[Image.Image, Sequence[Guess]]] = ()
  missed: int = 0
  images: int = 0


@dataclasses.dataclass(frozen=True)
class Spread:
  """At most `most` records of a source, evenly spread over it."""

  source: Any
  most: int

  def __len__(self) -> int:
    return min(len(self.source), self.most)

  def __getitem__(self, index: int) -> Any:
    return self.source[index * len(self.source) // len(self)]


def find_rows(
  source: Any,
  *,
  model: embedding_model.EmbeddingModel,
  logit_scale: float,
  logit_bias: float | None = None,
  probabilities: str = "softmax",
  count: int = 4,
  most_records: int = 1000,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> Rows:
  """Returns the rows of a sheet about a model and the records of `source`.

  The texts are the class names where the data has them, else its captions.

  Args:
    source: of `sources.open_source`.
    model: the model to show.
    logit_scale: factor between cosine similarity and logit.
    logit_bias: what is added to it; None for models that have none.
    probabilities: how logits become probabilities, "softmax" or "sigmoid".
    count: texts and images shown.
    most_records: records looked at, spread evenly over the data.
    reading: how the data are read.

  Raises:
    UserError: there is no usable record.
  """
  shown = Spread(source, most_records)
  embeds, labels, texts, records = [], [], [], []
  bad: collections.Counter[str] = collections.Counter()
  with reading.watched(shown, model.preprocess, bad) as batches:
    for batch in batches:
      embeds.append(model.embed_images(batch["image"]))
      labels.extend(batch["label"].tolist())
      texts.extend(batch["texts"])
      records.extend(batch["record"].tolist())
  if not records:
    raise errors.UserError("There is no usable record to report on.")
  image_embeds = np.concatenate(embeds)
  if source.class_names is not None and min(labels) >= 0:
    resolved = prompts_lib.resolve(
      source.class_names, source.templates, may_repeat=True
    )
    names = [prompts[0] for prompts in resolved.texts]
    text_embeds = prompts_lib.class_embeddings(resolved, model.embed_texts)
    owns = np.asarray(labels)[:, None] == np.arange(len(names))
  else:
    names = list(dict.fromkeys(text for own in texts for text in own))
    text_embeds = model.embed_texts(names)
    owns = np.array([[name in own for name in names] for own in texts])
  return _rank(
    image_embeds @ text_embeds.T,
    owns,
    names,
    lambda i: preprocess_lib.decode(
      shown[records[i]].image, limits=model.preprocess.limits
    ),
    probabilities=lambda scores: probabilities_lib.of(
      scores,
      kind=probabilities,
      logit_scale=logit_scale,
      logit_bias=logit_bias,
    ),
    count=count,
  )


def _rank(
  scores: np.ndarray,
  owns: np.ndarray,
  names: Sequence[str],
  image: Callable[[int], Image.Image],
  *,
  probabilities: Callable[[np.ndarray], np.ndarray],
  count: int,
) -> Rows:
  """Returns rows of evenly spread texts and images.

  Args:
    scores: cosine similarity, (images, texts).
    owns: whether a text belongs to an image, (images, texts).
    names: the texts.
    image: opens an image by its number.
    probabilities: from scores to the texts' probabilities.
    count: texts and images shown.
  """
  shares = probabilities(scores.astype(np.float64))
  by_text, shown = [], set()
  present = np.flatnonzero(owns.any(axis=0))  # A class may have no image here.
  for text in present[_spread(len(present), count)]:
    order = np.argsort(-scores[:, text], kind="stable")
    nearest = _different(order, image, most=5)
    shown.update(nearest)
    found = [
      Found(image(i), float(scores[i, text]), bool(owns[i, text]))
      for i in nearest
    ]
    by_text.append((names[text], found))

  def guesses_of(i):
    order = np.argsort(-scores[i], kind="stable")
    own = order[owns[i, order]]
    order = order[:5]
    if len(own) and own[0] not in order:
      order[-1] = own[0]  # The right one is always among those shown.
    return [
      Guess(names[int(t)], float(shares[i, t]), bool(owns[i, t])) for t in order
    ]

  best = scores.argmax(axis=1)
  right = owns[np.arange(len(scores)), best]
  surest = np.argsort(-shares.max(axis=1), kind="stable")
  missed = [int(i) for i in surest if not right[i]]
  misses = _different(missed, image, most=count)
  chosen = _of_different_texts(owns, shown | set(misses), count)
  return Rows(
    by_text,
    [(image(i), guesses_of(i)) for i in chosen],
    [(image(i), guesses_of(i)) for i in misses],
    missed=len(missed),
    images=len(scores),
  )


def _different(
  order: Iterable[int], image: Callable[[int], Image.Image], *, most: int
) -> list[int]:
  """Returns the first `most` of `order` that show different pictures.

  A picture that was encoded again or resized is the same one.
  """
  taken: list[int] = []
  seen: list[np.ndarray] = []
  for i in order:
    small = preprocess_lib.to_rgb(image(i)).resize(_SMALL, Image.Resampling.BOX)
    small = np.asarray(small, np.int16)
    if all(np.abs(small - other).max() > _SAME for other in seen):
      taken.append(int(i))
      seen.append(small)
    if len(taken) == most:
      break
  return taken


def _of_different_texts(
  owns: np.ndarray, shown: set[int], count: int
) -> list[int]:
  """Returns images from all over the data, of different texts if there are.

  Args:
    owns: whether a text belongs to an image, (images, texts).
    shown: images that are on the page already; taken only for lack of others.
    count: most images returned.
  """
  # All of them, in an order that is spread over the data from its start.
  step = max(1, len(owns) // max(1, count))
  order = [i for start in range(step) for i in range(start, len(owns), step)]
  first_text = owns.argmax(axis=1)
  order.sort(key=lambda i: i in shown)  # Stable.
  taken: list[int] = []
  texts: set[int] = set()
  for i in order:
    if first_text[i] not in texts and len(taken) < count:
      taken.append(i)
      texts.add(first_text[i])
  taken += [i for i in order if i not in taken][: count - len(taken)]
  return sorted(taken)


def _spread(total: int, count: int) -> list[int]:
  """Returns at most `count` numbers below `total`, evenly spread."""
  count = min(total, count)
  return [(2 * i + 1) * total // (2 * count) for i in range(count)]
