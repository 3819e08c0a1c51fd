"""Floating-point operations, counted in the program that JAX traces.

The compiler's own count takes the body of a loop once, however often it runs;
here a scan's body counts as often as the scan is long.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from clip_jax.models import clip, variants


def count(function: Callable, *args: Any) -> int:
  """Counts the operations of matrix products and convolutions.

  A multiplication and its addition are two. Elementwise work does not count.
  Of a conditional the dearest branch counts.

  Args:
    function: any JAX function.
    *args: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.

  Raises:
    ValueError: a while loop, whose length is not known, holds such work.
  """
  return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def image_flops(model: clip.CLIP) -> int:
  """Counts one image's embedding, all positions of the last block included.

  Where only one of them is read, encoding computes no others: less than this.
  """
  images, _ = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_image, images)


def text_flops(model: clip.CLIP) -> int:
  """Counts one text's embedding at the full context length, as for images."""
  _, tokens = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_text, tokens)


def _count_method(model, method, inputs):
  def embed(variables, inputs):
    # A tower whose intermediates are watched computes all of them.
    watched = ["intermediates"]
    return model.apply(variables, inputs, method=method, mutable=watched)

  return count(embed, variants.abstract_variables(model), inputs)


class Call(NamedTuple):
  """An equation of a traced program, and how often it runs.

  Attributes:
    equation: of JAX.
    times: that one device runs it; None inside a while loop, whose length is
      not known.
    mesh: of the `shard_map` around it; None outside of any.
  """

  equation: Any
  times: int | None
  mesh: Any


def calls(
  jaxpr: Any, *, times: int | None = 1, mesh: Any = None
) -> Iterator[Call]:
  """Yields the equations of a program and of all that it calls, in order.

  A scan's body counts as often as the scan is long. Of a conditional only the
  branch with the most products is followed, of a program that has a form for
  CPUs only the other one.
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
  """Returns the operations of one equation, all devices and times together.

  Raises:
    ValueError: it is a product in a while loop.
  """
  count_one = _COUNTERS.get(call.equation.primitive.name)
  if count_one is None:
    return 0
  if call.times is None:
    raise ValueError(
      "Cannot count a while loop that holds matrix products: its length is "
      "not known. Use a scan, or a fori_loop with fixed bounds."
    )
  devices = 1 if call.mesh is None else call.mesh.size
  return call.times * devices * count_one(call.equation)


def array_bytes(*variables: Any) -> int:
  """Returns the size of the arrays that an equation takes or gives."""
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
  # A gradient of a strided convolution reads zeros between its inputs.
  zeros = math.prod(equation.params["lhs_dilation"])
  return 2 * taps * outputs // zeros


_COUNTERS = {
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
}
