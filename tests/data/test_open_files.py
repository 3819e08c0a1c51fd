"""Readers of many files: few are open at a time, each while it is used."""

import gc
import pickle
import weakref
from typing import ClassVar

from clip_jax.data.sources import open_files


class _Reader:
  """A stand-in that tells which readers are alive."""

  alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

  def __init__(self, path):
    self.path = path
    self.alive.add(self)


def test_readers_used_last_are_kept_and_others_let_go(monkeypatch):
  monkeypatch.setattr(open_files, "_MAX_OPEN", 2)
  pool = open_files.Pool("abcd", opener=_Reader)
  first = pool.get(0)
  pool.get(1)
  assert pool.get(0) is first
  pool.get(2)  # Lets go of 1, which was used least recently.
  gc.collect()
  assert sorted(reader.path for reader in _Reader.alive) == ["a", "c"]
  pool.get(3)
  assert first.path == "a"  # Still open: somebody reads it.
  del first
  gc.collect()
  assert sorted(reader.path for reader in _Reader.alive) == ["c", "d"]


def test_a_raw_file_reads_pieces_and_travels_by_its_path(tmp_path):
  (tmp_path / "a b").write_bytes(bytes(range(100)))
  pool = open_files.Pool([str(tmp_path / "a b")], opener=open_files.RawFile)
  for reader in (pool.get(0), pickle.loads(pickle.dumps(pool)).get(0)):
    assert reader.read(offset=10, size=5) == bytes(range(10, 15))
    assert reader.read(offset=98, size=5) == bytes([98, 99])
    assert reader.read(offset=100, size=5) == b""
    assert reader.read(offset=0, size=0) == b""
