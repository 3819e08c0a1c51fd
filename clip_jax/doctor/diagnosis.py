"""Reads from a trial on one batch whether a config can learn.

A loss that stays where it was has a short list of causes; each is looked for,
and the one found is named. That a loss has fallen proves nothing: one that
began above chance falls as far as that when all embeddings become the same.
"""

import dataclasses
import math
import os

from clip_jax import terminal
from clip_jax.doctor.finding import OK, PROBLEM, WARNING, Finding
from clip_jax.doctor.learning import Trial

# A learned batch has closed this share of the gap between the first loss (or
# chance) and the floor.
_LEARNED = 0.5
# A loss this little above the floor, as a share of the gap between chance and
# the floor, is as good as the floor.
_NEAR = 0.1
# Share of images and texts that must find their own.
_MATCHED = 0.9
# Weights whose relative change is smaller did not move.
_STILL = 1e-6
# Cosine between different inputs above which all look the same to a tower.
_COLLAPSED = 0.99

# Whether it holds, and what it is.
Cause = tuple[bool, str]


def diagnose(trial: Trial) -> Finding:
  """Whether the batch was learned and, if not, the likely cause."""
  facts = dataclasses.asdict(trial)
  del facts["losses"]
  facts["first_loss"], facts["last_loss"] = trial.losses[0], trial.losses[-1]
  facts["log_pairs"] = math.log(trial.pairs)
  learned = _is_learned(trial)
  causes = [*_broken(trial), *([] if learned else _unlearned(trial))]
  why = next((cause for holds, cause in causes if holds), None)
  verdict, message = OK, _by_heart(trial)
  if why or not learned:
    stuck = _is_stuck(trial)
    verdict = PROBLEM if why or stuck else WARNING
    message = f"{_where(trial, stuck=stuck)} {why or _NO_CAUSE}"
  return Finding("overfit one batch", verdict, message, facts)


def of_prediction(kind: str, losses: list[float]) -> Finding:
  """Whether the loss of a model that predicts captions has fallen.

  Args:
    kind: of the objective.
    losses: one for each update on the same batch, in nats.
  """
  first, last = losses[0], losses[-1]
  fell = last < first  # Not so for NaN, either.
  words = (
    f"The loss of one batch went from {first:.3f} to {last:.3f} in "
    f"{terminal.counted(len(losses), 'update')}. What "
    f"objective.kind={kind!r} can reach at the least is not known here."
  )
  if not fell:
    words += " It should fall: try a tenth of optim.peak_lr."
  facts = {"first_loss": first, "last_loss": last, "objective": kind}
  return Finding("overfit one batch", OK if fell else PROBLEM, words, facts)


_NO_CAUSE = (
  "No known cause was found; try more --steps, ten times the optim.peak_lr and "
  "a tenth of it."
)


def _is_learned(trial: Trial) -> bool:
  floor, chance, last = trial.floor, trial.chance, trial.losses[-1]
  near = floor + _NEAR * (chance - floor)
  # A pretrained model may begin near the floor, a bad temperature above chance.
  first = min(trial.losses[0], chance)
  goal = floor + (1 - _LEARNED) * (first - floor)
  return last <= near or (last <= goal and trial.accuracy >= _MATCHED)


def _is_stuck(trial: Trial) -> bool:
  return abs(trial.losses[-1] - trial.chance) <= 0.05 * trial.chance


def _by_heart(trial: Trial) -> str:
  return (
    f"{terminal.counted(trial.pairs, 'pair')} learned by heart: loss "
    f"{trial.losses[0]:.3f} to {trial.losses[-1]:.3f} in "
    f"{terminal.counted(len(trial.losses), 'update')}, "
    f"{trial.accuracy:.0%} find their own."
  )


def _where(trial: Trial, *, stuck: bool) -> str:
  where = ""
  if stuck:
    equal = math.isclose(trial.chance, math.log(trial.pairs), rel_tol=1e-3)
    name = f"log({trial.pairs})" if equal else f"{trial.chance:.3f}"
    where = f", that is {name}, as if all pairs were the same"
  return (
    f"After {terminal.counted(len(trial.losses), 'update')} on the same "
    f"{terminal.counted(trial.pairs, 'pair')} the loss is "
    f"{trial.losses[-1]:.3f}{where} (at first {trial.losses[0]:.3f}, "
    f"least possible {trial.floor:.3f}), and {trial.accuracy:.0%} find their "
    "own."
  )


def _broken(trial: Trial) -> list[Cause]:
  """Returns causes that are problems even where the loss has fallen."""
  return [
    (
      trial.skipped > 0,
      f"{terminal.counted(trial.skipped, 'update')} "
      f"{terminal.noun(trial.skipped, 'was', 'were')} not finite and changed "
      "nothing: lower "
      "optim.peak_lr, or take precision=float32 if it is bfloat16.",
    ),
    (
      trial.pairs == 1,
      "One pair has no other to be told from: raise batch_size.",
    ),
    (
      trial.distinct_images == 1,
      "All images of the batch are the same: look at the data's image column.",
    ),
    (
      trial.distinct_captions == 1,
      "All captions of the batch are the same tokens: look at the data's "
      "caption column, and at the tokenizer.",
    ),
    (
      trial.moved < _STILL,
      f"The weights moved by {trial.moved:.1g} relative to their size: raise "
      "optim.peak_lr, and see that optim.frozen does not freeze what should "
      "learn.",
    ),
    (
      min(trial.image_cosine, trial.text_cosine) > _COLLAPSED,
      "Both towers give the same embedding for everything: the learning rate "
      "is too high; lower optim.peak_lr and warm up longer.",
    ),
    (
      trial.image_cosine > _COLLAPSED,
      "All images have the same embedding: lower optim.peak_lr; see that the "
      "images differ after preprocessing.",
    ),
    (
      trial.text_cosine > _COLLAPSED,
      "All captions have the same embedding: lower optim.peak_lr; see that "
      "captions differ and fit the context.",
    ),
  ]


def _unlearned(trial: Trial) -> list[Cause]:
  """Returns causes that are no problem where the batch was learned."""
  bound = trial.max_logit_scale
  return [
    (
      bound is not None and trial.logit_scale >= 0.999 * bound,
      f"The logit scale is at its bound of {bound or 0:g}: lower "
      "optim.peak_lr.",
    ),
  ]


# What to do about the slowest stage of loading, besides more workers.
_REMEDIES = {
  "read": "Check the disk, or copy the data to a nearer one.",
  "decode": "Store smaller images: `clip-jax data prepare --shortest-side`; "
  "the extra `fast` decodes small JPEGs sooner.",
  "resize": "Store smaller images: `clip-jax data prepare --shortest-side`.",
  "tokens": "See that captions are no longer than the context needs.",
}


def balance(trial: Trial) -> Finding:
  """Says whether the loader keeps up with the devices, and what is slowest.

  One process was timed; so many of them make at most so many times as much, and
  no more run at once than there are cores.
  """
  cores = os.cpu_count() or 1
  one = trial.pairs / trial.loader_seconds
  all_of_them = one * max(1, min(trial.workers, cores))
  step = trial.pairs / trial.step_seconds
  needed = 0 if one >= step else math.ceil(step / one)
  waits = all_of_them < step
  bottleneck = "step"
  if waits:
    bottleneck = max(trial.part_seconds, key=trial.part_seconds.__getitem__)
  elif trial.transfer_seconds > trial.step_seconds:
    bottleneck = "transfer"
  facts = {
    "loader_images_per_second": one,
    "loader_bound_images_per_second": all_of_them,
    "step_images_per_second": step,
    "transfer_images_per_second": trial.pairs / trial.transfer_seconds,
    "part_seconds": trial.part_seconds,
    "bottleneck": bottleneck,
    "workers_needed": needed,
    "pairs": trial.pairs,
  }
  words = f"The loader gives {_rate(one)} images/s"
  if trial.workers:
    words += (
      f" from one process, at most {_rate(all_of_them)} from "
      f"data.workers={trial.workers} on these cores"
    )
  words += f"; the step takes {_rate(step)}"
  if not waits:
    is_step = bottleneck == "step"
    what = (
      "the step"
      if is_step
      else (
        "the transfer to the devices, "
        f"{_rate(facts['transfer_images_per_second'])} images/s"
      )
    )
    words += f". The bottleneck is {what}; data.workers={needed} is enough."
    return Finding(
      "loader against step", OK if is_step else WARNING, words, facts
    )
  words += _waiting(trial, bottleneck, needed=needed, cores=cores)
  return Finding("loader against step", WARNING, words, facts)


def _rate(number: float) -> str:
  return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _waiting(trial: Trial, bottleneck: str, *, needed: int, cores: int) -> str:
  """Returns the end of a sentence: what loading waits for, and what helps."""
  total = sum(trial.part_seconds.values()) or 1.0
  shares = ", ".join(
    f"{name} {seconds / total:.0%}"
    for name, seconds in trial.part_seconds.items()
  )
  too_many = f", but there are {cores} cores" if needed > cores else ""
  return (
    f": training will wait for data (data.threads={trial.threads}, "
    f"data.workers={trial.workers}). The bottleneck is {bottleneck} of "
    f"{shares}. This step needs data.workers={needed}{too_many}. "
    f"{_REMEDIES[bottleneck]}"
  )
