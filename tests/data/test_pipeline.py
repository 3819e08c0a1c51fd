"""Batches are a pure function of the seed and the global example index."""

import collections
import os
import signal
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import config as config_lib
from clip_jax import errors, preprocess
from clip_jax.data import order, pipeline, prepare, sources

BATCH = 6
ARRAYS = ("image", "tokens", "index", "record", "bad")


@pytest.fixture
def take(spec, tokens):
  """Returns the first batches of a source as a list."""

  def run(source, steps, **options):
    settings = {
      "seed": 3,
      "batch_size": BATCH,
      "rows": np.arange(BATCH),
      "start_step": 0,
      "preprocess": spec,
      "tokenizer": tokens,
      "resize_ratio": 1.25,
    }
    with pipeline.train_batches(source, **(settings | options)) as batches:
      return [next(batches) for _ in range(steps)]

  return run


def _assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    for name in ARRAYS:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])
    assert a["problems"] == b["problems"]


def _several_texts(pairs, n):
  return [
    sources.Record(
      pair.image, tuple(f"{pair.key} {t}" for t in "abc"), pair.key
    )
    for pair in pairs(n)
  ]


def _by_hand(source, *, seed, g, spec, **crop):
  """One example, written down a second time."""
  epoch, _ = divmod(g, len(source))
  assert epoch == 0  # The order is checked by the test of permutations.
  record = source[order.record_index(g, seed=seed, records=len(source))]
  rng = np.random.Generator(np.random.Philox(key=[seed, g]))
  text = record.texts[rng.integers(len(record.texts))]
  image = preprocess.train_image(
    preprocess.decode(record.image), spec, rng=rng, **crop
  )
  return image, text


def test_a_batch_holds_what_its_examples_are_by_hand(
  take, list_source, pairs, spec, tokens
):
  source = list_source(_several_texts(pairs, 13))
  for step, batch in enumerate(take(source, 2)):
    assert batch["image"].shape == (BATCH, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (BATCH, 7)
    assert batch["tokens"].dtype == np.int32
    assert batch["bad"].dtype == np.int32
    for row in range(BATCH):
      g = step * BATCH + row
      assert batch["index"][row] == g
      image, text = _by_hand(source, seed=3, g=g, spec=spec, resize_ratio=1.25)
      np.testing.assert_array_equal(batch["image"][row], image)
      np.testing.assert_array_equal(batch["tokens"][row], tokens([text])[0])


def test_images_are_augmented_by_their_index_alone(
  take, list_source, pairs, spec, tokens
):
  source = list_source(_several_texts(pairs, 13))
  augment = config_lib.Augment(scale=0.4, flip=0.5, hue=0.2, gray_prob=0.3)
  options = {"augment": augment, "resize_ratio": 1.0}
  batches = take(source, 2, **options)
  for step, batch in enumerate(batches):
    for row in range(BATCH):
      g = step * BATCH + row
      image, _ = _by_hand(source, seed=3, g=g, spec=spec, augment=augment)
      np.testing.assert_array_equal(batch["image"][row], image)
  [resumed] = take(source, 1, start_step=1, rows=np.array([1, 4]), **options)
  np.testing.assert_array_equal(resumed["image"], batches[1]["image"][[1, 4]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
  records=st.integers(1, 60),
  seed=st.integers(0, 2**31 - 1),
  epoch=st.integers(0, 5),
  attempt=st.integers(0, 3),
)
def test_every_epoch_reads_every_record_once(records, seed, epoch, attempt):
  permutation = [
    order.record_index(
      epoch * records + i, seed=seed, records=records, attempt=attempt
    )
    for i in range(records)
  ]
  assert sorted(permutation) == list(range(records))


def test_epochs_and_seeds_have_orders_of_their_own():
  def permutation(seed, epoch):
    return tuple(
      order.record_index(epoch * 50 + i, seed=seed, records=50)
      for i in range(50)
    )

  orders = {permutation(seed, epoch) for seed in range(3) for epoch in range(3)}
  assert len(orders) == 9
  assert tuple(range(50)) not in orders


@pytest.mark.parametrize("start_step", [1, 2, 3, 5])
def test_resuming_at_any_step_gives_the_same_batches(
  take, list_source, pairs, start_step
):
  # 6 steps of 6 rows over 13 records: epochs end within batches.
  items = [*_several_texts(pairs, 12), "missing_image"]
  whole = take(list_source(items), 6)
  rest = take(list_source(items), 6 - start_step, start_step=start_step)
  _assert_equal(whole[start_step:], rest)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_do_not_change_batches(take, list_source, pairs, threads):
  source = list_source(_several_texts(pairs, 5))
  _assert_equal(take(source, 4), take(source, 4, threads=threads))


@pytest.mark.parametrize("hosts", [2, 3, 6])
def test_hosts_hold_the_rows_of_one_global_batch(
  take, list_source, pairs, hosts
):
  items = [*_several_texts(pairs, 12), "missing_image"]
  whole = take(list_source(items), 4)
  # Interleaved and contiguous shares alike.
  for rows in (
    [np.arange(host, BATCH, hosts) for host in range(hosts)],
    np.split(np.arange(BATCH), hosts),
  ):
    shares = [take(list_source(items), 4, rows=share) for share in rows]
    for step, batch in enumerate(whole):
      for share, own in zip(rows, (s[step] for s in shares), strict=True):
        for name in ARRAYS:
          np.testing.assert_array_equal(batch[name][share], own[name])
      met = [p for share in shares for p in share[step]["problems"]]
      assert sorted(met) == batch["problems"]


def test_chunks_do_not_change_batches(take, list_source, pairs, monkeypatch):
  source = list_source([*_several_texts(pairs, 6), "truncated"])
  whole = take(source, 3)
  monkeypatch.setattr(pipeline, "CHUNK_ROWS", 4)
  _assert_equal(whole, take(source, 3))


def test_the_first_caption_is_used_on_request(take, list_source, pairs, tokens):
  source = list_source(_several_texts(pairs, 5))
  (batch,) = take(source, 1, caption="first")
  texts = [source[i].texts[0] for i in batch["record"]]
  np.testing.assert_array_equal(batch["tokens"], tokens(texts))
  seen = {tuple(t) for b in take(source, 6) for t in b["tokens"].tolist()}
  assert len(seen) > 5  # Random choice shows more texts than records.


def test_bad_records_are_replaced_and_reported_exactly(
  take, list_source, pairs
):
  good = pairs(20)
  broken = sources.Record(good[0].image[:-30], ("x",), "broken")
  items = [*good[:9], "empty_caption", *good[9:19], broken, "not_utf8"]
  source = list_source(items)
  batches = take(source, 11)  # Three epochs of 22 records.
  problems = [p for batch in batches for p in batch["problems"]]
  expected = {"slot9": "empty_caption", "slot21": "not_utf8"}
  assert {p.key: p.reason for p in problems if p.key != "broken"} == expected
  assert {p.reason for p in problems if p.key == "broken"} == {"truncated"}
  # Each epoch meets each of them once, besides what substitutes meet.
  first_choice = collections.Counter(
    order.record_index(g, seed=3, records=22) for g in range(66)
  )
  assert set(first_choice.values()) == {3}
  assert len(problems) == sum(int(batch["bad"].sum()) for batch in batches)
  assert len(problems) >= 9
  for batch in batches:
    for problem in batch["problems"]:
      row = problem.index - batch["index"][0]
      assert problem.substitute == batch["record"][row]
    used = {
      items[i] if isinstance(items[i], str) else "" for i in batch["record"]
    }
    assert used == {""}


def test_substitutes_are_not_neighbours(take, list_source, pairs):
  # A damaged shard: half of the data, in one piece.
  items = ["damaged_record"] * 60 + pairs(60)
  batches = take(list_source(items), 20)
  records = [int(r) for batch in batches for r in batch["record"]]
  # 60 stand-ins over 60 records: at random, about 1 - 1/e of them.
  substitutes = {p.substitute for b in batches for p in b["problems"]}
  assert len(substitutes) > 25
  assert min(records) >= 60


@pytest.mark.parametrize("threads", [0, 2])
def test_data_without_a_good_record_stops_at_once(take, list_source, threads):
  with pytest.raises(errors.UserError, match="101 bad records in a row"):
    take(list_source(["missing_image"] * 5), 1, threads=threads)


def test_no_records_at_all_is_an_error(take, list_source):
  with pytest.raises(errors.UserError, match="no records"):
    take(list_source([]), 1)


def test_an_error_of_ours_is_not_swallowed(take, list_source, pairs):
  class Broken(list_source):
    def __getitem__(self, index):
      raise KeyError("some bug")

  with pytest.raises(RuntimeError, match="some bug"):
    take(Broken(pairs(3)), 1)


def test_evaluation_may_read_every_third_batch(list_source, pairs, spec):
  source = list_source(pairs(23))
  with pipeline.eval_batches(
    source, batch_size=2, preprocess=spec, start=2, step=3
  ) as batches:
    found = [batch["record"].tolist() for batch in batches]
  assert found == [[4, 5], [10, 11], [16, 17], [22]]


def test_a_batch_may_be_larger_than_any_data(list_source, pairs, spec):
  with pipeline.eval_batches(
    list_source(pairs(3)), batch_size=2**62, preprocess=spec
  ) as batches:
    assert [batch["record"].tolist() for batch in batches] == [[0, 1, 2]]


def test_evaluation_reads_all_in_order_and_counts_what_is_bad(
  list_source, pairs, spec
):
  items = [*pairs(3, label=4), "missing_caption", *pairs(2)]
  source = list_source(items)
  with pipeline.eval_batches(source, batch_size=4, preprocess=spec) as batches:
    first, last = list(batches)
  assert first["record"].tolist() == [0, 1, 2]
  assert first["label"].tolist() == [4, 4, 4]
  assert first["key"] == ["key000", "key001", "key002"]
  assert first["problems"] == [(3, "slot3", "missing_caption", -1)]
  assert last["record"].tolist() == [4, 5]
  assert last["label"].tolist() == [-1, -1]
  assert last["texts"] == [items[4].texts, items[5].texts]
  assert last["problems"] == []
  for batch in (first, last):
    for image, record in zip(batch["image"], batch["record"], strict=True):
      decoded = preprocess.decode(items[record].image)
      np.testing.assert_array_equal(image, preprocess.eval_image(decoded, spec))


def test_training_on_a_prepared_copy_is_the_same_bit_by_bit(
  take, list_source, pairs, tmp_path
):
  broken = sources.Record(b"no image", ("x",), "broken")
  source = list_source([*_several_texts(pairs, 7), "too_large", broken])
  prepare.prepare(source, tmp_path / "copy")
  copy = sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")
  _assert_equal(take(source, 6), take(copy, 6))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_batches(
  take, pairs, members, write_tar, workers, tmp_path
):
  records = [*members(pairs(11)), ("lonely.txt", b"a text without image")]
  path = write_tar(tmp_path / "a.tar", records)
  source = sources.open_source(f"wds:{path}")
  _assert_equal(take(source, 5), take(source, 5, workers=workers))


@pytest.mark.slow
def test_workers_report_what_stops_them(
  take, pairs, members, write_tar, tmp_path
):
  path = write_tar(tmp_path / "a.tar", [("lonely.txt", b"a text")])
  with pytest.raises(errors.UserError, match="101 bad records in a row"):
    take(sources.open_source(f"wds:{path}"), 1, workers=1)


@pytest.mark.slow
def test_a_killed_worker_is_a_clear_error(spec, tokens):
  import multiprocessing

  with pipeline.train_batches(
    sources.open_source("builtin:digits/train"),
    seed=0,
    batch_size=4,
    rows=np.arange(4),
    start_step=0,
    preprocess=spec,
    tokenizer=tokens,
    workers=2,
  ) as batches:
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(errors.UserError, match="worker process died"):
      for _ in range(1000):
        next(batches)


def test_the_digest_of_a_batch_is_that_of_its_records():
  def digest(step, **changes):
    how = {"seed": 3, "records": 11, "batch_size": 4} | changes
    slots = order.Shuffled(how["seed"], how["records"])
    return order.batch_digest(step, slots=slots, batch_size=how["batch_size"])

  slots = [order.record_index(g, seed=3, records=11) for g in range(4, 8)]
  assert digest(2) == zlib.crc32(np.array(slots, "<i8").tobytes())
  others = [digest(1), digest(2, seed=4), digest(2, records=50)]
  assert digest(2) not in others


def test_image_ids_are_equal_for_equal_images_alone(take, list_source, pairs):
  source = list_source(_several_texts(pairs, 5))
  assert "image_ids" not in take(source, 1)[0]
  batches = take(source, 3, image_ids=True)
  ids = np.concatenate([batch["image_ids"] for batch in batches])
  records = np.concatenate([batch["record"] for batch in batches])
  assert ids.dtype == np.int32
  for record in range(5):
    want = zlib.crc32(source[record].image)
    assert set(ids[records == record].view(np.uint32).tolist()) == {want}
