"""Devices are named, and idle accelerators told; collectives stay small."""

import jax
import pytest

from clip_jax import sharding
from clip_jax.doctor import finding, machine


def test_devices_are_counted_and_idle_accelerators_told(monkeypatch):
  monkeypatch.setattr(machine.os.path, "exists", lambda path: False)
  found = machine.devices()
  assert found.verdict == finding.OK and "8 x cpu" in found.message
  assert found.facts["devices"] == 8 and found.facts["platform"] == "cpu"
  monkeypatch.setattr(machine.os.path, "exists", "/dev/accel0".__eq__)
  found = machine.devices()
  assert found.verdict == finding.WARNING and "a TPU" in found.message


def test_collectives_hold_a_bounded_array_that_is_born_split(monkeypatch):
  def refuse(*args, **settings):
    pytest.fail("made whole on one device")

  monkeypatch.setattr(jax, "device_put", refuse)
  monkeypatch.setattr(machine, "_GATHERED_BYTES", 2**16)
  found = machine.collectives(sharding.make_mesh(fsdp=2))
  # What an all-gather leaves on a device is eight times that.
  assert found.facts["bytes_per_device"] == 2**13
  assert found.facts["all_gather_bytes_per_second"] > 0


def test_bandwidths_are_what_reaches_or_leaves_a_device(monkeypatch):
  monkeypatch.setattr(machine, "_GATHERED_BYTES", 2**16)
  monkeypatch.setattr(machine, "_best_seconds", lambda run: 0.5)
  facts = machine.collectives(sharding.make_mesh(fsdp=2)).facts
  # Each of eight devices gets the 8 KiB that each of seven others has.
  assert facts["all_gather_bytes_per_second"] == 7 * 2**13 / 0.5
  # A sum sends seven eighths of 8 KiB away and gets as much back.
  assert facts["psum_bytes_per_second"] == 2 * 7 * 2**13 / 8 / 0.5
