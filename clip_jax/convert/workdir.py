"""A workdir of `clip-jax train`, as a source."""

import os
import pathlib

from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import model_dir, portable
from clip_jax.convert import report as report_lib

NAME = "workdir"

recognise = workdir_lib.recognise


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads the newest good checkpoint.

  Raises:
    UserError: there is none.
  """
  del options
  config, variables, step = workdir_lib.load_variables(path)
  report = report_lib.Report(NAME)
  report.facts["step"] = step
  return portable.from_variables(
    variables,
    model_dir.plain(run_model.describe(config)),
    files=workdir_lib.tokenizer_files(path),
    report=report,
    source={"format": NAME, "path": os.fspath(path), "step": step},
  )
