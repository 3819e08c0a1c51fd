"""What is read off the command line, and what its help shows."""

import dataclasses
import json
import shlex

import pytest

from clip_jax import cli
from clip_jax.cli import parser, verbs
from clip_jax.cli import verb as verb_lib

PARSERS = parser.make_parser()[1]


@pytest.mark.parametrize(
  "verb",
  [
    *PARSERS,
    *(f"{name} {x}" for name, each in PARSERS.items() for x in each.actions),
  ],
)
def test_the_help_of_a_verb_ends_with_examples_that_parse(verb, capsys):
  verb, *action = verb.split()
  with pytest.raises(SystemExit):
    cli.main([verb, *action, "--help"])
  shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
  assert len(shown) >= 2
  for line in shown:
    program, *words = shlex.split(line.partition(" > ")[0])
    assert program == "clip-jax"
    found = parser.parse(words)
    assert found.verb == verb
    assert not action or found.action == action[0]


@pytest.mark.parametrize("words", [[], ["data"]])
def test_nothing_to_do_lists_what_there_is_with_a_line_each(words, capsys):
  with pytest.raises(SystemExit, match="2"):
    cli.main(words)
  out, error = capsys.readouterr()
  names = PARSERS["data"].actions if words else PARSERS
  lines = [line.split() for line in error.splitlines()]
  assert out == ""
  for name in names:
    assert any(line[:1] == [name] for line in lines), name


@pytest.mark.parametrize(
  "words, means",
  [
    ("--config configs/demo.py train", "clip-jax train --config …"),
    ("--workdir=runs/mine", "clip-jax VERB --workdir=runs/mine …"),
    ("-k 5 search index", "clip-jax search -k …"),
  ],
)
def test_a_flag_before_the_verb_is_told(words, means, capsys):
  with pytest.raises(SystemExit, match="2"):
    cli.main(words.split())
  error = capsys.readouterr().err
  assert f"the verb comes first: {means}" in error


@pytest.mark.parametrize("words", ["-h", "--help", "--version"])
def test_flags_of_the_command_itself_need_no_verb(words, capsys):
  with pytest.raises(SystemExit, match="0"):
    cli.main([words])
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  "words, remark",
  [
    ("search index text -k 5", None),
    ("search index text --json --json", None),
    ("classify m 1.png 2.png --labels a,b", None),
    (
      "search index text -k 5 -k6",
      "-k is given 2 times; the last one counts: 6",
    ),
    (
      "classify m 1.png --labels a,b --labels=c",
      "--labels is given 2 times; the last one counts: c",
    ),
    (
      "eval m --task retrieval --data d --template x --templates y",
      "--templates is given 2 times; the last one counts: y",
    ),
    (
      "train --config c --workdir d --config.seed=1 --config.seed 2",
      "--config.seed is given 2 times; the last one counts: 2",
    ),
    (
      "data prepare a b --drop-bad --drop-bad",
      None,
    ),
    ("data curate a b --size 9 --queries en=a --queries de=b", None),
    (
      "data curate a b --queries en=a --size 9 --queries=de=b --size 8",
      "--size is given 2 times; the last one counts: 8",
    ),
    ("search index -k 5 -- -k", None),
    ("eval m --task retrieval --data d --duplicates", None),
  ],
)
def test_a_flag_given_twice_is_told(words, remark):
  assert parser.parse(words.split()).remarks == [remark] * bool(remark)


def test_a_remark_goes_to_stderr_and_the_answer_to_stdout(capsys, monkeypatch):
  monkeypatch.setitem(
    verbs.VERBS,
    "search",
    dataclasses.replace(
      verbs.VERBS["search"], run=lambda _: verb_lib.Answer({"a": 1}, "a")
    ),
  )
  cli.main(["search", "index", "text", "-k", "1", "-k", "2", "--json"])
  captured = capsys.readouterr()
  assert json.loads(captured.out) == {"a": 1}
  assert "-k is given 2 times; the last one counts: 2" in captured.err


@pytest.mark.parametrize(
  "words, name",
  [
    ("search index {}", "TEXT"),
    ("classify m a.png --labels {},dog", "--labels"),
    ("classify m a.png --labels a,b --template {}{{}}", "--template"),
  ],
)
def test_a_text_that_is_no_unicode_is_refused(words, name, fails):
  text = b"caf\xe9".decode(errors="surrogateescape")
  said = fails(*words.format(text).split())
  assert said.startswith(f"Error: {name} 'caf\\xe9")
  assert "is no text" in said


@pytest.mark.parametrize(
  "words",
  [
    "data prepare builtin:digits/test gs://bucket/out",
    "convert run out --to clip-jax --config gs://bucket/c.json",
    "train --config gs://bucket/c.py --workdir runs/a",
    "eval run --suite all --data-root data --csv gs://bucket/a.csv",
    "eval run --task zero_shot --data builtin:digits --labels gs://bucket/a",
    "classify run a.png --labels a,b --template gs://bucket/a",
    "card run --reports results gs://bucket/results",
    "data curate csv:a.csv out --queries gs://bucket/q --size 9",
    "data queries gs://bucket/text.txt out",
    "card run --out gs://bucket/card.md",
    "search index --export gs://bucket/a.faiss",
    "eval hdfs://bucket/run --task zero_shot --data builtin:digits/test",
  ],
)
def test_what_is_remote_is_to_be_mounted(words, fails):
  assert "mount the bucket" in fails(*words.split()).lower()


@pytest.mark.parametrize(
  "words",
  [
    "eval none --task zero_shot --data gs://bucket/a",
    "eval none --task knn --data builtin:digits --train-data s3://bucket/a",
    "embed none --data gs://bucket/a --out out",
  ],
)
def test_data_without_a_kind_are_refused_before_a_model_is_looked_for(
  words, fails
):
  assert "does not say what kind of data it is" in fails(*words.split())


def test_every_action_of_data_has_a_command_and_no_other_has():
  assert verbs.DATA_ACTIONS.keys() == PARSERS["data"].actions.keys()
