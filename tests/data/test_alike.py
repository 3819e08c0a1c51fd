"""Data whose captions are all the same, and those that only seem so."""

import pytest

import memory_source
from clip_jax.data import alike
from clip_jax.data import record as record_lib


@pytest.mark.parametrize("count", [2, 3, 31, 64, 10_000])
def test_captions_in_turn_are_not_the_same(count):
  cat, dog = (
    record_lib.Record(key=text, image=b"", texts=(text,))
    for text in ("a cat", "a dog")
  )
  in_turn = [(cat, dog)[i % 2] for i in range(count)]
  assert alike.only_caption(memory_source.MemorySource(in_turn)) is None
  same = memory_source.MemorySource([cat] * count)
  assert alike.only_caption(same) == "a cat"
