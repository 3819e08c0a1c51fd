"""Local copies of what lies in buckets: models, indexes and workdirs.

Libraries that read models, checkpoints, embeddings and some data read files of
a disk. So whole objects are copied: into the user's cache folder before they
are read, and from there into the bucket after they are written. Of each copy
the SHA-256 is kept (of data, size and time), so that what is there already and
is good is not fetched again.

What is written counts when its last object is there: a list of the files and
their digests, or what takes the place of one.
"""

from clip_jax.mirrors.data_files import copied
from clip_jax.mirrors.fetching import (
  checked,
  fetched,
  held,
  local_path,
  names,
)
from clip_jax.mirrors.good_checkpoints import read_good
from clip_jax.mirrors.run_folder import Workdir, opened
from clip_jax.mirrors.translation import in_errors, named
from clip_jax.mirrors.uploads import new, replace_files

__all__ = [
  "Workdir",
  "checked",
  "copied",
  "fetched",
  "held",
  "in_errors",
  "local_path",
  "named",
  "names",
  "new",
  "opened",
  "read_good",
  "replace_files",
]
