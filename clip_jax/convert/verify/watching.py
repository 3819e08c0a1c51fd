"""Catching what the parts of a PyTorch model return."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from clip_jax.convert.verify.oracle import Stages


def watch(
  parts: Iterable[tuple[str, Any]],
  run: Callable[[], Any],
  *,
  sequence_first: bool = False,
) -> Stages:
  """Returns what each part returned while `run` ran, by its name.

  Args:
    parts: names and torch modules.
    run: calls the model.
    sequence_first: the parts hold (length, batch, width).
  """
  import torch

  stages: Stages = {}
  hooks = []

  def keep(name):
    def hook(module, inputs, output):
      del module, inputs
      output = output[0] if isinstance(output, tuple) else output
      array = output.detach().numpy()
      if sequence_first and array.ndim == 3:
        array = array.swapaxes(0, 1)
      if array.ndim == 4:  # A feature map: ours has its channels last.
        array = array.transpose(0, 2, 3, 1)
      stages[name] = np.array(array)

    return hook

  try:
    for name, module in parts:
      hooks.append(module.register_forward_hook(keep(name)))
    with torch.no_grad():
      run()
  finally:
    for hook in hooks:
      hook.remove()
  return stages


def blocks(modules: Iterable[Any]) -> list[tuple[str, Any]]:
  """Names the blocks of a tower."""
  return [(f"block {i}", module) for i, module in enumerate(modules, start=1)]


def channels_first(images: np.ndarray, double: bool) -> Any:
  """Returns (batch, 3, h, w) as a torch tensor."""
  import torch

  kind = torch.float64 if double else torch.float32
  pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  return torch.from_numpy(pixels).to(kind)


def unit(array: np.ndarray) -> np.ndarray:
  """Divides by the Euclidean norm of the last axis."""
  return array / np.linalg.norm(array, axis=-1, keepdims=True)
