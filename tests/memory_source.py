"""A source of records in memory, some of them bad."""

import hashlib

from clip_jax.data import record as record_lib


class MemorySource:
  """Records in memory.

  Attributes:
    records: what it holds, the bad ones too.
    bad: the reason by the key of each bad record.
    fingerprint: of keys and captions as a set; their order changes nothing.
  """

  class_names = templates = None

  def __init__(self, records, bad=None):
    self.records, self.bad = records, bad or {}
    said = sorted((r.key, *r.texts) for r in records)
    self.fingerprint = hashlib.sha256(repr(said).encode()).hexdigest()

  def __len__(self):
    return len(self.records)

  def __getitem__(self, slot):
    record = self.records[slot]
    if record.key in self.bad:
      raise record_lib.BadRecord(self.bad[record.key], record.key)
    return record
