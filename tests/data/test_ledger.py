"""The account of bad records: exact, and kept through kills and resumes."""

import json
import tracemalloc

import pytest

from clip_jax import errors
from clip_jax.data import ledger
from clip_jax.data.ledger import Problem


def _open(path, records=1000, fraction=0.01):
  return ledger.Ledger(path, records=records, max_bad_fraction=fraction)


PROBLEMS = [
  Problem(3, "a", "truncated", 8),
  Problem(5, "b\u2028", "empty", 9),
  Problem(7, "a", "truncated", 2),
]


def test_problems_are_counted_and_written_as_lines(tmp_path):
  path = tmp_path / "ledger.jsonl"
  book = _open(path)
  book.add(1, PROBLEMS[:2])
  book.add(2, [])
  book.add(3, PROBLEMS[2:])
  assert book.bad == 3
  assert book.counts == {"truncated": 2, "empty": 1}
  assert book.first_keys == ["a", "b\u2028"]
  lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
  assert lines[0] == {
    "step": 1,
    "index": 3,
    "key": "a",
    "reason": "truncated",
    "substitute": 8,
  }
  assert [line["step"] for line in lines] == [1, 1, 3]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path):
  path = tmp_path / "ledger.jsonl"
  book = _open(path)
  for step, problem in enumerate(PROBLEMS, start=1):
    book.add(step, [problem])
  whole = path.read_bytes()
  with open(path, "ab") as file:
    file.write(b'{"step": 4, "ind')  # A kill in the middle of a write.
  again = _open(path)
  assert again.bad == 3
  again.truncate_after(2)
  assert again.bad == 2
  assert again.counts == {"truncated": 1, "empty": 1}
  assert path.read_bytes() == b"".join(whole.splitlines(True)[:2])
  again.add(3, PROBLEMS[2:])
  assert path.read_bytes() == whole
  again.truncate_after(0)
  assert path.read_bytes() == b""
  assert again.first_keys == []


@pytest.mark.parametrize(
  ("records", "bad", "seen", "stops"),
  [
    (1000, 10, 0, False),  # 1 % of the 1,000 records there are.
    (1000, 11, 0, True),
    (1000, 20, 2000, False),
    (1000, 21, 2000, True),
    (10**6, 100, 5, False),  # 1 % of 10,000.
    (10**6, 101, 9999, True),
    (10**6, 101, 10100, False),
    (99, 1, 1, True),
  ],
)
def test_more_than_the_allowed_fraction_stops(
  tmp_path, records, bad, seen, stops
):
  book = _open(tmp_path / "ledger.jsonl", records=records)
  if not stops:
    book.check(bad, seen)
    return
  with pytest.raises(errors.UserError, match=r"max_bad_fraction=0\.01"):
    book.check(bad, seen)


def test_exactly_the_allowed_fraction_does_not_stop(tmp_path):
  assert 0.29 * 100 < 29  # As floats have it.
  book = _open(tmp_path / "ledger.jsonl", records=100, fraction=0.29)
  book.check(29, 100)
  with pytest.raises(errors.UserError, match="allows 29 "):
    book.check(30, 100)


def test_the_message_names_reasons_and_first_keys(tmp_path):
  book = _open(tmp_path / "ledger.jsonl", records=100)
  book.add(1, PROBLEMS)
  with pytest.raises(errors.UserError) as error:
    book.check(book.bad, 8)
  for part in ("3 bad records", "2 truncated", "1 empty", "a, b"):
    assert part in str(error.value)


def test_a_fraction_of_one_lets_any_number_pass(tmp_path):
  book = _open(tmp_path / "ledger.jsonl", records=10, fraction=1.0)
  book.check(17, 16)


def test_no_bad_record_is_allowed_where_the_fraction_is_zero(tmp_path):
  book = _open(tmp_path / "ledger.jsonl", fraction=0.0)
  book.check(0, 10**9)
  with pytest.raises(errors.UserError):
    book.check(1, 10**9)


def test_many_bad_records_take_no_memory(tmp_path):
  path = tmp_path / "ledger.jsonl"
  book = _open(path)
  tracemalloc.start()
  try:
    for step in range(1, 501):
      book.add(
        step,
        [Problem(g, f"{step}/{g}", "truncated", g + 1) for g in range(40)],
      )
    again = _open(path)
    again.truncate_after(400)
    held, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert (book.bad, again.bad) == (20_000, 16_000)
  # Every record in memory was 375 bytes, 13 MB for both.
  assert held < 200_000
  assert again.first_keys == ["1/0", "1/1", "1/2", "1/3", "1/4"]


def test_records_that_were_met_again_are_told_apart(tmp_path):
  book = _open(tmp_path / "ledger.jsonl", records=4)
  for step in range(1, 6):
    book.add(step, PROBLEMS)
  assert (book.bad, book.different) == (15, 2)
  again = r"among 32 examples \(2 different ones, met again in later passes"
  with pytest.raises(errors.UserError, match=again):
    book.check(15, 32)
