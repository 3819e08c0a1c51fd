"""A model independent of formats: its description, arrays and other files."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from clip_jax import errors
from clip_jax.convert import engine
from clip_jax.convert.report import Report
from clip_jax.convert.tensor import Tensor


@dataclasses.dataclass(frozen=True)
class Options:
  """A user's options for reading a source or writing a target.

  Attributes:
    config: for a file of weights alone: an open_clip or a HuggingFace config,
      or one of `variants.VARIANTS`.
    weights: which of several models in a training checkpoint to read, such as
      "model_ema".
    activation: activation of both towers, if the source does not say it; it
      also overrides another one in a config, with a warning.
    heads: heads of the image and of the text tower, if the source does not say
      them.
    pooling: pooling of a text tower, if the source does not say it: "mean" or
      "cls" for a BERT, "last" for big_vision's Transformers.
    tokenizer: for text towers of big_vision whose vocabulary is not one of its
      own: "c4_en", "mc4" or "gemma", the one whose cleaning, end token and
      padding are the same.
    preprocess: for a timm file without a config: "inception", "imagenet" or
      "openai" for mean and std, and the part of the image that a centre crop
      keeps, or None if the image is squashed.
    image_size: new image size, for which position embeddings are resized; None
      keeps the old one.
    resize_method: one of `positions.METHODS`; needed with `image_size`.
    context_length: new context length; None keeps the old one.
    old_grid: rows and cols of the source's patches, if they are not a square.
    drop_logit_bias: whether to drop the bias for a target that has none.
    interpolate: share of the fine-tuned model in an interpolation with the one
      that it started from; None for no interpolation.
    interpolate_with: that model; None for the one that the workdir names.
    headers_only: whether to leave the data unread and unchecked.
  """

  config: str | None = None
  weights: str | None = None
  activation: str | None = None
  heads: tuple[int, int] | None = None
  pooling: str | None = None
  tokenizer: str | None = None
  preprocess: tuple[str, float | None] | None = None
  image_size: int | None = None
  resize_method: str | None = None
  old_grid: tuple[int, int] | None = None
  context_length: int | None = None
  drop_logit_bias: bool = False
  interpolate: float | None = None
  interpolate_with: str | None = None
  headers_only: bool = False


@dataclasses.dataclass(frozen=True)
class Portable:
  """A model that any format is read into and written from.

  Attributes:
    spec: the complete description (`models.variants.spec`).
    leaves: our arrays by path, read lazily.
    report: the report of the reading.
    extras: tensors of the source that are not parameters, by their names there;
      writing the same format writes them again.
    files: the tokenizer's files by name.
    source: where the model came from: "format", "dialect" (what a writer of the
      same format needs to write the same names and shapes), "files" (name ->
      sha256) and other notes of the format.
    execution: how the source runs it (`models.variants.execution`).
  """

  spec: dict[str, Any]
  leaves: dict[str, Tensor]
  report: Report
  extras: dict[str, Tensor] = dataclasses.field(default_factory=dict)
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)
  source: dict[str, Any] = dataclasses.field(default_factory=dict)
  execution: dict[str, Any] = dataclasses.field(default_factory=dict)

  def dialect(self, format_name: str) -> dict[str, Any]:
    """Returns the dialect if the model came from that format, else {}."""
    same = self.source.get("format") == format_name
    return self.source.get("dialect", {}) if same else {}

  def extras_of(self, format_name: str) -> dict[str, Tensor]:
    """Returns the extras if the model came from that format, else {}."""
    return self.extras if self.source.get("format") == format_name else {}

  def changed(self, note: str, what: Any, **parts: Any) -> "Portable":
    """Returns the model with other parts, and `what` as a note in `source`."""
    source = {**self.source, note: what}
    return dataclasses.replace(self, source=source, **parts)

  def variables(self, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the arrays as a tree for the linen module, in `dtype`.

    A single tower gets the temperature 1, which the module of
    `engine.completed` needs to run.
    """
    tree = traverse_util.unflatten_dict(
      {path: leaf.read().astype(dtype) for path, leaf in self.leaves.items()},
      sep="/",
    )
    if len(engine.towers(self.spec)) == 1:
      tree["params"]["log_scale"] = np.zeros((), dtype)
    return tree


def from_variables(
  variables: Any,
  spec: dict[str, Any],
  *,
  files: Mapping[str, bytes],
  source: dict[str, Any],
  report: Report | None = None,
) -> Portable:
  """Returns the model of a linen module's variables.

  Args:
    variables: variables of the module of `spec`; arrays that `spec` does not
      describe, such as a single tower's temperature, are left out.
    spec: the complete description.
    files: the tokenizer's files by name.
    source: where the model came from.
    report: the report to write to.
  """
  arrays = engine.flatten(variables)
  leaves = {
    path: Tensor.from_array(np.asarray(arrays[path]))
    for path in engine.leaf_shapes(spec)
  }
  report = report or Report(source["format"])
  report.tensors = report.mapped = len(leaves)
  return Portable(
    spec=spec, leaves=leaves, files=dict(files), report=report, source=source
  )


def digests(files: Iterable[pathlib.Path]) -> dict[str, str]:
  """Returns the sha256 (hex) of each file by its name."""
  found = {}
  for path in files:
    with open(path, "rb") as file:
      found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


def refuse(target: str, problems: Iterable[str]) -> None:
  """Raises UserError if there are problems: what `target` cannot hold."""
  problems = list(problems)
  if problems:
    raise errors.UserError(
      f"The format {target!r} cannot hold this model: "
      f"{'; '.join(problems)}. Choose another --to, or clip-jax, which holds "
      "every model."
    )
