"""A model between formats: its description, its arrays and what came along."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from clip_jax import errors
from clip_jax.convert import engine
from clip_jax.convert.report import Report
from clip_jax.convert.tensor import Tensor

_CHUNK_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Options:
  """What a user may say about a source or a target.

  Attributes:
    config: of a bare file of weights: an open_clip or a HuggingFace config,
      or one of `variants.VARIANTS`.
    weights: which of several models in a training's checkpoint to take, such
      as "model_ema".
    activation: of the towers, where the source does not say it.
    heads: of the image and of the text tower, where the source does not say.
    pooling: of a text tower that nothing around it says: "mean" or "cls" of
      a BERT, "last" of big_vision's Transformers.
    tokenizer: of big_vision's text towers, where the vocabulary is none of
      its own: "c4_en", "mc4" or "gemma", which clean, end and pad alike.
    preprocess: of a bare timm file: "inception", "imagenet" or "openai" for
      mean and std, and the part of the image that a centre crop keeps, or
      None where the image is squashed.
    image_size: to which position embeddings are resized; None keeps it.
    resize_method: one of `positions.METHODS`; needed with `image_size`.
    context_length: to which a text tower's positions are stretched or cut.
    old_grid: rows and cols of the source's patches, where it is not square.
    drop_logit_bias: drop the bias for a target that has none.
    interpolate: share of a fine-tuned model, the rest being of the one that
      it began with; None leaves it as it is.
    interpolate_with: that one; None for what a workdir says.
    headers_only: do not read or check the data.
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
  """A model that every format can be read into and written from.

  Attributes:
    spec: the resolved description (`models.variants.spec`), every field of it.
    leaves: our arrays by path, read lazily.
    report: the account of the reading.
    extras: tensors of the source that hold no parameter, by their names there;
      an export to the same format gives them back.
    files: of the tokenizer, by name.
    source: where it came from: "format", "dialect" (what a writer of the same
      format needs to give the same names and shapes), "files" (name ->
      sha256) and what else the format notes.
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
    """Returns the dialect, if the model came from the format of that name."""
    same = self.source.get("format") == format_name
    return self.source.get("dialect", {}) if same else {}

  def variables(self, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the arrays as a tree for the linen module, in `dtype`.

    A single tower gets the temperature 1, without which the module of
    `engine.completed` cannot run.
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
    variables: of the module of `spec`; arrays that it does not describe, such
      as a single tower's temperature, are left out.
    spec: the resolved description.
    files: of the tokenizer, by name.
    source: where the model came from.
    report: takes the account.
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


def assemble(
  entries: Sequence[engine.Entry],
  tensors: Mapping[str, Tensor],
  spec: dict[str, Any],
  *,
  report: Report,
  name: str,
  options: Options,
  configs: Iterable[pathlib.Path] = (),
  weights: Iterable[pathlib.Path] = (),
  ignored: Iterable[str] = (),
  hint: str = "",
  files: Mapping[str, bytes] | None = None,
  dialect: dict[str, Any] | None = None,
  noted: dict[str, Any] | None = None,
) -> Portable:
  """Returns the model that a checkpoint's tensors and their description make.

  Args:
    entries: of the format, for the model that `spec` describes.
    tensors: of the checkpoint, by their names.
    spec: the resolved description.
    report: of the reading; takes the account of the tensors.
    name: what messages call the checkpoint.
    options: what the user says.
    configs: small files that were read; their digests are noted.
    weights: files whose digests are noted unless only headers are read.
    ignored: regular expressions of names that hold no parameter.
    hint: what a user can do about a difference.
    files: of the tokenizer, by name.
    dialect: what a writer of the same format needs.
    noted: what else to keep about the source.

  Raises:
    MismatchError: a tensor is missing, unexpected or of another shape.
  """
  leaves, extras = engine.to_ours(
    entries,
    tensors,
    spec,
    report=report,
    name=name,
    ignored=ignored,
    hint=hint,
  )
  read = [*configs, *(() if options.headers_only else weights)]
  return Portable(
    spec=spec,
    leaves=leaves,
    report=report,
    extras=extras,
    files=dict(files or {}),
    source={
      "format": report.source_format,
      "dialect": dialect or {},
      "files": digests(read),
      **(noted or {}),
    },
  )


def digests(files: Iterable[pathlib.Path]) -> dict[str, str]:
  """Returns the sha256 (hex) of each file by its name."""
  found = {}
  for path in files:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
      while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    found[path.name] = digest.hexdigest()
  return found


def refuse(target: str, problems: Iterable[str]) -> None:
  """Raises UserError that names what `target` cannot hold, if anything."""
  problems = list(problems)
  if problems:
    raise errors.UserError(
      f"The format {target!r} cannot hold this model: "
      f"{'; '.join(problems)}. Choose another --to, or clip-jax, which holds "
      "every model."
    )


def find_nonfinite(array: np.ndarray) -> bool:
  """Whether an array holds NaN or infinity."""
  if not np.issubdtype(array.dtype, np.inexact) and array.dtype.kind != "V":
    return False
  return not bool(np.isfinite(array).all())
