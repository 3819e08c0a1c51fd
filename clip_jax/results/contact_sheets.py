"""The contact sheet of a run: what it finds for texts, and for images."""

import io
import pathlib

from clip_jax import preprocess, regular_files
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.results import collected
from clip_jax.results.picture import Figure

NAME = "examples"
NEEDS = "a workdir whose config has report"
_MOST_BYTES = 2**26


def read(workdir: pathlib.Path) -> bytes | None:
  """Returns the sheet that a run left in its workdir, drawn anew as PNG.

  None where there is none, or no picture.
  """
  try:
    data = regular_files.read_regular(
      workdir / workdir_lib.REPORT, limit=_MOST_BYTES
    )
    if len(data) > _MOST_BYTES:
      return None
    image = preprocess.decode(data)
  except (OSError, ValueError):
    return None
  file = io.BytesIO()
  image.convert("RGB").save(file, "PNG")
  return file.getvalue()


def sheets(collection: collected.Collection) -> list[tuple[Figure, bytes]]:
  """Returns the sheets of all runs that have one, as figures."""
  found = [
    (run.model, run.examples)
    for run in collection.runs
    if run.examples is not None
  ]
  return [
    (
      Figure(
        name=NAME if len(found) == 1 else f"{NAME}_{number}",
        title=f"What {model} finds",
        note="At the end of training: for texts the nearest images, for images "
        "the most probable texts, and what it takes for something else.",
        panels=(),
      ),
      examples,
    )
    for number, (model, examples) in enumerate(found, 1)
  ]
