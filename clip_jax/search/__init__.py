"""An index of embeddings on disk, and exact search in it.

An index is a directory. `meta.json` names the two files that hold the data,
the embeddings and a Parquet table of keys, captions and paths, with their
checksums, and is replaced last and at once: a reader sees the old index or the
new one, whenever a build is killed.
"""

from clip_jax.search.builder import Builder, build
from clip_jax.search.entry_table import Entry
from clip_jax.search.exchange import (
  SUFFIXES,
  ExportedIndex,
  export,
  open_index,
)
from clip_jax.search.holding import check_replaceable, tell_replaced
from clip_jax.search.index import Hit, Index, nearest

__all__ = [
  "SUFFIXES",
  "Builder",
  "Entry",
  "ExportedIndex",
  "Hit",
  "Index",
  "build",
  "check_replaceable",
  "export",
  "nearest",
  "open_index",
  "tell_replaced",
]
