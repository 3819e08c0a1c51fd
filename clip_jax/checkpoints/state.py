"""The training state of a run, and how it is made."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax import cpu_compiler
from clip_jax.models import clip, initialisation, sharded, variants


@flax.struct.dataclass
class TrainState:
  """All arrays that an update changes.

  Attributes:
    step: number of finished updates, skipped ones included; also the position
      in the data.
    params: the model's parameters, in their storage type.
    batch_stats: running statistics of batch norms; empty if there are none.
    opt_state: state of the optimizer.
    skipped: number of updates that were skipped since the loss, a gradient or
      the update itself was not finite.
    ema: moving averages of params and batch_stats, under these names; empty
      if none are kept.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  skipped: jax.Array
  ema: Any = flax.struct.field(default_factory=dict)

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of the model to evaluate, as `model.apply` takes them.

    These are the moving averages if they are kept.
    """
    return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(
  model: clip.CLIP, seed: int | jax.Array, *, scheme: str = "scaled"
) -> dict[str, Any]:
  """Returns newly initialised variables of `model`; see `initialisation`."""
  size = model.image.image_size
  images = jnp.zeros((1, size, size, 3), jnp.uint8)
  tokens = jnp.zeros((1, model.text.context_length), jnp.int32)
  key = jax.random.key(seed)
  variables = model.init(key, images, tokens)
  return initialisation.redraw(variables, model, key, scheme=scheme)


def _state_of(
  variables: dict[str, Any], tx: optax.GradientTransformation, ema: bool
) -> TrainState:
  """Returns the state at step 0 with these variables."""
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
  """Returns shapes, types and shardings of a state; allocates no array.

  Args:
    model: the model to be trained.
    tx: the optimizer.
    mesh: the mesh whose devices hold the state.
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
  """Returns a new state, created sharded: no device ever holds all of it."""
  abstract = abstract_state(model, tx, mesh, ema=ema)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  # The seed is an argument, so that every seed shares one compilation.
  initialise = jax.jit(
    lambda seed: _state_of(init_variables(model, seed, scheme=scheme), tx, ema),
    out_shardings=shardings,
    compiler_options=cpu_compiler.options(mesh.devices.flat[0], run_once=True),
  )
  return initialise(jnp.uint32(seed))
