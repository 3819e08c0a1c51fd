"""`data mix`: what it says of a mixture, and what it writes, is what a run
reads."""

import json
import shlex

import numpy as np
import pytest

from clip_jax import cli
from clip_jax import config as config_lib
from clip_jax.data import (
  account,
  copying,
  mixing,
  mixture,
  order,
  pipeline,
  shares,
  sources,
)
from clip_jax.train import run_data

BATCH = 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Little data are enough for several processes."""
  monkeypatch.setattr(copying, "_CHUNK", 3)


@pytest.fixture
def addresses(tmp_path, png):
  """Returns the addresses of two tables of 7 and 4 images."""

  def make(name, rows):
    (tmp_path / name).mkdir()
    for row in range(rows):
      path = tmp_path / name / f"{row}.png"
      path.write_bytes(png(row + ord(name[0])))
    lines = [f"{row}.png\t{name} {row}" for row in range(rows)]
    table = tmp_path / name / "pairs.tsv"
    table.write_text("\n".join(["image\tcaption", *lines, ""]), "utf-8")
    return f"csv:{table}"

  return [make("many", 7), make("few", 4)]


def _opened(addresses, weights, **fields):
  train = config_lib.mixture(zip(addresses, weights, strict=True))
  data = config_lib.Data(train=train, **fields)
  return run_data.open_training(data, sources.open_source)


def _run(capsys, *words):
  cli.main(["data", "mix", *map(str, words), "--json"])
  return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
  ("weights", "lengths"),
  [((2, 1), (7, 4)), ((1, 3, 2), (1, 5, 9)), ((1,), (6,)), ((9, 7), (3, 40))],
)
def test_epochs_end_where_a_loop_ends_them(
  weights, lengths, list_source, pairs
):
  parts = [
    mixture.Part(f"csv:{i}", list_source(pairs(length)), weight)
    for i, (weight, length) in enumerate(zip(weights, lengths, strict=True))
  ]
  left, wanted, n = list(lengths), [0] * len(lengths), 0
  while any(left):
    source, _ = shares.place(weights, n)
    n += 1
    if left[source]:
      left[source] -= 1
      wanted[source] = n if not left[source] else 0
  assert mixing.epoch_ends(mixture.Mixture(parts)) == wanted


def test_what_it_says_is_what_a_run_reads(addresses, capsys, spec, tokens):
  found = _run(
    capsys, *addresses, "--weights", "2,1", "--seed", 3, "--examples", 40,
    "--first", 15,
  )  # fmt: skip
  source = _opened(addresses, (2, 1))
  assert found["config"]["data.train"] == config_lib.mixture(
    zip(addresses, (2, 1), strict=True)
  )
  with pipeline.train_batches(
    source,
    seed=3,
    batch_size=BATCH,
    rows=np.arange(BATCH),
    start_step=0,
    preprocess=spec,
    tokenizer=tokens,
  ) as batches:
    read = [int(slot) for _ in range(8) for slot in next(batches)["record"]]
  keys = [source[slot].key for slot in read]
  assert [each["key"] for each in found["first"]] == keys[:15]
  for each, address in zip(found["sources"], addresses, strict=True):
    own = [i for i, key in enumerate(keys, 1) if key.startswith(address)]
    assert each["address"] == address
    assert each["examples"] == len(own)
    assert each["passes"] == pytest.approx(len(own) / each["records"])
    assert each["first_epoch_ends"] == own[each["records"] - 1]


def test_its_copy_holds_the_examples_in_order(addresses, capsys, tmp_path):
  outs = [tmp_path / "one", tmp_path / "two"]
  for out, workers in zip(outs, (1, 2), strict=True):
    found = _run(
      capsys, *addresses, "--weights", "1,1", "--seed", 1, "--examples", 30,
      "--out", out, "--workers", workers,
    )  # fmt: skip
    assert found["written"]
  copy = sources.open_source(f"arrayrecord:{outs[0]}")
  source = _opened(addresses, (1, 1))
  slots = order.of(source, 1)
  wanted = [source[slots.slot(g)] for g in range(30)]
  assert [copy[i] for i in range(len(copy))] == wanted
  one, two = (
    {path.name: path.read_bytes() for path in out.iterdir()} for out in outs
  )
  assert one == two
  same = _run(
    capsys, *addresses, "--seed", 1, "--examples", 30, "--out", outs[0]
  )
  assert not same["written"]
  cli_words = [*addresses, "--seed", "2", "--examples", "30"]
  with pytest.raises(SystemExit) as ended:
    cli.main(["data", "mix", *cli_words, "--out", str(outs[0])])
  assert ended.value.code == 1
  said = capsys.readouterr().err
  assert "by other rules" in said and "nothing is overwritten" in said


def test_a_bad_image_is_replaced_by_one_of_its_source(addresses, tmp_path):
  (tmp_path / "few" / "2.png").write_bytes(b"no picture")
  source = _opened(addresses, (1, 2))
  examples = mixing.Examples(source, 60, seed=0)
  slots = order.of(source, 0)
  for g in range(60):
    wanted, given = source[slots.slot(g)].key, examples[g].key
    assert wanted.split(": ")[0] == given.split(": ")[0]
    assert given == wanted or wanted.endswith("2.png")
    assert not given.endswith("few/pairs.tsv: 2.png")
  with pytest.raises(IndexError):
    examples[60]


def test_a_source_without_a_good_image_ends_it(addresses, tmp_path, fails):
  for row in range(4):
    (tmp_path / "few" / f"{row}.png").write_bytes(b"no picture")
  for workers in (1, 2):
    said = fails(
      "data", "mix", *addresses, "--out", tmp_path / "out", "--workers", workers
    )
    assert "bad records in a row" in said
    assert not (tmp_path / "out").exists()


def test_temperature_and_held_out_are_those_of_training(addresses, capsys):
  found = _run(capsys, *addresses, "--temperature", 2, "--held-out", 0.25)
  parts = _opened(addresses, (1, 1), temperature=2, held_out=0.25).parts
  assert [each["weight"] for each in found["sources"]] == [
    part.weight for part in parts
  ]
  assert [each["records"] for each in found["sources"]] == [5, 3]
  assert found["examples"] == found["records"] == 8


def test_the_flags_that_it_prints_train_on_it(addresses, capsys):
  cli.main(["data", "mix", *addresses, "--weights", "0.5,1"])
  said = capsys.readouterr().out
  assert "33.3 %" in said
  lines = map(str.strip, said.splitlines())
  flags = [
    x for line in lines if "--config." in line for x in shlex.split(line)
  ]
  # Of any config, also of one that has a seed and a share of its own.
  data = config_lib.Data(train="csv:x", temperature=2.0, held_out=0.25)
  config = config_lib.with_overrides(
    config_lib.Config(steps=1, seed=5, data=data),
    [flag.removeprefix("--config.") for flag in flags],
  )
  assert (config.seed, config.data.held_out, config.data.temperature) == (
    0,
  ) * 3
  wanted = zip(addresses, (0.5, 1), strict=True)
  assert config.data.train == config_lib.mixture(wanted)


def test_a_copy_has_lost_the_share_that_the_sources_have(list_source, pairs):
  source = list_source(pairs(30))
  source.account = account.Account(lost={"a.tar": 20, "b.tar": None})
  whole = mixture.Mixture(
    [
      mixture.Part("wds:a", source, 1),
      mixture.Part("csv:b", list_source(pairs(70)), 9),
    ]
  )
  for number, lost in ((100, 20), (10, 2), (1000, 200)):
    found = mixing.Examples(whole, number, seed=0).account
    assert found.lost_records == lost + 1  # Of b.tar, at least one.


@pytest.mark.parametrize(
  ("words", "code", "said"),
  [
    (["--weights", "1"], 2, "one for each"),
    (["--weights", "1,0"], 2, "above 0"),
    (["--weights", "1,nan"], 2, "above 0"),
    (["--weights", "1,x"], 2, "above 0"),
    (["--examples", str(2**63)], 2, f"at most {2**63 - 1}"),
    (["--temperature", "0"], 2, "above 0"),
    (["--workers", "2"], 2, "--out"),
    (["--weights", "0.333333,0.666667"], 1, "ratio"),
    (["--held-out", "1"], 1, "held_out"),
    (["--temperature", "101"], 1, "temperature"),
    (["--seed", "-1"], 1, "seed"),
    (["--out", ".."], 1, "OUT"),
  ],
)
def test_wrong_arguments_are_refused(addresses, words, code, said, fails):
  assert said in fails("data", "mix", *addresses, *words, code=code)


def test_a_source_is_given_once(addresses, fails):
  assert "once" in fails("data", "mix", addresses[0], addresses[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_that_are_replaced_are_told(
  addresses, tmp_path, capsys, workers
):
  (tmp_path / "few" / "2.png").unlink()
  (tmp_path / "few" / "3.png").write_bytes(b"no image")
  words = [*addresses, "--examples", 8, "--out", tmp_path / "out"]
  words += ["--workers", workers]
  found = _run(capsys, *words, "--first", 8)
  # Four examples are of `few`, one pass over its four records.
  assert found["replaced"].keys() == {"missing_file", "not_an_image"}
  replaced = [x for each in found["first"] for x in each["replaces"]]
  assert len(replaced) == sum(found["replaced"].values())
  assert any("2.png: missing_file" in x for x in replaced)
  assert _run(capsys, *words)["replaced"] == found["replaced"]
  cli.main(["data", "mix", *map(str, words), "--first", "8"])
  said = capsys.readouterr().out
  assert "Bad records were replaced" in said and " is in place of " in said
