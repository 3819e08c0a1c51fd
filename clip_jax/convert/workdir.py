"""A workdir of `clip-jax train`, as a source."""

import os
import pathlib

import numpy as np

from clip_jax.convert import engine, model_dir, portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants
from clip_jax.train import checkpoint

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
  spec = variants.spec(config.model, config.model_overrides.to_dict())
  leaves = {
    key: engine.Leaf.from_tensor(Tensor.from_array(np.asarray(array)))
    for key, array in engine.flatten(variables).items()
  }
  # `train.initial` keeps it there, which imports this package.
  tokenizer = path / "tokenizer"
  report = report_lib.Report(NAME, tensors=len(leaves), mapped=len(leaves))
  report.facts["step"] = step
  return portable.Portable(
    spec=model_dir.plain(spec),
    leaves=leaves,
    files={file.name: file.read_bytes() for file in tokenizer.glob("*")},
    report=report,
    source={"format": NAME, "path": os.fspath(path), "step": step},
  )
