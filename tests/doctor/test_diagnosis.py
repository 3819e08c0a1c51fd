"""What a trial says: learned, or why not."""

import dataclasses
import math
import os

import pytest

from clip_jax.doctor import diagnosis, finding, learning

GOOD = learning.Trial(
  losses=[2.9, 2.0, 0.1],
  floor=0.0,
  chance=math.log(16),
  accuracy=1.0,
  pairs=16,
  skipped=0,
  moved=0.1,
  logit_scale=14.0,
  max_logit_scale=100.0,
  image_cosine=0.2,
  text_cosine=0.1,
  distinct_images=16,
  distinct_captions=16,
  step_seconds=0.1,
  compile_seconds=3.0,
  loader_seconds=0.05,
  part_seconds={
    "read": 1e-4,
    "decode": 2e-3,
    "resize": 1e-3,
    "tokens": 1e-5,
  },
  transfer_seconds=0.001,
  workers=0,
  threads=4,
)
STUCK = dataclasses.replace(GOOD, losses=[math.log(16)] * 3, accuracy=1 / 16)


def test_a_batch_that_is_learned_is_fine():
  found = diagnosis.diagnose(GOOD)
  assert found.verdict == finding.OK
  assert found.facts["last_loss"] == 0.1
  assert found.facts["log_pairs"] == math.log(16)


def test_equal_captions_excuse_a_loss_at_their_floor():
  trial = dataclasses.replace(
    GOOD, losses=[2.8, 1.4, 1.1], floor=1.0, distinct_captions=5, accuracy=0.5
  )
  assert diagnosis.diagnose(trial).verdict == finding.OK
  worse = dataclasses.replace(trial, losses=[2.8, 2.7, 2.4])
  assert diagnosis.diagnose(worse).verdict == finding.WARNING


def test_half_the_way_takes_pairs_that_find_their_own():
  half = dataclasses.replace(GOOD, losses=[2.9, 1.0])
  assert diagnosis.diagnose(half).verdict == finding.OK
  lost = dataclasses.replace(half, accuracy=0.5)
  assert diagnosis.diagnose(lost).verdict == finding.WARNING


def test_a_bad_start_that_falls_to_chance_is_not_learning():
  fallen = dataclasses.replace(STUCK, losses=[7.306, 2.773])
  found = diagnosis.diagnose(fallen)
  assert found.verdict == finding.PROBLEM and "log(16)" in found.message
  # Nor where it matches by accident.
  matched = dataclasses.replace(fallen, accuracy=1.0)
  assert diagnosis.diagnose(matched).verdict == finding.PROBLEM


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"skipped": 3}, "not finite"),
    ({"distinct_images": 1}, "All images of the batch are the same"),
    ({"distinct_captions": 1}, "All captions of the batch are the same"),
    ({"moved": 1e-9}, "raise optim.peak_lr"),
    ({"image_cosine": 0.999, "text_cosine": 0.999}, "Both towers"),
    ({"image_cosine": 0.999}, "All images have the same embedding"),
    ({"text_cosine": 0.999}, "All captions have the same embedding"),
    ({"logit_scale": 100.0}, "at its bound of 100"),
  ],
)
def test_a_loss_at_log_of_the_batch_has_a_named_cause(changes, words):
  found = diagnosis.diagnose(dataclasses.replace(STUCK, **changes))
  assert found.verdict == finding.PROBLEM
  assert "log(16)" in found.message and words in found.message


def test_what_is_broken_is_told_however_low_the_loss():
  one = dataclasses.replace(GOOD, floor=2.77, losses=[2.77], distinct_images=1)
  assert diagnosis.diagnose(one).verdict == finding.PROBLEM
  # A pretrained model's temperature may be at its bound.
  bound = dataclasses.replace(GOOD, logit_scale=100.0)
  assert diagnosis.diagnose(bound).verdict == finding.OK


def test_one_pair_is_told_as_such_and_called_one():
  alone = dataclasses.replace(
    GOOD, pairs=1, distinct_images=1, distinct_captions=1, losses=[0.0]
  )
  found = diagnosis.diagnose(alone)
  assert found.verdict == finding.PROBLEM
  assert "After 1 update on the same 1 pair the" in found.message
  assert "raise batch_size" in found.message
  assert "image column" not in found.message


def test_less_than_an_image_a_second_is_not_none():
  slow = dataclasses.replace(GOOD, step_seconds=64.0)
  assert "the step takes 0.25." in diagnosis.balance(slow).message


def test_a_loss_that_is_stuck_without_a_known_cause_is_a_problem_too():
  found = diagnosis.diagnose(STUCK)
  assert found.verdict == finding.PROBLEM
  assert "No known cause" in found.message


def test_workers_on_many_cores_may_make_up_for_one_process(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 8)
  assert diagnosis.balance(GOOD).verdict == finding.OK
  slow = dataclasses.replace(GOOD, loader_seconds=0.5)
  found = diagnosis.balance(slow)
  assert found.verdict == finding.WARNING
  assert "32 images/s" in found.message and "data.workers" in found.message
  many = dataclasses.replace(slow, workers=16)
  found = diagnosis.balance(many)
  assert found.verdict == finding.OK and "at most 256" in found.message
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  assert diagnosis.balance(many).verdict == finding.WARNING


def test_the_bottleneck_and_the_workers_that_a_step_needs_are_named(
  monkeypatch,
):
  monkeypatch.setattr(os, "cpu_count", lambda: 4)
  found = diagnosis.balance(GOOD)
  assert found.facts["bottleneck"] == "step"
  assert found.facts["workers_needed"] == 0
  assert "data.workers=0 is enough" in found.message
  # 16 pairs: one process makes 160 images/s, the step takes 400.
  slow = dataclasses.replace(GOOD, loader_seconds=0.1, step_seconds=0.04)
  found = diagnosis.balance(slow)
  assert found.facts["bottleneck"] == "decode"
  assert found.facts["workers_needed"] == 3
  assert "needs data.workers=3. Store smaller" in found.message
  assert "decode 64%" in found.message
  enough = diagnosis.balance(dataclasses.replace(slow, workers=3))
  assert (enough.verdict, enough.facts["bottleneck"]) == (finding.OK, "step")
  many = dataclasses.replace(slow, step_seconds=0.01)
  assert "but there are 4 cores" in diagnosis.balance(many).message
  for stage, words in (
    ("read", "Check the disk"),
    ("tokens", "bottleneck is tokens"),
  ):
    times = GOOD.part_seconds | {stage: 1.0}
    found = diagnosis.balance(dataclasses.replace(slow, part_seconds=times))
    assert found.facts["bottleneck"] == stage and words in found.message
  moved = dataclasses.replace(GOOD, transfer_seconds=0.2)
  found = diagnosis.balance(moved)
  assert (found.verdict, found.facts["bottleneck"]) == (
    finding.WARNING,
    "transfer",
  )
  assert "80 images/s" in found.message
