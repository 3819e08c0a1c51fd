"""Chooses between a program for CPUs and one for all other platforms."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import batching, mlir


def choose(
  *args: Any, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
  """Returns `default(*args)`, computed as `cpu(*args)` on CPUs.

  The choice is made when a program is lowered, so that compiling for TPUs on a
  machine without TPUs gives the program for TPUs. `jax.lax.platform_dependent`
  does the same, but leaves a conditional in the program of every platform; here
  only the chosen function is left. There is no derivative: use this function
  inside the rules of a `jax.custom_vjp`.

  Args:
    *args: trees of arrays. The functions must not close over other arrays.
    cpu: a function that returns the same shapes and types as `default`.
    default: any JAX function.
  """
  leaves, tree = jax.tree.flatten(args)

  def program(function):
    return jax.make_jaxpr(
      lambda *leaves: function(*tree.unflatten(leaves)), return_shape=True
    )(*leaves)

  (cpu_form, _), (default_form, shapes) = program(cpu), program(default)
  assert cpu_form.out_avals == default_form.out_avals
  outputs = choice_p.bind(*leaves, cpu=cpu_form, default=default_form)
  return jax.tree.structure(shapes).unflatten(outputs)


def _batch(args, axes, *, cpu, default):
  def batched(form):
    return jax.vmap(core.jaxpr_as_fun(form), in_axes=axes)

  outputs = choose(*args, cpu=batched(cpu), default=batched(default))
  return outputs, (0,) * len(outputs)


choice_p = core.Primitive("by_platform")
choice_p.multiple_results = True
choice_p.def_abstract_eval(lambda *_, cpu, default: default.out_avals)
choice_p.def_impl(lambda *args, cpu, default: core.jaxpr_as_fun(default)(*args))
batching.primitive_batchers[choice_p] = _batch
mlir.register_lowering(
  choice_p,
  mlir.lower_fun(
    lambda *args, cpu, default: core.jaxpr_as_fun(default)(*args),
    multiple_results=True,
  ),
)
mlir.register_lowering(
  choice_p,
  mlir.lower_fun(
    lambda *args, cpu, default: core.jaxpr_as_fun(cpu)(*args),
    multiple_results=True,
  ),
  platform="cpu",
)
