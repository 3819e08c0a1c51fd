"""Floating-point operations, counted in the program that JAX traces.

The compiler's own count takes the body of a loop once, however often it runs;
here a scan's body counts as often as the scan is long.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models import clip, resnet, text, variants, vit


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


@dataclasses.dataclass(frozen=True)
class Size:
  """How large a model, or a part of it, is.

  Attributes:
    parameters: trained numbers.
    flops: operations of one example.
  """

  parameters: int
  flops: int

  def __add__(self, other: "Size") -> "Size":
    """Returns the size of both."""
    return Size(self.parameters + other.parameters, self.flops + other.flops)

  def __mul__(self, times: int) -> "Size":
    """Returns the size of as many equals."""
    return Size(self.parameters * times, self.flops * times)


def tower_sizes(model: clip.CLIP) -> dict[str, Size]:
  """Returns the sizes of "image" and "text", with their projections.

  The same numbers as a trace of the whole model gives, in a hundredth of its
  time, for lists of models: formulas for Transformers, and a trace of one block
  a stage for ResNets. See `parameter_count` for a whole model's.
  """
  sizes = {}
  for part in variants.TOWERS:
    tower = getattr(model, part)
    kind = getattr(model, f"{part}_projection_kind")
    size = _TOWER_SIZES.get(type(tower), _traced_tower)(tower)
    sizes[part] = size + _projection_size(kind, tower.width, model.embed_dim)
  return sizes


def parameter_count(model: clip.CLIP, sizes: dict[str, Size]) -> int:
  """Returns the model's parameters, given its `tower_sizes`."""
  scalars = 1 + (model.init_logit_bias is not None)
  return scalars + sum(size.parameters for size in sizes.values())


def _dense(inputs: int, outputs: int, *, rows: int = 1, bias=True) -> Size:
  products = inputs * outputs
  return Size(products + bool(bias) * outputs, 2 * rows * products)


def _vector(*lengths: int) -> Size:
  """Parameters without a matrix product: norms, positions, single vectors."""
  return Size(sum(lengths), 0)


def _projection_size(kind: str, width: int, embed_dim: int) -> Size:
  if kind == "none":
    return Size(0, 0)
  if kind == "mlp":
    hidden = (width + embed_dim) // 2
    inner = _dense(width, hidden, bias=False)
    return inner + _dense(hidden, embed_dim, bias=False)
  return _dense(width, embed_dim, bias=kind == "linear_bias")


def _attention_size(tower, *, queries: int, length: int) -> Size:
  """Returns the size of attention, a norm, the MLP and its norm."""
  width, mlp_dim = tower.width, tower.mlp_dim or 4 * tower.width
  ends = _dense(width, width, rows=queries) * 2  # The query and the output.
  memory = _dense(width, width, rows=length) * 2
  products = Size(0, 4 * queries * length * width)
  mlp = _dense(width, mlp_dim, rows=queries)
  mlp += _dense(mlp_dim, width, rows=queries)
  return ends + memory + products + mlp + _vector(2 * width)


def _encoder_size(tower, length: int) -> Size:
  block = _attention_size(tower, queries=length, length=length)
  return (block + _vector(2 * tower.width)) * tower.depth


def _map_size(tower, length: int) -> Size:
  if tower.pooling != "map":
    return Size(0, 0)
  head = _attention_size(tower, queries=1, length=length)
  return head + _vector(tower.width)


def _vit_size(tower: vit.VisionTransformer) -> Size:
  p, width, prefix = tower.patch_size, tower.width, int(tower.class_token)
  patches = (tower.image_size // p) ** 2
  positions = patches + (prefix and int(tower.class_position))
  prefix += tower.registers
  norms = 2 * (1 + int(tower.pre_norm))
  size = _dense(3 * p * p, width, rows=patches, bias=tower.patch_bias)
  size += _vector((positions + prefix + norms) * width)
  size += _encoder_size(tower, prefix + patches)
  return size + _map_size(tower, patches)


def _text_size(tower: text.TextTransformer) -> Size:
  length, width = tower.context_length, tower.width
  size = _vector(tower.vocab_size * width, length * width, 2 * width)
  return size + _encoder_size(tower, length) + _map_size(tower, length)


@functools.cache
def _resnet_size(tower: resnet.ModifiedResNet) -> Size:
  """One block a stage stands for all of them, but for the first."""
  size = _traced_tower(tower.clone(depths=(1,) * len(tower.depths)))
  for i, depth in enumerate(tower.depths):
    features, side = tower.width * 2**i, tower.image_size // 2 ** (i + 2)
    shape = (1, side, side, resnet.EXPANSION * features)
    block = resnet.Bottleneck(features)
    inputs = jax.ShapeDtypeStruct(shape, block.dtype)
    size += _traced_size(block, inputs) * (depth - 1)
  return size


def _traced_tower(tower: nn.Module) -> Size:
  if hasattr(tower, "image_size"):
    shape = (1, tower.image_size, tower.image_size, 3)
    inputs = jax.ShapeDtypeStruct(shape, tower.dtype)
  else:
    inputs = jax.ShapeDtypeStruct((1, tower.context_length), jnp.int32)
  return _traced_size(tower, inputs)


def _traced_size(module: nn.Module, inputs: jax.ShapeDtypeStruct) -> Size:
  """Traces initialisation, which runs the module on the way."""
  initialise = functools.partial(module.init_with_output, train=False)
  key = jax.eval_shape(lambda: jax.random.key(0))
  program, (_, variables) = jax.make_jaxpr(initialise, return_shape=True)(
    key, inputs
  )
  leaves = jax.tree.leaves(variables["params"])
  parameters = sum(math.prod(leaf.shape) for leaf in leaves)
  return Size(parameters, _count_jaxpr(program.jaxpr))


_TOWER_SIZES: dict[type[nn.Module], Callable[..., Size]] = {
  resnet.ModifiedResNet: _resnet_size,
  text.TextTransformer: _text_size,
  vit.VisionTransformer: _vit_size,
}


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
