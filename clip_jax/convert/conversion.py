"""From any format to any other, by way of our own tree, and checked.

What is written is read back and compared bit by bit with what was read before
it takes its name: a conversion either is exact or leaves nothing behind.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from clip_jax import errors
from clip_jax.convert import engine, portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.portable import Options, Portable

# Formats by name in the order in which a path is tried; a directory can look
# like several, and the first says more about the model.
FORMATS = {
  "clip-jax": "clip_jax.convert.model_dir",
  "openai": "clip_jax.convert.openai",
}
_SHOWN = 5

# Called with the number of arrays done and of all.
Progress = Callable[[int, int], None]


def format_module(name: str) -> ModuleType:
  """Returns the module of a format.

  Raises:
    UserError: there is no such format.
  """
  if name not in FORMATS:
    raise errors.unknown("format", name, FORMATS)
  return importlib.import_module(FORMATS[name])


def targets() -> list[str]:
  """Returns the names of the formats that can be written."""
  return [name for name in FORMATS if hasattr(format_module(name), "write")]


def recognise(path: pathlib.Path) -> str:
  """Returns the name of the format that `path` is in.

  Raises:
    UserError: there is nothing, or nothing that any format knows.
  """
  if not path.exists():
    raise errors.UserError(f"Model {str(path)!r} does not exist.")
  for name in FORMATS:
    if format_module(name).recognise(path):
      return name
  known = f"The formats are {', '.join(FORMATS)}"
  if path.is_dir():
    found = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    raise errors.UserError(
      f"{path} holds no model in a known format (found: "
      f"{shown or 'nothing'}). {known}."
    )
  raise errors.UserError(
    f"{path} is no model in a known format, judged by its name. {known}."
  )


def open_model(
  source: str | os.PathLike,
  *,
  source_format: str | None = None,
  options: Options | None = None,
) -> Portable:
  """Reads the model at `source`; its arrays are read when they are used.

  Args:
    source: a file or a directory in any of `FORMATS`.
    source_format: one of `FORMATS`; None finds it out.
    options: what the source does not say by itself.

  Raises:
    UserError: the model cannot be read exactly.
    AmbiguousError: it has several meanings, and no option says which.
  """
  options = options or Options()
  path = pathlib.Path(source).expanduser()
  name = source_format or recognise(path)
  return format_module(name).read(path, options)


def convert(
  source: str | os.PathLike,
  destination: str | os.PathLike,
  *,
  to: str,
  source_format: str | None = None,
  options: Options | None = None,
  overwrite: bool = False,
  progress: Progress | None = None,
) -> report_lib.Report:
  """Writes the model at `source` to `destination` in the format `to`.

  Args:
    source: a file or a directory in any of `FORMATS`.
    destination: a new file or directory.
    to: one of `targets()`.
    source_format: as in `open_model`.
    options: as in `open_model`; `headers_only` checks all that can be without
      the data, and writes nothing.
    overwrite: replace what is at `destination`, once the new is complete.
    progress: told how many arrays have been checked.

  Returns:
    The account of the conversion.

  Raises:
    UserError: `to` cannot hold the model, the source is damaged, or something
      is at `destination`.
  """
  options = options or Options()
  target = format_module(to)
  if not hasattr(target, "write"):
    raise errors.unknown("target format", to, targets())
  destination = pathlib.Path(destination).expanduser()
  if not options.headers_only:
    _check_free(destination, overwrite)
  model = open_model(source, source_format=source_format, options=options)
  if to != "clip-jax" and len(parts := engine.towers(model.spec)) == 1:
    raise errors.UserError(
      f"{source} holds the {parts[0]} tower alone; it converts to clip-jax only, and "
      "serves as one half of a model in a config (init.image, init.text)."
    )
  portable.refuse(to, target.refusals(model.spec))
  report = dataclasses.replace(model.report, target_format=to)
  if options.headers_only:
    return report
  with _new(destination, overwrite) as partial:
    target.write(model, partial, options)
    _check_written(model, partial, target, options, report, progress)
    files = sorted(partial.rglob("*")) if partial.is_dir() else [partial]
    digests = portable.digests(path for path in files if path.is_file())
    if not partial.is_dir():
      digests = {destination.name: digests[partial.name]}
  report.facts["sha256_source"] = model.source.get("files", {})
  report.facts["sha256_target"] = digests
  return report


def _check_free(destination: pathlib.Path, overwrite: bool) -> None:
  if overwrite or not destination.exists():
    return
  if destination.is_dir() and not any(destination.iterdir()):
    return
  raise errors.UserError(
    f"{destination} exists; give another destination, or --overwrite to "
    "replace it."
  )


@contextlib.contextmanager
def _new(destination: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """Gives a path beside `destination` that becomes it, or goes away."""
  destination.parent.mkdir(parents=True, exist_ok=True)
  room = pathlib.Path(
    tempfile.mkdtemp(prefix=".clip-jax-", dir=destination.parent)
  )
  partial = room / destination.name
  try:
    yield partial
    if destination.is_dir() or (overwrite and destination.exists()):
      os.rename(destination, room / "replaced")
    os.rename(partial, destination)
  finally:
    shutil.rmtree(room, ignore_errors=True)


def _check_written(model, partial, target, options, report, progress) -> None:
  """Reads the new checkpoint and compares every number with the source's."""
  # A format that does not say the activation is told what was written.
  activation = model.spec.get("text", model.spec.get("image")).get("activation")
  told = dataclasses.replace(options, activation=activation, image_size=None)
  written = target.read(partial, told).leaves
  assert written.keys() == model.leaves.keys()
  for done, (path, leaf) in enumerate(model.leaves.items()):
    if progress:
      progress(done, len(model.leaves))
    zeros = True
    layers = (None,)
    if "/blocks/" in path:
      layers = range(leaf.shape[0])
    for layer in layers:
      want, got = leaf.part(layer), written[path].part(layer)
      if not _same_bits(want, got):
        raise errors.UserError(
          f"{path} (layer {layer}) did not come back as it was written; the "
          "disk or the memory may be failing. Nothing was kept."
        )
      if portable.find_nonfinite(want):
        raise errors.UserError(
          f"The source holds NaN or infinity in what becomes {path}"
          f"{'' if layer is None else f', layer {layer}'}: it is damaged, or "
          "its training had failed. Nothing was written."
        )
      zeros = zeros and not want.any()
    if zeros and path.endswith(("/kernel", "/embedding")):
      report.warnings.append(f"{path} is all zeros.")
  if progress:
    progress(len(model.leaves), len(model.leaves))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  if a.shape != b.shape:
    return False
  if a.dtype != b.dtype:  # Stacked with layers of a wider dtype.
    a, b = a.astype(np.float64), b.astype(np.float64)
  a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
  return np.array_equal(a, b)
