"""A model loaded by another library, and the outputs of its layers."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor

# Intermediate results by name, in the order in which they are computed.
Stages = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint from which an oracle is made.

  Attributes:
    path: the checkpoint's path.
    spec: our description of it.
    options: the user's options for it.
    double: whether to compute in float64.
  """

  path: pathlib.Path
  spec: dict[str, Any]
  options: portable.Options
  double: bool

  def tensors(self, path: pathlib.Path | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a file, by default of the checkpoint itself."""
    return SourceReading("", options=self.options).tensors(path or self.path)


def state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
  """Returns tensors as a PyTorch state dict, in float64."""
  import torch

  return {
    name: torch.from_numpy(np.array(tensor.read(), np.float64))
    for name, tensor in tensors.items()
  }


class MissingError(Exception):
  """A library cannot preprocess images or texts; the message says why."""


@dataclasses.dataclass(frozen=True)
class Tower:
  """One tower of a PyTorch model.

  Attributes:
    blocks: the modules whose outputs are compared, in order.
    run: returns the tower's last outputs by stage, from a tensor of images
      (batch, 3, h, w) or ids (batch, length).
    named: name of a block in the table of stages.
    sequence_first: whether the blocks' outputs are (length, batch, width).
  """

  blocks: Iterable[Any]
  run: Callable[[Any], dict[str, Any]]
  named: str = "block"
  sequence_first: bool = False

  def stages(self, inputs: np.ndarray, *, double: bool) -> Stages:
    """Returns the outputs of the blocks and of the tower, by stage.

    Args:
      inputs: normalised images (batch, h, w, 3), or ids (batch, length).
      double: whether the model computes in float64.
    """
    import torch

    if inputs.ndim == 4:
      kind = np.float64 if double else np.float32
      inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2), kind)
    else:
      inputs = np.asarray(inputs, np.int64)
    stages: Stages = {}

    def keep(name):
      def hook(module, arguments, output):
        del module, arguments
        output = output[0] if isinstance(output, tuple) else output
        array = output.detach().numpy()
        if self.sequence_first and array.ndim == 3:
          array = array.swapaxes(0, 1)
        if array.ndim == 4:  # A feature map; ours has its channels last.
          array = array.transpose(0, 2, 3, 1)
        stages[name] = np.array(array)

      return hook

    hooks = [
      module.register_forward_hook(keep(f"{self.named} {i}"))
      for i, module in enumerate(self.blocks, start=1)
    ]
    try:
      with torch.no_grad():
        ends = self.run(torch.from_numpy(inputs))
    finally:
      for hook in hooks:
        hook.remove()
    return stages | {name: end.numpy() for name, end in ends.items()}


@dataclasses.dataclass(frozen=True)
class Oracle:
  """A source, loaded by its own library.

  Attributes:
    library: the library's name and version.
    towers: its towers by "image" and "text".
    model: a model with a `logit_scale` and perhaps a `logit_bias`; None for a
      single tower.
    pixels: the library's own preprocessing, from Pillow images to normalised
      float images (n, h, w, 3); None if it is not available.
    tokens: the library's own tokenizer, from texts to ids (n, length); None if
      it is not available.
    missing: the reasons why "pixels" or "tokens" is None.
  """

  library: str
  towers: Mapping[str, Tower]
  model: Any = None
  pixels: Callable[[list], np.ndarray] | None = None
  tokens: Callable[[list[str]], np.ndarray] | None = None
  missing: dict[str, str] = dataclasses.field(default_factory=dict)

  def logits(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the logits (images, texts) of unit embeddings."""
    scale = self.model.logit_scale.detach().exp().numpy()
    bias = getattr(self.model, "logit_bias", None)
    shift = 0 if bias is None else bias.detach().numpy()
    return scale * images @ texts.T + shift


def make_inputs(
  library: str, **makers: Callable[[], Callable[[list], np.ndarray]]
) -> dict[str, Any]:
  """Returns an oracle's fields "pixels", "tokens" and "missing".

  Args:
    library: the library's name.
    makers: functions that make "pixels" and "tokens"; if one raises an error,
      that becomes the reason in "missing".
  """
  found: dict[str, Any] = {"missing": {}}
  for field, make in makers.items():
    try:
      found[field] = make()
    except MissingError as error:
      found["missing"][field] = str(error)
    except Exception as error:  # For example, files or packages are missing.
      reason = errors.first_line(error)
      found["missing"][field] = f"{library} cannot make it: {reason}"
  return found


def image_tower(visual: Any, **keywords: Any) -> Tower:
  """Returns the image tower of a model of OpenAI's layout, or of timm's."""
  visual = getattr(visual, "trunk", visual)  # timm's, in open_clip.
  if hasattr(visual, "transformer"):
    return Tower(visual.transformer.resblocks, **keywords)
  if hasattr(visual, "layer1"):
    stages = [getattr(visual, f"layer{i}") for i in range(1, 5)]
    return Tower(stages, named="stage", **keywords)
  return Tower(getattr(visual, "blocks", ()), **keywords)


def unit(tensor: Any) -> Any:
  """Returns a tensor divided by the Euclidean norm of its last axis."""
  return tensor / tensor.norm(dim=-1, keepdim=True)
