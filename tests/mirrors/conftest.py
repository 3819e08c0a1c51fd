"""What the tests of buckets share."""

import pytest

import bucket_stand_in


@pytest.fixture
def store(monkeypatch, tmp_path):
  """A store that both schemes lead to; attempts follow each other at once."""
  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    yield store
