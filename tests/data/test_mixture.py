"""Mixtures: exact shares, and no record twice in an epoch of its source."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memory_source
from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.data import account, mixture, order, pipeline, shares, sources
from clip_jax.data import record as record_lib
from clip_jax.results import addresses

BATCH = 6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_every_source_has_its_share_within_one(weights):
  found = shares.period(tuple(weights))
  total = sum(weights)
  assert np.bincount(found).tolist() == weights
  ahead = np.zeros(len(weights))
  for n, source in enumerate(found, 1):
    ahead[source] += 1
    # In whole numbers: n * weight / total - 1 < ahead < n * weight / total + 1.
    apart = ahead * total - n * np.array(weights)
    assert (np.abs(apart) < total).all()
  # Every row as long as the period, wherever it begins, has each exactly.
  twice = np.concatenate([found, found])
  for start in range(total):
    row = np.bincount(twice[start : start + total], minlength=len(weights))
    assert row.tolist() == weights


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 200))
def test_places_and_counts_are_those_of_a_loop(weights, n):
  weights = tuple(weights)
  seen = [0] * len(weights)
  for i in range(n):
    source = int(shares.period(weights)[i % sum(weights)])
    assert shares.place(weights, i) == (source, seen[source])
    seen[source] += 1
  assert shares.counts(weights, n) == seen


@pytest.mark.parametrize(
  ("text", "weights"),
  [
    ("wds:a.tar", None),
    ('{"wds:a.tar": 2, "csv:b.tsv": 4}', {"wds:a.tar": 1, "csv:b.tsv": 2}),
    (' ["csv:a", "csv:b"]', {"csv:a": 1, "csv:b": 1}),
    ('{"csv:a": 0.65, "csv:b": 0.35}', {"csv:a": 13, "csv:b": 7}),
    ('{"csv:a": 1e-3, "csv:b": 1}', {"csv:a": 1, "csv:b": 1000}),
    ('{"csv:a": 7}', {"csv:a": 1}),
  ],
)
def test_weights_are_in_lowest_terms(text, weights):
  assert mixture.parse(text) == weights


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("{", "JSON"),
    ("{}", "no data"),
    ("[]", "no data"),
    ('["csv:a", "csv:a"]', "each once"),
    ('[["csv:a", 1]]', "object"),
    ('{"csv:a": 1, "csv:a": 2}', "twice"),
    ('{"csv:a": 0}', "above 0"),
    ('{"csv:a": -1}', "above 0"),
    ('{"csv:a": "1"}', "above 0"),
    ('{"csv:a": true}', "above 0"),
    ('{"csv:a": NaN}', "JSON"),
    ("{'csv:a': 1}", 'valid JSON .*; write {"csv:a": 1}'),
    ("('csv:a', 'csv:b')", r'; write \["csv:a", "csv:b"\]'),
    ('{"csv:a": 1', "valid JSON .*csv:a"),
    ('{"csv:a": 1e999}', "above 0"),
    ('{"csv:a": 0.333333, "csv:b": 0.666667}', "ratio"),
  ],
)
def test_wrong_weights_are_refused(text, said):
  with pytest.raises(errors.UserError, match=said):
    mixture.parse(text)


@pytest.mark.parametrize(
  ("weights", "records", "temperature", "wanted"),
  [
    ([1, 1], [300, 100], 1, [3, 1]),
    ([1, 3], [300, 100], 1, [1, 1]),
    ([1, 1], [900, 100], 2, [3, 1]),
    ([1, 2], [8, 1], 3, [1, 1]),
    ([1, 1], [10**9, 1], 0.001, [9999 + 1, 1]),  # Never nothing.
    ([3, 1, 1], [9, 9, 8], 1e-308, [7500, 2500, 1]),
  ],
)
def test_larger_sources_count_more_by_temperature(
  weights, records, temperature, wanted
):
  assert mixture.tempered(weights, records, temperature) == wanted


@pytest.mark.parametrize("temperature", [0.7, 1, 2.5, 100])
def test_shares_are_those_of_the_power(temperature):
  rng = np.random.default_rng(0)
  records = rng.integers(1, 10**6, 12)
  weights = rng.integers(1, 9, 12)
  got = np.array(mixture.tempered(weights, records, temperature))
  wanted = weights * records ** (1 / temperature)
  assert got.min() >= 1 and got.sum() <= 10_000 + len(got)
  np.testing.assert_allclose(
    got / got.sum(), wanted / wanted.sum(), rtol=1e-3, atol=2e-4
  )


def test_a_config_takes_a_dict_or_pairs():
  weights = {"wds:a.tar": 2, "csv:b.tsv": 1}
  for given_as in (weights, tuple(weights.items())):
    assert mixture.parse(config_lib.mixture(given_as)) == weights
  with pytest.raises(errors.UserError, match="'csv:a' 2 times"):
    config_lib.mixture([("csv:a", 1), ("csv:a", 2)])


def test_a_mixture_is_named_without_directories():
  text = json.dumps({"wds:/home/me/a.tar": 2, "csv:/home/me/b.tsv": 1})
  assert addresses.shown(text) == "2 x wds:a.tar + 1 x csv:b.tsv"


@pytest.fixture
def make(list_source, pairs):
  """Returns a function that makes a mixture of sources of some lengths."""

  def run(weights, lengths=(5, 7, 3), skip=()):
    parts = []
    for number, weight in enumerate(weights):
      records = [
        sources.Record(pair.image, (f"{number}",), f"{number}/{pair.key}")
        for pair in pairs(lengths[number])
      ]
      source = list_source(records)
      source.fingerprint = f"source {number}"
      if number not in skip and weight:
        parts.append(mixture.Part(f"csv:{number}", source, weight))
    return mixture.Mixture(parts)

  return run


def _slots(source, examples, *, seed=3):
  slots = order.of(source, seed)
  return [slots.slot(g) for g in examples]


def _keys(source, examples):
  return [source[slot].key for slot in _slots(source, examples)]


def _check_epochs(keys, lengths):
  """Raises unless each source's keys are permutations, one after the other."""
  by_source = collections.defaultdict(list)
  for key in keys:
    by_source[key.split(": ")[-1].split("/")[0]].append(key.split(": ")[-1])
  for number, read in by_source.items():
    length = lengths[int(number)]
    for start in range(0, len(read), length):
      epoch = read[start : start + length]
      assert len(set(epoch)) == len(epoch), number


def test_each_source_has_its_own_epochs(make):
  source = make((2, 1, 1))
  keys = _keys(source, range(200))
  _check_epochs(keys, (5, 7, 3))
  counts = collections.Counter(key.split(":")[1] for key in keys)
  assert counts == {"0": 100, "1": 50, "2": 50}
  assert keys != _keys(source, range(200, 400))  # Epochs differ.
  assert keys[0].startswith("csv:0: 0/")


def test_batches_of_a_mixture_do_not_depend_on_where_they_are_made(
  make, spec, tokens
):
  source = make((2, 1, 1))
  how = {
    "seed": 3,
    "batch_size": BATCH,
    "preprocess": spec,
    "tokenizer": tokens,
  }

  def take(rows, steps, start_step=0, **options):
    with pipeline.train_batches(
      source, rows=np.array(rows), start_step=start_step, **how, **options
    ) as batches:
      return [next(batches) for _ in range(steps)]

  whole = take(range(BATCH), 4)
  for step, batch in enumerate(whole):
    examples = range(step * BATCH, (step + 1) * BATCH)
    assert batch["record"].tolist() == _slots(source, examples)
  later = take(range(BATCH), 2, start_step=2, threads=1)
  halves = [take(rows, 4) for rows in ((0, 1, 2), (3, 4, 5))]
  for name in ("image", "tokens", "record"):
    np.testing.assert_array_equal(later[1][name], whole[3][name])
    joined = np.concatenate([half[2][name] for half in halves])
    np.testing.assert_array_equal(joined, whole[2][name])


def test_a_bad_record_is_replaced_from_its_own_source(
  make, list_source, pairs, spec, tokens
):
  source = make((1, 1))
  broken = [*pairs(3), "damaged"]
  bad = mixture.Part("wds:bad", list_source(broken), 1)
  bad.source.fingerprint = "bad"
  source = mixture.Mixture([source.parts[0], bad])
  with pipeline.train_batches(
    source,
    seed=3,
    batch_size=BATCH,
    rows=np.arange(BATCH),
    start_step=0,
    preprocess=spec,
    tokenizer=tokens,
  ) as batches:
    found = [next(batches) for _ in range(4)]
  problems = [problem for batch in found for problem in batch["problems"]]
  assert problems and {p.key for p in problems} == {"wds:bad: slot3"}
  ends = len(source.parts[0].source)
  of_bad = [slot >= ends for batch in found for slot in batch["record"]]
  assert of_bad == [bool(n) for n in shares.period((1, 1)).tolist()] * 12


def _position(source, batch_size=BATCH):
  said = mixture.position(source, address="csv:0", batch_size=batch_size)
  return json.loads(json.dumps(said))  # As a checkpoint holds it.


def _go_on(source, saved, step, batch_size=BATCH):
  return mixture.go_on(
    source, saved, address="csv:0", step=step, batch_size=batch_size
  )


def test_a_run_goes_on_after_any_number_of_changes(make):
  """Sources and weights change ten times, with kills between; a source that
  was gone goes on where it stood."""
  rng = np.random.default_rng(0)
  lengths = (50, 70, 30)
  source, step, keys, saved = make((2, 1, 1), lengths), 0, [], None
  for _ in range(10):
    source = _go_on(source, saved, step)
    for _ in range(3):  # Killed and resumed, each time from its checkpoint.
      again = _go_on(
        make([p.weight for p in source.parts], lengths)
        if len(source.parts) == 3
        else source,
        _position(source),
        step,
      )
      n = int(rng.integers(1, 4))
      examples = range(step * BATCH, (step + n) * BATCH)
      assert _keys(again, examples) == _keys(source, examples)
      keys += _keys(again, examples)
      step += n
    saved = _position(source)
    weights = [int(w) for w in rng.integers(1, 4, 3)]
    skip = {int(rng.integers(3))} if rng.random() < 0.5 else set()
    source = make(weights, lengths, skip)
  assert {key.split("/")[0][-1] for key in keys} == {"0", "1", "2"}
  _check_epochs(keys, lengths)


def test_a_source_is_added_to_a_run_of_one(make):
  lengths = (50, 70, 30)
  alone = make((1,), lengths).parts[0].source
  first = [alone[slot].key for slot in _slots(alone, range(4 * BATCH))]
  saved = _position(alone)
  assert _go_on(alone, saved, 4) is alone
  mixed = _go_on(make((1, 1), lengths), saved, 4)
  second = _keys(mixed, range(4 * BATCH, 14 * BATCH))
  _check_epochs(first + second, lengths)
  assert len({*first, *(key[-6:] for key in second)}) > 50
  back = _go_on(alone, _position(mixed), 14)
  assert len(back) == len(alone) and back.fingerprint == alone.fingerprint
  third = _keys(back, range(14 * BATCH, 20 * BATCH))
  _check_epochs(first + second + third, lengths)
  resumed = _go_on(alone, _position(back), 15)
  after = range(15 * BATCH, 20 * BATCH)
  assert _keys(resumed, after) == _keys(back, after)


def test_another_batch_size_skips_and_repeats_nothing(make):
  lengths = (50, 70, 30)
  source = make((2, 1), lengths)
  keys = _keys(source, range(4 * BATCH))
  wider = _go_on(make((2, 1), lengths), _position(source), 4, batch_size=10)
  more = _keys(wider, range(40, 90))
  assert keys + more == _keys(source, range(4 * BATCH + 50))


def test_a_source_alone_goes_on_with_another_batch_size(make):
  alone = make((1,), (50,)).parts[0].source
  saved = _position(alone)
  keys = [alone[slot].key for slot in _slots(alone, range(4 * BATCH))]
  wider = _go_on(alone, saved, 4, batch_size=10)
  # The rest of the epoch, and all of the next one.
  more = _keys(wider, range(40, 40 + 2 * 50 - 4 * BATCH))
  _check_epochs(keys + more, (50,))
  assert _go_on(alone, saved, 4) is alone


def test_the_same_records_given_twice_come_in_two_orders(make):
  (part,) = make((1,), (50,)).parts
  again = mixture.Part("csv:again", part.source, 1)
  twice = mixture.Mixture([part, again])
  added = _go_on(mixture.Mixture([again, part]), _position(part.source), 4)
  for source, first in ((twice, 0), (added, 4 * BATCH)):
    slots = np.array(_slots(source, range(first, first + 60))) % 50
    assert np.mean(slots[::2] == slots[1::2]) < 0.2


def test_data_that_moved_go_on(make):
  source = make((2, 1), (50, 70))
  moved = mixture.Mixture(
    [
      mixture.Part(f"csv:/new/{i}", part.source, part.weight)
      for i, part in enumerate(source.parts)
    ]
  )
  moved = _go_on(moved, _position(source), 3)
  after = range(3 * BATCH, 9 * BATCH)
  assert _slots(moved, after) == _slots(source, after)


def test_the_same_records_at_another_address_are_a_source_of_their_own(make):
  source = make((2, 1), (50, 70))
  first = source.parts[0]
  copy = mixture.Part("csv:copy", first.source, 1)
  more = _go_on(mixture.Mixture([copy, *source.parts]), _position(source), 3)
  starts = {part.address: part.start for part in more.parts}
  assert starts == {"csv:copy": 0, "csv:0": 12, "csv:1": 6}


def test_accounts_of_all_sources_are_told(make):
  source = make((1, 1))
  for number, part in enumerate(source.parts):
    part.source.account = account.Account(
      lost={f"{number}.tar": number + 1}, notes=["Look."]
    )
  found = account.of(mixture.Mixture(source.parts))
  assert found.lost_records == 3
  assert found.notes == ["csv:0: Look.", "csv:1: Look."]


def test_classes_stay_where_all_sources_have_the_same(make):
  parts = make((1, 1)).parts
  for part in parts:
    part.source.class_names = ("a", "b")
  assert mixture.Mixture(parts).class_names == ("a", "b")
  parts[0].source.class_names = None
  assert mixture.Mixture(parts).class_names is None


def test_exactly_the_allowed_fraction_may_be_lost():
  assert 0.29 * 100 < 29  # As floats have it.
  source = memory_source.MemorySource(
    [record_lib.Record(b"", ("a",), str(number)) for number in range(71)]
  )
  source.account = account.Account(lost={"a.tar": 29})
  account.check(source, "x", max_bad_fraction=0.29)
  source.account = account.Account(lost={"a.tar": 30})
  with pytest.raises(errors.UserError, match="30 of 101"):
    account.check(source, "x", max_bad_fraction=0.29)


def test_a_damaged_file_of_two_addresses_is_lost_twice():
  one = account.Account(damages=[("0.tar", 7, "zeros")], lost={"0.tar": 3})
  found = account.merged({"wds:a": one, "wds:b": one})
  assert found.lost_records == 6
  assert found.lost == {"wds:a: 0.tar": 3, "wds:b: 0.tar": 3}
  assert len(found.warnings()) == 2
  assert account.merged({"wds:a": one}).lost == one.lost
