import io

import pytest

from clip_jax import terminal


@pytest.mark.parametrize(
  "text, shown",
  [
    ("a cat", "a cat"),
    ("two\nlines\tand  spaces ", "two lines and spaces"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b]0;title\x07after", "after"),
    ("\x1b]8;;http://x\x1b\\link", "link"),
    ("a\x1bcb", "ab"),
    ("\x9b2Jclear", "clear"),
    ("cut \x1b[", "cut"),
    ("bell\x07 null\x00 delete\x7f", "bell null delete"),
    ("right\u202eto left", "rightto left"),
    ("next\u2028line", "next line"),
    ("zero\ufeff width\u200b", "zero width"),
    ("lone \ud800 half", "lone  half"),
    ("日本語 é 😀", "日本語 é 😀"),
    ("\x1b\x1b[31m]", "]"),
  ],
)
def test_nothing_that_steers_a_terminal_is_printed(text, shown):
  assert terminal.printable(text) == shown


def test_no_text_however_made_prints_a_control_character():
  pieces = ["\x1b", "[", "]", "3", "m", "\x07", "\x9b", "a", "\\", "P", "\x9c"]
  for first in pieces:
    for second in pieces:
      for third in pieces:
        shown = terminal.printable(first + second + third)
        assert all(c.isprintable() for c in shown), (first, second, third)


@pytest.mark.parametrize("length", [10, 11, 1_000_000])
def test_a_long_text_is_cut(length):
  shown = terminal.printable("x" * length, limit=10)
  assert len(shown) == 10
  assert shown.endswith("…") == (length > 10)


def test_a_table_aligns_numbers_to_the_right():
  got = terminal.table(
    ("name", "count", "share"), [("cat", 7, "1.5 %"), ("tiger", 12345, "-")]
  )
  assert got.splitlines() == [
    "name   count  share",
    "─────  ─────  ─────",
    "cat        7  1.5 %",
    "tiger  12345      -",
  ]


def test_a_table_without_rows_is_its_header():
  assert terminal.table(("a", "bc"), []).splitlines() == ["a  bc", "─  ──"]


@pytest.mark.parametrize(
  "number, words",
  [
    (0, "0"),
    (999, "999"),
    (1000, "1.00 k"),
    (12_345, "12.3 k"),
    (151_277_313, "151 M"),
    (999_600, "1.00 M"),
    (9.996e9, "10.0 G"),
    (2.5e15, "2500 T"),
  ],
)
def test_a_quantity_has_three_digits(number, words):
  assert terminal.quantity(number) == words


@pytest.mark.parametrize(
  "seconds, words",
  [
    (0.4, "0 s"),
    (59.6, "1 min 0 s"),
    (75, "1 min 15 s"),
    (3700, "1 h 1 min"),
    (float("inf"), "unknown time"),
  ],
)
def test_a_duration_is_said_in_words(seconds, words):
  assert terminal.duration(seconds) == words


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
  return now


def test_progress_writes_a_line_every_few_seconds_into_a_file(clock):
  stream = io.StringIO()
  with terminal.Progress("embed", stream=stream) as progress:
    for done in range(1, 13):
      clock[0] += 1
      progress(done, 40)
  assert stream.getvalue().splitlines() == [
    "embed: 5/40 examples (12 %), 1/s, 35 s left",
    "embed: 10/40 examples (25 %), 1/s, 30 s left",
  ]


def test_progress_goes_to_whatever_can_be_written_to(clock):
  class Logged:
    text = ""

    def write(self, text):
      self.text += text

    def flush(self):
      pass

  with terminal.Progress("embed", stream=Logged()) as progress:
    clock[0] += 6
    progress(3, 10)
  assert progress.stream.text.startswith("embed: 3/10 examples")


def test_progress_of_a_short_job_writes_nothing_into_a_file(clock):
  stream = io.StringIO()
  with terminal.Progress("embed", stream=stream) as progress:
    progress(3, 3)
  assert stream.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away(clock):
  stream = Terminal()
  with terminal.Progress("eval", stream=stream) as progress:
    clock[0] += 2
    progress(1, 2)
    assert "█" * 12 + "░" * 12 + " eval: 1/2" in stream.getvalue()
  assert stream.getvalue().endswith("\r\x1b[K")


def test_a_live_line_tells_what_else_there_is_and_fits_the_terminal(
  clock, monkeypatch
):
  monkeypatch.setenv("COLUMNS", "300")
  stream, asked = Terminal(), []

  def note():
    asked.append(None)
    return "loss 2.5000"

  progress = terminal.Progress("train", unit="steps", stream=stream, first=100)
  clock[0] += 10
  progress(120, 200, note)
  progress(121, 200, note)  # Too soon: nothing is asked for.
  said = "train: 120/200 steps (60 %), 2/s, 40 s left, loss 2.5000"
  assert stream.getvalue().endswith(f" {said}") and len(asked) == 1
  monkeypatch.setenv("COLUMNS", "40")
  clock[0] += 10
  progress(140, 200, note)
  assert len(stream.getvalue().rpartition(terminal.CLEAR)[2]) == 39


def test_there_are_no_colours(clock, monkeypatch):
  monkeypatch.setenv("NO_COLOR", "1")
  stream = Terminal()
  with terminal.Progress("train", stream=stream) as progress:
    clock[0] += 10
    progress(1, 2)
  table = terminal.table(("name",), [("x",)])
  # The only escape sequence is the one that clears the line.
  assert "\x1b" not in stream.getvalue().replace(terminal.CLEAR, "") + table


def test_a_terminal_that_cannot_clear_a_line_gets_lines(clock, monkeypatch):
  monkeypatch.setenv("TERM", "dumb")
  stream = Terminal()
  with terminal.Progress("embed", stream=stream) as progress:
    clock[0] += 10
    progress(1, 2)
  assert stream.getvalue() == "embed: 1/2 examples (50 %), 0.1/s, 10 s left\n"


@pytest.mark.parametrize(
  "encoding, want",
  [
    ("utf-8", "── é … 三"),
    (None, "── é … 三"),
    ("latin-1", "-- é ~ ?"),
    ("ascii", "-- ? ~ ?"),
  ],
)
def test_what_a_stream_lacks_is_drawn_in_ascii(encoding, want):
  assert terminal.encodable("── é … 三", encoding) == want


def test_one_thing_is_not_called_several():
  assert terminal.noun(1, "class", "classes") == "class"
  assert terminal.noun(0, "class", "classes") == "classes"
  assert terminal.noun(2.0, "image") == "images"
  assert terminal.counted(1, "label is", "labels are") == "1 label is"
  assert terminal.counted(12, "example") == "12 examples"
