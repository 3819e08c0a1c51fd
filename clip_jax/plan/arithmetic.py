"""Floating-point operations of one compiled instruction.

Matrix products and convolutions alone, as in `models.flops`: a multiplication
and its addition are two operations. Only taps that meet an input count, since
compilers write batched products as convolutions over mostly padding.
"""

import functools
import json
import math
import re

import numpy as np

from clip_jax.plan import hlo

_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_GEMM = re.compile(r"__cublas\$|__onednn\$matmul")
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":(\[[^\]]*\])')
# Library calls and kernels of our own whose work the text does not tell.
_OPAQUE = re.compile(r"cudnn|fmha|conv|tpu_custom_call|mosaic|triton", re.I)


def flops(
  computation: hlo.Computation, instruction: hlo.Instruction
) -> int | None:
  """Returns the operations of one instruction; None where they are hidden."""
  if instruction.opcode == "dot":
    contracted = instruction.sizes("lhs_contracting_dims")
    return _product(computation, instruction, contracted)
  if instruction.opcode == "convolution":
    return _convolution(computation, instruction)
  if instruction.opcode == "custom-call":
    if _GEMM.search(instruction.target):
      found = _GEMM_CONTRACTED.search(instruction.attributes)
      if found:
        contracted = tuple(int(axis) for axis in json.loads(found[1]))
        return _product(computation, instruction, contracted)
      return None
    if _OPAQUE.search(instruction.target):
      return None
  return 0


def _product(computation, instruction, contracted) -> int:
  left = computation.operand(instruction, 0).shapes[0]
  depth = math.prod(left.dims[axis] for axis in contracted)
  return 2 * depth * instruction.shapes[0].elements


def _convolution(computation, instruction) -> int:
  left, kernel = (
    computation.operand(instruction, number).shapes[0] for number in (0, 1)
  )
  labels = _LABELS.search(instruction.attributes)
  result = instruction.shapes[0]
  features = kernel.dims[labels[2].index("i")]  # Of one group.
  outputs = result.dims[labels[3].index("f")]
  batch = left.dims[labels[1].index("b")]
  groups = instruction.number("batch_group_count", 1)
  window = _WINDOW.search(instruction.attributes)
  settings = _window(window[1] if window else "", len(result.dims) - 2)
  taps = 1
  for place, setting in enumerate(settings):
    label = str(place)
    taps *= _taps(
      inputs=left.dims[labels[1].index(label)],
      outputs=result.dims[labels[3].index(label)],
      **setting,
    )
  return 2 * features * outputs * (batch // groups) * taps


def _window(text: str, count: int) -> list[dict[str, int]]:
  """Reads a window such as "size=3x3 stride=2x2 pad=0_1x0_1"."""
  fields = dict(field.split("=") for field in text.split())

  def numbers(name, default):
    given = fields.get(name)
    return [int(n) for n in given.split("x")] if given else [default] * count

  pads = fields.get("pad")
  low = (
    [int(pad.split("_")[0]) for pad in pads.split("x")] if pads else [0] * count
  )
  return [
    {
      "size": size,
      "stride": stride,
      "pad": pad,
      "input_dilation": input_dilation,
      "window_dilation": window_dilation,
    }
    for size, stride, pad, input_dilation, window_dilation in zip(
      numbers("size", 1),
      numbers("stride", 1),
      low,
      numbers("lhs_dilate", 1),
      numbers("rhs_dilate", 1),
      strict=True,
    )
  ]


@functools.lru_cache(maxsize=4096)
def _taps(
  *,
  inputs: int,
  outputs: int,
  size: int,
  stride: int,
  pad: int,
  input_dilation: int,
  window_dilation: int,
) -> int:
  """Counts the pairs of an output and a tap that meet an input.

  A pair meets the place output * stride + tap * window_dilation - pad, which is
  an input where `input_dilation` divides it. Windows may be as long as a batch
  has tokens: the shorter of the two is counted through, the other computed.
  """
  last = (inputs - 1) * input_dilation
  each, other = (size, window_dilation), (outputs, stride)
  if outputs < size:
    each, other = other, each
  offsets = np.arange(each[0], dtype=np.int64) * each[1] - pad
  number, step = other
  lowest = np.maximum(-(offsets // step), 0)  # Rounded up.
  highest = np.minimum((last - offsets) // step, number - 1)
  found = 0
  for rest in range(input_dilation):
    first = -((rest - lowest) // input_dilation)
    past = (highest - rest) // input_dilation + 1
    meets = (rest * step + offsets) % input_dilation == 0
    found += int((np.maximum(past - first, 0) * meets).sum())
  return found
