"""Reads a workdir of `clip-jax train`."""

import dataclasses
import os
import pathlib

from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import model_dir
from clip_jax.models import variants

NAME = "workdir"

recognise = workdir_lib.recognise


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of the newest good checkpoint.

  Raises:
    UserError: there is none.
  """
  del options
  saved = workdir_lib.load_model(path)
  module = variants.create_model(
    saved.config.model, overrides=saved.config.model_overrides
  )
  report = report_lib.Report(NAME)
  report.facts["step"] = saved.step
  model = portable.from_variables(
    saved.variables,
    model_dir.plain(saved.spec),
    files=saved.files,
    report=report,
    source={"format": NAME, "path": os.fspath(path), "step": saved.step},
  )
  return dataclasses.replace(model, execution=variants.execution(module))
