"""Which versions of a data set TFDS has prepared on the disk."""

import pathlib
import re
from collections.abc import Sequence

from clip_jax import errors, places

_ABOUT = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_USUAL_PLACE = "~/tensorflow_datasets"


class NotPreparedError(errors.UserError):
  """What was asked for is not there, but may be in another version.

  Attributes:
    wanted: the version that was asked for.
    versions: those there of the same config, as NAME[/CONFIG]:VERSION.
  """

  def __init__(self, message: str, *, wanted: str, versions: Sequence[str]):
    super().__init__(message)
    self.wanted = wanted
    self.versions = tuple(versions)


def versions(name: str, data_dir: str | None) -> list[str]:
  """Returns what is there as NAME[/CONFIG]:VERSION, of each config the oldest
  first.

  Args:
    name: of the data set, with or without a config and a version.
    data_dir: where it is looked for; None for TFDS's usual place.
  """
  name = name.partition(":")[0].partition("/")[0]
  top = pathlib.Path(places.expanded(data_dir or _USUAL_PLACE)) / name
  try:
    found = [
      about.parent.relative_to(top.parent)
      for depth in ("*", "*/*")
      for about in top.glob(f"{depth}/{_ABOUT}")
      if _VERSION.fullmatch(about.parent.name)
    ]
  except OSError:
    return []
  found.sort(key=lambda x: (x.parent, _numbers(x.name)))
  return [f"{folder.parent.as_posix()}:{folder.name}" for folder in found]


def _numbers(version: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", version)]


def remedy(there: Sequence[str], name: str, split: str) -> str:
  """Returns a sentence that names what is there; empty where nothing is.

  Args:
    there: as `versions` gives it.
    name: what was asked for; its own config comes first.
    split: of the address.
  """
  if not there:
    return ""
  config = name.partition(":")[0]
  own = [each for each in there if each.partition(":")[0] == config]
  chosen = (own or there)[-1]
  return f"Prepared there: {', '.join(there)}; write tfds:{chosen}/{split}."
