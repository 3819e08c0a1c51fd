"""The actions of `data` that choose pairs: filter and dedupe."""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax import errors, host_memory, loading, names, preprocess, terminal
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.cli import flags, verb
from clip_jax.cli.arguments import curation
from clip_jax.cli.commands import curate
from clip_jax.data import account, sources
from clip_jax.data.curation import dedupe as dedupe_lib
from clip_jax.data.curation import (
  filtering,
  likeness,
  linking,
)
from clip_jax.data.curation import rules as rules_lib
from clip_jax.search import clusters


def filter_pairs(arguments: argparse.Namespace) -> verb.Answer:
  """Writes the pairs of DATA that pass rules."""
  flagged = {
    name: getattr(arguments, name) for name in (*rules_lib.NAMES, "score_model")
  }
  written = {} if arguments.config is None else rules_lib.read(arguments.config)
  rules = rules_lib.of(written, flagged)
  path = flagged["score_model"] or written.get("score_model")
  if path is None and curation.has_batches(arguments):
    raise errors.UserError(
      f"--batch-size and --threads go with a score model, and "
      f"{arguments.config} names none; leave them out or give --score-model."
    )
  how = curate.fill(arguments)
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
      batch_size=_or(arguments.batch_size, flags.BATCH_SIZE),
      threads=_or(arguments.threads, flags.THREADS),
      limits=preprocess.Limits(max_pixels=arguments.max_pixels),
      on_record=lambda done: progress(done, len(source)),
      on_score=scored,
      fill=how,
    )
  did = "Kept" if found["written"] else "Already there:"
  lines = [
    f"{did} {found['kept']} of {terminal.counted(found['pairs'], 'pair')} and "
    f"{found['captions_kept']} of "
    f"{terminal.counted(found['captions'], 'caption')}; train on "
    f"arrayrecord:{arguments.out}",
    f"dropped: {terminal.counts(found['dropped'])}",
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


def dedupe(arguments: argparse.Namespace) -> verb.Answer:
  """Writes the pairs of DATA that are no duplicates."""
  how = curate.fill(arguments)
  source = sources.open_source(arguments.data)
  against = arguments.against and sources.open_source(arguments.against)
  semantic = None
  if arguments.model is not None:
    semantic = likeness.Semantic(
      _model(arguments.model, arguments, "image"),
      clusters.near_within,
      clusters.near_between,
      min_similarity=_or(arguments.min_similarity, names.DUPLICATE_SIMILARITY),
      clusters=arguments.clusters,
    )
  distance = _or(arguments.max_distance, names.DUPLICATE_DISTANCE)
  rule = likeness.Rule(
    exact="exact" in arguments.by,
    max_distance=distance if "near" in arguments.by else None,
    mirrored=arguments.mirrored,
    semantic=semantic,
  )
  told = account.tell(source, arguments.data)
  if against is not None:
    account.tell(against, arguments.against, told=told)
  bars: dict[tuple[str, int], terminal.Progress] = {}
  with contextlib.ExitStack() as stack:

    def progress(what: str, done: int, total: int) -> None:
      if (what, total) not in bars:
        shown = terminal.Progress(what, unit="images")
        bars[what, total] = stack.enter_context(shown)
      bars[what, total](done, total)

    found = dedupe_lib.dedupe(
      source,
      arguments.out,
      rule,
      against=against,
      report_only=arguments.report_only,
      address=arguments.data,
      work=linking.Work(
        workers=arguments.workers,
        batch_size=_or(arguments.batch_size, flags.BATCH_SIZE),
        threads=_or(arguments.threads, flags.THREADS),
        limits=preprocess.Limits(max_pixels=arguments.max_pixels),
        on_record=progress,
        fill=how,
      ),
    )
  overlap = found["overlap"]
  if overlap is not None:
    overlap["against"] = arguments.against
  payload = {"data": arguments.data, "out": arguments.out, **found}
  return verb.Answer(payload, "\n".join(_deduped(arguments, found)))


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def _deduped(
  arguments: argparse.Namespace, found: dict[str, Any]
) -> Iterator[str]:
  kept = f"{found['kept']} of {terminal.counted(found['pairs'], 'pair')}"
  if arguments.report_only:
    did = "Wrote" if found["written"] else "Already there:"
    yield f"{did} tables in {arguments.out}; would keep {kept}"
  else:
    did = "Kept" if found["written"] else "Already there:"
    yield f"{did} {kept}; train on arrayrecord:{arguments.out}"
  yield f"dropped: {terminal.counts(found['dropped'])}"
  yield (
    f"groups of duplicates: {terminal.counts(found['groups'])}; the largest "
    f"has {terminal.counted(found['largest_group'], 'image')} (duplicates.tsv "
    "lists all)"
  )
  if (overlap := found["overlap"]) is not None:
    yield (
      f"overlap: {overlap['found']} of "
      f"{terminal.counted(overlap['examples'], 'image')} of "
      f"{arguments.against} ({terminal.percent(overlap['share'])}) "
      f"{terminal.noun(overlap['found'], 'is', 'are')} near "
      f"{terminal.counted(overlap['pairs'], 'pair')} (overlap.tsv lists all)"
    )
    if overlap["bad"]:
      bad = terminal.counts(overlap["bad"])
      yield f"not compared, as bad, of {arguments.against}: {bad}"
