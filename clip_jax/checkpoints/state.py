"""The state of a run, and how it is made."""

import os
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.models import clip, initialisation, sharded, variants


@flax.struct.dataclass
class TrainState:
  """Everything that an update changes.

  Attributes:
    step: finished updates, the skipped ones included; also the position in
      the data.
    params: of the model, in their storage type.
    batch_stats: running statistics of batch norms; empty without any.
    opt_state: of the optimizer.
    skipped: updates that were not made, for something was not finite.
    ema: moving averages of params and batch_stats, under these names; empty
      where none are kept.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  skipped: jax.Array
  ema: Any = flax.struct.field(default_factory=dict)

  @property
  def variables(self) -> dict[str, Any]:
    """The collections of the model to use, as `model.apply` takes them.

    They are the averages where these are kept.
    """
    return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(
  model: clip.CLIP, seed: int | jax.Array, *, scheme: str = "scaled"
) -> dict[str, Any]:
  """Returns the new collections of `model`; see `initialisation`."""
  size = model.image.image_size
  images = jnp.zeros((1, size, size, 3), jnp.uint8)
  tokens = jnp.zeros((1, model.text.context_length), jnp.int32)
  key = jax.random.key(seed)
  variables = model.init(key, images, tokens)
  return initialisation.redraw(variables, model, key, scheme=scheme)


def _state_of(
  variables: dict[str, Any], tx: optax.GradientTransformation, ema: bool
) -> TrainState:
  """Returns the state that training begins with from these variables."""
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(params),
    skipped=jnp.zeros((), jnp.int32),
    ema={"params": params, "batch_stats": batch_stats} if ema else {},
  )


def abstract_state(
  model: clip.CLIP,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  *,
  ema: bool = False,
) -> TrainState:
  """Returns shapes, types and shardings of a state, without any array.

  Args:
    model: to be trained.
    tx: the optimizer.
    mesh: whose devices hold the state.
    ema: whether moving averages are kept.
  """
  shapes = jax.eval_shape(
    lambda variables: _state_of(variables, tx, ema),
    variants.abstract_variables(model),
  )
  shardings = sharded.tree_shardings(shapes, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def init_state(
  model: clip.CLIP,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  *,
  seed: int,
  ema: bool = False,
  scheme: str = "scaled",
) -> TrainState:
  """Returns a new state, born sharded: no device ever holds it whole."""
  abstract = abstract_state(model, tx, mesh, ema=ema)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  # The seed is an argument, so that every seed shares one compilation.
  initialise = jax.jit(
    lambda seed: _state_of(init_variables(model, seed, scheme=scheme), tx, ema),
    out_shardings=shardings,
    compiler_options=_quickly_compiled(mesh),
  )
  return initialise(jnp.uint32(seed))


def _quickly_compiled(mesh: Mesh) -> dict[str, int] | None:
  """Returns the compiler's options for a program that runs once.

  On CPUs the program that draws the numbers of `tiny-rn` compiles in 5 s of
  processor time instead of 13, and draws the same ones.
  """
  level = "xla_backend_optimization_level"
  on_cpus = mesh.devices.flat[0].platform == "cpu"
  if not on_cpus or level in os.environ.get("XLA_FLAGS", ""):
    return None
  return {level: 1}
