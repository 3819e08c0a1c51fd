"""Python's garbage collector during a command."""

import gc
import subprocess
import sys

import pytest

from clip_jax import cli, collector

_COMMAND = """
import gc, sys
from clip_jax import __main__
sys.argv = ["clip-jax", *{arguments}]
try:
  __main__.main()
finally:
  print(gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def as_before():
  enabled = gc.isenabled()
  yield
  gc.unfreeze()
  (gc.enable if enabled else gc.disable)()


def _state_after(*arguments):
  command = [sys.executable, "-c", _COMMAND.format(arguments=arguments)]
  found = subprocess.run(command, capture_output=True, text=True, check=True)
  return found.stderr.split()


def test_a_command_collects_once_its_modules_are_there():
  assert _state_after("models") == ["True", "True"]


def test_a_command_within_another_program_leaves_the_collector_alone():
  before = gc.get_freeze_count()
  assert cli.run(["models"]) == 0
  assert gc.isenabled()
  assert gc.get_freeze_count() == before


def test_a_collector_that_was_off_stays_off():
  gc.disable()
  before = gc.get_freeze_count()
  collector.pause()
  collector.resume()
  assert not gc.isenabled()
  assert gc.get_freeze_count() == before


def test_what_a_pause_has_seen_is_kept_out_of_later_collections():
  collector.pause()
  assert not gc.isenabled()
  collector.resume()
  assert gc.isenabled()
  assert gc.get_freeze_count() > 0
