"""A workdir of `clip-jax train`, as a source."""

import os
import pathlib

from clip_jax.convert import model_dir, portable
from clip_jax.convert import report as report_lib
from clip_jax.train import checkpoint
from clip_jax.train import step as step_lib

NAME = "workdir"


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is where a run keeps its config and its checkpoints."""
  parts = (checkpoint.CONFIG, checkpoint.DIRECTORY)
  return all((path / part).exists() for part in parts)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads the newest good checkpoint.

  Raises:
    UserError: there is none.
  """
  del options
  config, variables, step = checkpoint.load_variables(path)
  spec = step_lib.describe_model(config)
  # `train.initial` keeps it there, which imports this package.
  tokenizer = path / "tokenizer"
  report = report_lib.Report(NAME)
  report.facts["step"] = step
  return portable.from_variables(
    variables,
    model_dir.plain(spec),
    files={file.name: file.read_bytes() for file in tokenizer.glob("*")},
    report=report,
    source={"format": NAME, "path": os.fspath(path), "step": step},
  )
