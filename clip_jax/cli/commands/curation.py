"""The actions of `data` that choose pairs: filter and dedupe."""

import argparse
import dataclasses
import shlex
from typing import Any

import numpy as np

from clip_jax import errors, host_memory, loading, preprocess, terminal
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.cli import verb
from clip_jax.data import account, sources
from clip_jax.data.curation import beam_runner, filtering, survey
from clip_jax.data.curation import rules as rules_lib


def fill(arguments: argparse.Namespace) -> survey.Fill | None:
  """Returns what does the work of --runner; None for processes here."""
  if arguments.runner == "local":
    return None
  try:
    words = shlex.split(arguments.beam_options or "")
  except ValueError as error:
    raise errors.UserError(
      f"--beam-options {arguments.beam_options!r} cannot be split into words: "
      f"{error}."
    ) from None
  return beam_runner.fill(words, workers=arguments.workers)


def counts(numbers: dict[str, int]) -> str:
  """Returns numbers by name in words."""
  return ", ".join(f"{n} {name}" for name, n in numbers.items()) or "none"


def filter_pairs(arguments: argparse.Namespace) -> verb.Answer:
  """Writes the pairs of DATA that pass rules."""
  flagged = {
    name: getattr(arguments, name) for name in (*rules_lib.NAMES, "score_model")
  }
  written = {} if arguments.config is None else rules_lib.read(arguments.config)
  rules = rules_lib.of(written, flagged)
  path = flagged["score_model"] or written.get("score_model")
  how = fill(arguments)
  source = sources.open_source(arguments.data)
  model = (
    None if path is None else _model(str(path), arguments, "image", "text")
  )
  account.tell(source, arguments.data)
  with (
    terminal.Progress("filter", unit="records") as progress,
    terminal.Progress("scores", unit="pairs") as scored,
  ):
    found = filtering.filter_pairs(
      source,
      arguments.out,
      rules,
      model=model,
      address=arguments.data,
      workers=arguments.workers,
      batch_size=arguments.batch_size,
      threads=arguments.threads,
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      on_record=lambda done: progress(done, len(source)),
      on_score=scored,
      fill=how,
    )
  did = "Kept" if found["written"] else "Already there:"
  lines = [
    f"{did} {found['kept']} of {found['pairs']} pairs and "
    f"{found['captions_kept']} of {found['captions']} captions; train on "
    f"arrayrecord:{arguments.out}",
    f"dropped: {counts(found['dropped'])}",
  ]
  if found["score_threshold"] is not None:
    tenths = ", ".join(f"{q:.3f}" for q in found["score_quantiles"] or ())
    lines += [
      f"scores: at least {found['score_threshold']:.6g} stays; from the least "
      f"to the largest in tenths: {tenths}"
    ]
  if model is not None:
    model.cuts.tell(model.clip.needed_tokenizer().context_length)
  payload = {"data": arguments.data, "out": arguments.out, **found}
  return verb.Answer(payload, "\n".join(lines))


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
  """A model as curation needs it; counts the texts that are cut."""

  clip: Any
  cuts: tokenizer_lib.Cuts = dataclasses.field(
    default_factory=tokenizer_lib.Cuts
  )

  @property
  def fingerprint(self) -> str:
    return self.clip.fingerprint

  def needed_preprocess(self) -> preprocess.Preprocess:
    return self.clip.needed_preprocess()

  def embed_images(self, images: np.ndarray, /) -> np.ndarray:
    return self.clip.embed_images(images)

  def embed_texts(self, texts: list[str], /) -> np.ndarray:
    return self.clip.embed_texts(texts, cuts=self.cuts)


def _model(path: str, arguments: argparse.Namespace, *towers: str) -> _Model:
  """Returns the model at `path`, which has the `towers` in one space."""
  host_memory.keep_freed()
  clip = loading.load(path).with_max_pixels(arguments.max_pixels)
  clip.check_towers(*towers)
  if len(towers) > 1:
    clip.check_embeds()
  return _Model(clip)
