"""A config that cannot learn is told why."""

import dataclasses
import json
import math

import pytest

from clip_jax import cli
from clip_jax.doctor import finding, learning

GOOD = learning.Trial(
  losses=[2.9, 2.0, 0.1],
  floor=0.0,
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
  workers_note="data.workers=0, data.threads=4",
)
STUCK = [math.log(16)] * 3


def test_a_batch_that_is_learned_is_fine():
  found = learning.diagnose(GOOD, kind="softmax")
  assert found.verdict == finding.OK
  assert found.facts["last_loss"] == 0.1
  assert found.facts["log_pairs"] == math.log(16)


def test_equal_captions_excuse_a_loss_at_their_floor():
  trial = dataclasses.replace(
    GOOD, losses=[2.8, 1.4, 1.1], floor=1.0, distinct_captions=5
  )
  assert learning.diagnose(trial, kind="softmax").verdict == finding.OK
  above = dataclasses.replace(trial, floor=0.0)
  assert learning.diagnose(above, kind="softmax").verdict == finding.OK
  worse = dataclasses.replace(trial, losses=[2.8, 2.7, 2.6])
  assert learning.diagnose(worse, kind="softmax").verdict == finding.WARNING


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
  trial = dataclasses.replace(GOOD, losses=STUCK, **changes)
  found = learning.diagnose(trial, kind="softmax")
  assert found.verdict == finding.PROBLEM
  assert "log(16)" in found.message and words in found.message


def test_a_loss_that_is_stuck_without_a_known_cause_is_a_problem_too():
  trial = dataclasses.replace(GOOD, losses=STUCK)
  found = learning.diagnose(trial, kind="softmax")
  assert found.verdict == finding.PROBLEM
  assert "No known cause" in found.message


def test_a_loader_that_is_slower_than_the_step_is_told():
  assert learning.balance(GOOD).verdict == finding.OK
  slow = dataclasses.replace(GOOD, loader_seconds=0.5)
  found = learning.balance(slow)
  assert found.verdict == finding.WARNING
  assert "32 images/s" in found.message and "data.workers" in found.message


def test_the_verb_names_why_a_real_run_stands_still(capsys):
  """A tiny run, at a learning rate that does nothing."""
  code = cli.run(
    [
      "doctor",
      "--config=tests/configs/tiny_bow.py",
      "--config.optim.peak_lr=1e-12",
      "--steps=2",
      "--json",
    ]
  )
  answer = json.loads(capsys.readouterr().out)
  by_name = {found["check"]: found for found in answer["findings"]}
  assert code == 1 and answer["verdict"] == "problem"
  overfit = by_name["overfit one batch"]
  assert "raise optim.peak_lr" in overfit["message"]
  assert overfit["facts"]["moved"] < 1e-9
  assert by_name["collectives"]["facts"]["psum_bytes_per_second"] > 0
  assert by_name["duplicate captions"]["facts"]["sampled"] > 99


def test_steps_need_a_config(capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.run(["doctor", "--steps=3"])
  assert stopped.value.code == 2
  assert "--config FILE" in capsys.readouterr().err
