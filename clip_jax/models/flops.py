"""Floating-point operations, counted in the program that JAX traces.

The compiler's own count takes the body of a loop once, however often it runs;
here a scan's body counts as often as the scan is long.
"""

import math
from collections.abc import Callable, Iterator

import jax

from clip_jax.models import clip, variants


def count(function: Callable, *args) -> int:
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
  """Counts one image's embedding."""
  images, _ = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_image, images)


def text_flops(model: clip.CLIP) -> int:
  """Counts one text's embedding, at the full context length."""
  _, tokens = variants.abstract_inputs(model)
  return _count_method(model, clip.CLIP.encode_text, tokens)


def _count_method(model, method, inputs):
  def embed(variables, inputs):
    return model.apply(variables, inputs, method=method)

  return count(embed, variants.abstract_variables(model), inputs)


def _count_jaxpr(jaxpr) -> int:
  return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation) -> int:
  name = equation.primitive.name
  if name in _COUNTERS:
    return _COUNTERS[name](equation)
  return sum(map(_count_jaxpr, _inner_jaxprs(equation)))


def _inner_jaxprs(equation) -> Iterator:
  """Yields the programs that an equation calls: jit, remat, custom rules."""
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      item = getattr(item, "jaxpr", item)  # A closed program wraps an open one.
      if hasattr(item, "eqns"):
        yield item


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


def _scan(equation) -> int:
  return equation.params["length"] * sum(
    map(_count_jaxpr, _inner_jaxprs(equation))
  )


def _while(equation) -> int:
  if any(map(_count_jaxpr, _inner_jaxprs(equation))):
    raise ValueError(
      "Cannot count a while loop that holds matrix products: its length is "
      "not known. Use a scan, or a fori_loop with fixed bounds."
    )
  return 0


def _cond(equation) -> int:
  return max(map(_count_jaxpr, _inner_jaxprs(equation)))


def _shard_map(equation) -> int:
  # The inner program is what each device runs.
  return equation.params["mesh"].size * sum(
    map(_count_jaxpr, _inner_jaxprs(equation))
  )


_COUNTERS = {
  "cond": _cond,
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  "scan": _scan,
  "shard_map": _shard_map,
  "while": _while,
}
