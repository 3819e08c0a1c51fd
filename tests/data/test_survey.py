"""Surveys: the same result for any split of the work, and after kills."""

import concurrent.futures
import dataclasses
import importlib.metadata
import itertools
import os

import numpy as np
import pytest

import memory_source
from clip_jax import errors, preprocess
from clip_jax.data import prepare, processes, sources
from clip_jax.data.curation import (
  beam_runner,
  curate,
  dedupe,
  filtering,
  findings,
  likeness,
  linking,
  queries,
  rules,
  survey,
)


class Examine:
  """The length of the captions, their words' lengths, and the size."""

  columns = {  # noqa: RUF012
    "length": np.dtype(np.int32),
    "size": np.dtype((np.uint16, (2,))),
  }
  ragged = {"words": np.dtype(np.uint8)}  # noqa: RUF012

  def __init__(self, identity=""):
    self.identity = identity
    self.seen = []

  def __call__(self, record):
    self.seen.append(record.key)
    return {
      "length": len(record.texts[0]),
      "size": preprocess.decode(record.image).size,
      "words": [len(word) for word in record.texts[0].split()],
    }


def _source(records):
  """Returns a source in which every seventh is bad, in one of two ways."""
  bad = {
    record.key: "bb" if slot % 2 else "aa"
    for slot, record in enumerate(records)
    if slot % 7 == 3
  }
  return memory_source.MemorySource(records, bad)


@pytest.fixture(scope="module")
def source(pairs):
  return _source(pairs(150))


@pytest.fixture(scope="module")
def want(source):
  """What a loop finds: a row for each good slot."""
  rows = {}
  for slot in range(len(source)):
    if slot % 7 != 3:
      text = source[slot].texts[0]
      rows[slot] = (len(text), [9, 11], [len(w) for w in text.split()])
  return rows


def _rows(found):
  ends = np.cumsum(found.lengths["words"])
  rows = {}
  for slot in np.flatnonzero(found.good):
    begin = ends[slot] - found.lengths["words"][slot]
    rows[int(slot)] = (
      int(found.columns["length"][slot]),
      found.columns["size"][slot].tolist(),
      found.values["words"][begin : ends[slot]].tolist(),
    )
  return rows


def test_a_survey_finds_what_a_loop_does(source, want):
  found = survey.survey(source, Examine())
  assert _rows(found) == want
  bad = [slot for slot in range(150) if slot % 7 == 3]
  counts = {"bb": sum(s % 2 for s in bad), "aa": sum(1 - s % 2 for s in bad)}
  assert found.bad() == counts
  assert list(found.bad()) == ["bb", "aa"]  # As they come.
  assert len(found.good) == found.good.sum() + sum(counts.values())
  assert not found.columns["length"][~found.good].any()


def test_ranges_in_any_order_are_joined(source, want):
  rng = np.random.default_rng(0)
  job = survey.Job(source, Examine())
  cuts = [0, *sorted(rng.choice(np.arange(1, 150), 11, replace=False)), 150]
  ranges = list(itertools.pairwise(cuts))
  parts = [job.run(*map(int, ranges[i])) for i in rng.permutation(12)]
  found = findings.joined(parts)
  assert _rows(found) == want
  assert list(found.bad()) == ["bb", "aa"]


def test_what_was_found_is_not_looked_for_again(source, want, tmp_path):
  class Stop(Exception):
    pass

  def stop(done):
    seen.append(done)
    if len(seen) == 2:
      raise Stop

  seen = []
  with pytest.raises(Stop):
    survey.survey(source, Examine(), keep=tmp_path, on_record=stop)
  again = Examine()
  found = survey.survey(source, again, keep=tmp_path)
  assert _rows(found) == want
  assert [int(key[3:]) for key in again.seen] == [
    slot for slot in want if slot >= seen[-1]
  ]
  # Of other questions nothing is taken.
  other = Examine("another")
  survey.survey(source, other, keep=tmp_path)
  assert len(other.seen) == len(want)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed"])
def test_damaged_and_foreign_parts_are_found_anew(
  damage, source, want, tmp_path
):
  survey.survey(source, Examine(), keep=tmp_path)
  other = survey.Job(source, Examine("another"))
  shelf = findings.Shelf(tmp_path, other.digest())
  shelf.put(other.run(0, 5))
  (path,) = tmp_path.glob("*-0-150.found")
  data = path.read_bytes()
  if damage == "cut":
    path.write_bytes(data[:-7])
  elif damage == "flipped":
    path.write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:])
  elif damage == "empty":
    path.write_bytes(b"")
  else:  # A part of another job, under a name of this one's.
    (foreign,) = tmp_path.glob("*-0-5.found")
    path.write_bytes(foreign.read_bytes())
  again = Examine()
  assert _rows(survey.survey(source, again, keep=tmp_path)) == want
  assert len(again.seen) == len(want)


def test_parts_that_overlap_count_once(source, want, tmp_path):
  job = survey.Job(source, Examine())
  shelf = findings.Shelf(tmp_path, job.digest())
  for start, stop in [(10, 40), (30, 60), (70, 71), (60, 90), (100, 150)]:
    shelf.put(job.run(start, stop))
  assert _rows(survey.survey(source, Examine(), keep=tmp_path)) == want


def test_two_machines_may_write_the_same_part(source, tmp_path, monkeypatch):
  job = survey.Job(source, Examine())
  shelf = findings.Shelf(tmp_path, job.digest())
  written, real = [], os.replace

  def replace(partial, path):
    written.append(partial)
    if len(written) == 1:
      shelf.put(job.run(0, 5))  # Of a process of the same number.
    real(partial, path)

  monkeypatch.setattr(os, "replace", replace)
  shelf.put(job.run(0, 5))
  assert len({*written}) == 2
  assert len(shelf.parts(150)) == 1


def test_ranges_that_no_part_has(source):
  job = survey.Job(source, Examine())
  assert findings.gaps([], 5, length=2) == [(0, 2), (2, 4), (4, 5)]
  parts = [job.run(0, 1), job.run(3, 4)]
  assert findings.gaps(parts, 5, length=9) == [(1, 3), (4, 5)]
  assert findings.gaps([job.run(0, 5)], 5, length=9) == []


def test_no_more_processes_begin_than_there_are_ranges():
  class Job:
    run = staticmethod(range)  # Not picklable within a function.

  found = processes.run(Job(), [(2, 5)], workers=10**9)
  assert list(found) == [range(2, 5)]


def test_processes_find_the_same_as_this_one(pairs, tmp_path):
  source = _source(pairs(150))
  prepare.prepare(source, tmp_path / "out")
  opened = sources.open_source(f"arrayrecord:{tmp_path / 'out'}")
  # Another process cannot import what a test defines.
  rule = curate.Rule(queries.Queries(("é", "caption é")), size=1)
  examine = curate._Examine(rule, preprocess.DEFAULT_LIMITS)
  one, two = (survey.survey(opened, examine, workers=n) for n in (1, 2))
  for field in ("columns", "lengths", "values"):
    for name, array in getattr(one, field).items():
      assert np.array_equal(array, getattr(two, field)[name])
  assert one.bad() == two.bad()


def test_at_most_so_many_ranges_wait():
  begun = []
  with concurrent.futures.ThreadPoolExecutor(1) as pool:

    class Pool:
      def submit(self, function, start, stop):
        begun.append(start)
        return pool.submit(lambda: start)

    found = processes.in_turn(Pool(), [(i, i + 1) for i in range(20)], 3)
    assert next(found) == 0
    assert len(begun) == 3
    assert list(found) == list(range(1, 20))
  assert begun == list(range(20))


def test_what_workers_put_elsewhere_is_not_read_again_in_silence(
  source, want, tmp_path
):
  reached = [50, 150]

  def fill(job, todo, shelf, on_record):
    for start, stop in todo:
      shelf.put(job.run(start, min(stop, reached[0])))

  examine = Examine()
  with pytest.raises(processes.Interrupted, match="in 100 of 150 records"):
    survey.survey(source, examine, keep=tmp_path, fill=fill)
  assert len(examine.seen) < 50
  del reached[0]
  found = survey.survey(source, examine, keep=tmp_path, fill=fill)
  assert _rows(found) == want
  assert len(examine.seen) == len(want)


def test_a_pipeline_that_ended_otherwise_has_failed():
  for state in (None, "DONE"):
    beam_runner._check_done(state)
  with pytest.raises(RuntimeError, match="FAILED"):
    beam_runner._check_done("FAILED")


def _filter(source, out, fill):
  limits = rules.Rules(min_chars=12, max_run=3)
  return filtering.filter_pairs(source, out, limits, fill=fill)


def _curate(source, out, fill):
  words = [source[slot].texts[0].split() for slot in (0, 1, 2, 40)]
  texts = dict.fromkeys(word for each in words for word in each)
  rule = curate.Rule(queries.Queries(tuple(texts)), max_per_query=40)
  return curate.curate(source, out, rule, fill=fill)


def _dedupe(source, out, fill):
  rule, work = likeness.Rule(max_distance=2), linking.Work(fill=fill)
  return dedupe.dedupe(source, out, rule, work=work)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Of Beam's own dependencies.
@pytest.mark.parametrize("choose", [_filter, _curate, _dedupe])
def test_beam_finds_the_same_as_this_process(pairs, tmp_path, choose):
  pytest.importorskip("apache_beam")
  # A third of the images are there twice, and every seventh pair is bad.
  records = pairs(600)
  for slot in range(1, 600, 3):
    records[slot] = dataclasses.replace(
      records[slot], image=records[slot - 1].image
    )
  prepare.prepare(_source(records), tmp_path / "out")
  opened = sources.open_source(f"arrayrecord:{tmp_path / 'out'}")
  for name, fill in (("one", None), ("beam", beam_runner.fill())):
    found = choose(opened, tmp_path / name, fill)
    assert (
      0 < found["kept"] < 600 - sum(slot % 7 == 3 for slot in range(600))
    )  # Some were dropped by choice.
  one, other = (
    {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    for name in ("one", "beam")
  )
  assert one == other
  fill = beam_runner.fill(["--runner=NoSuchRunner"])
  with pytest.raises(processes.Interrupted, match="NoSuchRunner"):
    choose(opened, tmp_path / "none", fill)


def test_without_beam_the_extra_is_named(monkeypatch):
  def version(name):
    raise importlib.metadata.PackageNotFoundError

  monkeypatch.setattr(importlib.metadata, "version", version)
  with pytest.raises(errors.UserError, match=r"jax-clip\[beam\]"):
    beam_runner.fill()
