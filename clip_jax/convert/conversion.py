"""Converts checkpoints between formats, by way of our own parameter tree.

The new checkpoint is read back and compared bit by bit with the source before
it gets its final name: a conversion is exact, or it leaves no files.
"""

import dataclasses
import os
import pathlib

from clip_jax import buckets, errors, mirrors, names, whole_files
from clip_jax.convert import (
  destinations,
  engine,
  opening,
  portable,
  sameness,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.format import Format
from clip_jax.convert.portable import Options, Portable


def convert(
  source: str | os.PathLike,
  destination: str | os.PathLike,
  *,
  to: str,
  source_format: str | None = None,
  options: Options | None = None,
  overwrite: bool = False,
  progress: sameness.Progress | None = None,
) -> report_lib.Report:
  """Writes the model at `source` to `destination` in the format `to`.

  Args:
    source: a file or a directory in any of `FORMATS`, also in a bucket.
    destination: a new file or directory, also in a bucket.
    to: one of `names.TARGETS`.
    source_format: as in `opening.open_model`.
    options: as in `opening.open_model`; with `headers_only`, everything that
      does not need the data is checked, and nothing is written.
    overwrite: whether to replace `destination`, once the new one is complete.
    progress: called with the number of arrays checked and their total.

  Returns:
    The report of the conversion.

  Raises:
    UserError: `to` cannot hold the model, the source is damaged, or
      `destination` exists.
  """
  options = options or Options()
  target = opening.find_format(to)
  if not target.write:
    raise errors.unknown("target format", to, names.TARGETS)
  where = os.fspath(destination)
  _check_suffix(where, target)
  if not (in_bucket := buckets.is_address(where)):
    errors.check_new("DEST", where)
    # "." and ".." have no name that a directory could take.
    where = str(pathlib.Path(os.path.expanduser(where)).resolve())
    _check_free(os.fspath(source), pathlib.Path(where), overwrite)
  model = opening.open_model(
    source, source_format=source_format, options=options
  )
  if to != "clip-jax" and len(parts := engine.towers(model.spec)) == 1:
    raise errors.UserError(
      f"{source} holds the {parts[0]} tower alone: it converts to clip-jax "
      "only, and serves as one half of a model in a config (init.image, "
      "init.text)."
    )
  model = _without_useless_bias(model, target, options)
  if options.drop_logit_bias and model.spec.get("init_logit_bias") is not None:
    model.report.warnings.append(
      f"--drop-logit-bias changed nothing: the format {to!r} has a place for "
      "the logit bias."
    )
  if not target.can_restore(model):
    portable.refuse(to, target.refusals(model.spec))
  report = dataclasses.replace(model.report, target_format=to)
  if options.headers_only:
    return report
  make = mirrors.new if in_bucket else destinations.new
  with (
    whole_files.named(where),
    make(where, overwrite=overwrite) as partial,
  ):
    target.write(model, partial)
    # What the format has no place for is given again by options.
    again = target.read(partial, target.options_to_read(model.spec))
    sameness.check_written(model, again, report, progress)
    files = sorted(partial.rglob("*")) if partial.is_dir() else [partial]
    digests = portable.digests(path for path in files if path.is_file())
    if not partial.is_dir():
      digests = {pathlib.PurePath(where).name: digests[partial.name]}
  report.facts["sha256_source"] = model.source.get("files", {})
  report.facts["sha256_target"] = digests
  return report


def _check_suffix(where: str, target: Format) -> None:
  """Raises UserError where a file is named as one of another format."""
  suffix = pathlib.PurePath(where).suffix
  if suffix in target.suffixes or suffix not in weights_file.SUFFIXES:
    return
  if not target.suffixes:
    raise errors.UserError(
      f"DEST {where!r} ends in {suffix} like a file, and a model of the format "
      f"{target.name!r} is a directory; give a name without it."
    )
  raise errors.UserError(
    f"DEST {where!r} ends in {suffix}, and the file of a model of the format "
    f"{target.name!r} in {target.suffixes[0]}; give a name that ends so."
  )


def _without_useless_bias(model, target, options) -> Portable:
  """Returns the model without its logit bias, if the target cannot hold it.

  A bias of 0 has no effect; any other is dropped only if the user asks for it,
  since the sigmoid probabilities of pairs change (similarities do not).
  """
  if model.spec.get("init_logit_bias") is None:
    return model
  bare = {**model.spec, "init_logit_bias": None, "probabilities": "softmax"}
  if not target.refusals(model.spec) or target.refusals(bare):
    return model
  path = "params/logit_bias"
  bias = float(model.leaves[path].read())
  if bias != 0 and not options.drop_logit_bias:
    raise errors.UserError(
      f"The format {target.name!r} has no place for the logit bias, {bias:g}. "
      "Give --drop-logit-bias to leave it out: rankings and softmax "
      "probabilities stay the same, sigmoid probabilities of pairs do not."
    )
  model.report.warnings.append(f"The logit bias, {bias:g}, is left out.")
  leaves = {k: v for k, v in model.leaves.items() if k != path}
  return dataclasses.replace(model, spec=bare, leaves=leaves)


def _check_free(
  source: str, destination: pathlib.Path, overwrite: bool
) -> None:
  """Raises UserError unless the conversion may write to `destination`."""
  if not opening.is_remote(source):
    path = pathlib.Path(os.path.expanduser(source)).resolve()
    if path == destination or destination in path.parents:
      raise errors.UserError(
        f"{destination} is or holds the source, {source}; give another "
        "destination."
      )
  is_empty = destination.is_dir() and not any(destination.iterdir())
  if is_empty or not destination.exists():
    return
  if not overwrite:
    raise errors.UserError(
      f"{destination} exists; give another destination, or --overwrite to "
      "replace it."
    )
  try:
    found = opening.recognise(destination)
  except errors.UserError:
    raise errors.UserError(
      f"{destination} is no model, so --overwrite does not replace it; remove "
      "it yourself, or give another destination."
    ) from None
  if found == "workdir":
    raise errors.UserError(
      f"{destination} is the workdir of a training, which --overwrite does not "
      "replace: its checkpoints would be lost. Give another destination."
    )
