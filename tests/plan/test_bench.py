"""The table of plans in tools/bench."""

import pytest

import by_path
from clip_jax.plan import presentation


@pytest.fixture(scope="module")
def bench():
  return by_path.load("tools/bench/plan.py")


def test_rows_of_other_versions_or_another_search_are_not_current(
  bench, monkeypatch
):
  case = bench.CASES[0]
  row = {**bench.key(case, False), "peak_bytes": 1}
  assert bench.is_current(row, case, False)
  assert not bench.is_current(row, case, True)
  assert not bench.is_current(row, bench.CASES[1], False)
  assert not bench.is_current({}, case, False)
  monkeypatch.setattr(presentation, "versions", lambda: {"jax": "0.0.1"})
  assert not bench.is_current(row, case, False)


def test_rows_without_a_peak_are_in_the_table(bench):
  row = {
    **{"model": "ViT-B-32", "batch_size": 64, "topology": "v5e:2x2"},
    **{"chips": 4, "overrides": ["mesh.fsdp=1"], "fits": False},
    **{"peak_bytes": None, "available_bytes": 2**34, "flops_ratio": None},
    **{"step_seconds": None, "utilisation": None},
  }
  head, _, line = bench.markdown([row]).splitlines()
  assert line.count("|") == head.count("|")
  assert "| no | - | - |" in line
