"""What the readers of all formats share, from the options to the model."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clip_jax.convert import engine, portable, weights_file
from clip_jax.convert.engine.config_reader import ConfigReader
from clip_jax.convert.report import Report
from clip_jax.convert.tensor import Tensor


class SourceReading:
  """A checkpoint that is being read.

  Attributes:
    name: the checkpoint's name in messages.
    report: the report of the reading.
    options: the user's options.
  """

  def __init__(
    self,
    name: str,
    source_format: str = "",
    options: portable.Options | None = None,
  ):
    self.name = name
    self.report = Report(source_format)
    self.options = options or portable.Options()

  def tensors(self, path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of weights (`weights_file.read`)."""
    return weights_file.read(path, self.options, self.report).tensors

  def config(
    self,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    where: Mapping[str, str],
    towers: tuple[str, ...] = ("image", "text"),
  ) -> ConfigReader:
    """Returns the reader of a config, which the user's activation overrides."""
    return ConfigReader(
      values,
      defaults,
      where=where,
      report=self.report,
      overrides={"activation": self.options.activation},
      towers=towers,
    )

  def model(
    self,
    entries: Sequence[engine.Entry],
    tensors: Mapping[str, Tensor],
    spec: dict[str, Any],
    *,
    name: str = "",
    configs: Iterable[pathlib.Path] = (),
    weights: Iterable[pathlib.Path] = (),
    ignored: Iterable[str] = (),
    hint: str = "",
    files: Mapping[str, bytes] | None = None,
    dialect: dict[str, Any] | None = None,
    noted: dict[str, Any] | None = None,
  ) -> portable.Portable:
    """Returns the model of the checkpoint's tensors and their description.

    Args:
      entries, tensors, spec, ignored, hint: see `engine.to_ours`.
      name: the name of the weights in messages, if it is another one.
      configs: small files that were read; their digests are noted.
      weights: files whose digests are noted unless only headers are read.
      files, dialect: see `Portable`.
      noted: other notes about the source.

    Raises:
      MismatchError: a tensor is missing, unexpected or of another shape.
    """
    leaves, extras = engine.to_ours(
      entries,
      tensors,
      spec,
      report=self.report,
      name=name or self.name,
      ignored=ignored,
      hint=hint,
    )
    read = [*configs, *(() if self.options.headers_only else weights)]
    source = {
      "format": self.report.source_format,
      "dialect": dialect or {},
      "files": portable.digests(read),
      **(noted or {}),
    }
    return portable.Portable(
      spec, leaves, self.report, extras, dict(files or {}), source
    )
