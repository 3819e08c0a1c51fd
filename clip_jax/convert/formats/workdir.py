"""Reads a workdir of `clip-jax train`, or one of its checkpoints."""

import dataclasses
import os
import pathlib

import jax

from clip_jax import errors
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.convert.engine.format import Format
from clip_jax.models import paths, variants

NAME = "workdir"


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a workdir or a checkpoint in one."""
  return workdir_lib.recognise(pathlib.Path(workdir_lib.split_step(path)[0]))


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of the checkpoint, or of the newest good one.

  Raises:
    UserError: no checkpoint is good, or the model has no shared embedding.
  """
  del options
  config = workdir_lib.load_config(path)
  if not run_model.is_contrastive(config.objective):
    raise errors.UserError(
      f"{path} was trained with objective.kind={config.objective.kind!r}: it "
      "has an image tower and a head that predicts captions, and no text "
      "tower, which no format of CLIP's can hold. Convert a model of a "
      "contrastive objective; `clip-jax eval` measures this one."
    )
  saved = workdir_lib.load_model(path)
  module = variants.create_model(
    run_model.complete(
      config.model, config.model_overrides, objective=config.objective.kind
    )
  )
  report = report_lib.Report(NAME)
  report.facts["step"] = saved.step
  if head := saved.variables["params"].get(paths.HEAD):
    count = len(jax.tree.leaves(head))
    report.left_out.append(
      f"the captioner (objective.captioning_weight), {count} arrays"
    )
  model = portable.from_variables(
    saved.variables,
    family.as_json(saved.spec),
    files=saved.files,
    report=report,
    source={"format": NAME, "path": os.fspath(path), "step": saved.step},
  )
  return dataclasses.replace(model, execution=variants.execution(module))


FORMAT = Format(NAME, read, recognise=recognise)
