"""Counts floating-point operations in the program that JAX traces.

The compiler's own count includes the body of a loop once, however often it
runs; here the body of a scan counts once for each of its iterations.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from clip_jax.models import clip, variants


def count(function: Callable, *args: Any) -> int:
  """Counts the operations of matrix products and convolutions.

  A multiplication and an addition count as two operations. Elementwise
  operations do not count. Of a conditional, only the most expensive branch
  counts.

  Args:
    function: any JAX function.
    *args: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.

  Raises:
    ValueError: there is such a product in a while loop, whose number of
      iterations is not known.
  """
  return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def image_flops(model: clip.CLIP) -> int:
  """Counts the operations of one image's embedding.

  All positions of the last block are included. If only one of them is read,
  `encode_image` does not compute the others and takes less than this.
  """
  images, _ = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_image, images)


def text_flops(model: clip.CLIP) -> int:
  """Counts the operations of one text's embedding, as `image_flops` does.

  The text has the full context length.
  """
  _, tokens = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_text, tokens)


def _count_method(model, method, inputs):
  def embed(variables, inputs):
    # Capturing intermediates makes the tower compute all positions.
    watched = ["intermediates"]
    return model.apply(variables, inputs, method=method, mutable=watched)

  return count(embed, variants.abstract_variables(model), inputs)


class Call(NamedTuple):
  """An equation of a traced program, and how often it runs.

  Attributes:
    equation: the equation of the jaxpr.
    times: how often one device runs it; None inside a while loop, whose number
      of iterations is not known.
    mesh: the mesh of the `shard_map` around it; None if there is none.
  """

  equation: Any
  times: int | None
  mesh: Any


def calls(
  jaxpr: Any, *, times: int | None = 1, mesh: Any = None
) -> Iterator[Call]:
  """Yields the equations of a program and of all programs it calls, in order.

  The body of a scan counts once for each iteration. Of a conditional, only the
  branch with the most products is followed; of a program that has a version for
  CPUs (by_platform.py), only the other version.
  """
  for equation in jaxpr.eqns:
    yield Call(equation, times, mesh)
    name, params = equation.primitive.name, equation.params
    inner, often, around = _inner_jaxprs(equation), times, mesh
    if name == "scan":
      often = None if times is None else times * params["length"]
    elif name == "while":
      often = None
    elif name == "shard_map":
      around = params["mesh"]  # The inner program is what each device runs.
    elif name == "cond":
      inner = [max(inner, key=_count_jaxpr)]
    elif name == "by_platform":
      inner = [params["default"].jaxpr]
    for program in inner:
      yield from calls(program, times=often, mesh=around)


def _inner_jaxprs(equation) -> Iterator:
  """Yields the programs that an equation calls: jit, remat, custom rules."""
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      item = getattr(item, "jaxpr", item)  # A closed program wraps an open one.
      if hasattr(item, "eqns"):
        yield item


def _count_jaxpr(jaxpr) -> int:
  return sum(map(call_flops, calls(jaxpr)))


def call_flops(call: Call) -> int:
  """Returns the operations of one equation, summed over devices and iterations.

  Raises:
    ValueError: it is a product in a while loop.
  """
  count_one = _COUNTERS.get(call.equation.primitive.name)
  if count_one is None:
    return 0
  if call.times is None:
    raise ValueError(
      "Cannot count a while loop that holds matrix products: the number of its "
      "iterations is not known. Use a scan, or a fori_loop with fixed bounds."
    )
  devices = 1 if call.mesh is None else call.mesh.size
  return call.times * devices * count_one(call.equation)


def array_bytes(*variables: Any) -> int:
  """Returns the size in bytes of an equation's inputs or outputs."""
  return sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in variables)


def _dot_general(equation) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation) -> int:
  kernel = equation.invars[1].aval.shape
  features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
  taps = math.prod(kernel) // features
  outputs = math.prod(equation.outvars[0].aval.shape)
  # The gradient of a strided convolution has zeros between its inputs, which
  # are not counted.
  zeros = math.prod(equation.params["lhs_dilation"])
  return 2 * taps * outputs // zeros


_COUNTERS = {
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
}
