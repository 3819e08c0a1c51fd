"""The device mesh, its axis names, and the collectives over them in a step.

The batch is split over both axes; parameters and optimizer state are split
over `fsdp` and replicated over `data` by the rules in `models.sharded`.
Parameters are gathered where they are used; gradients are summed in the
parameters' storage type, which is wider than the type of computation.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import errors, versions

DATA = "data"
FSDP = "fsdp"
BATCH_AXES = (DATA, FSDP)

versions.check()


class Device(Protocol):
  """A `jax.Device`, which JAX declares as a variable and not as a type."""

  id: int
  platform: str
  device_kind: str

  def memory_stats(self) -> dict[str, int] | None:
    """Returns numbers of bytes by name; None if the platform has none."""
    ...


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  devices: Sequence[Device] | None = None,
) -> Mesh:
  """Returns a mesh over all devices with the axes `data` and `fsdp`.

  Args:
    data: size of the axis that splits only the batch; -1 takes the rest.
    fsdp: size of the axis that also splits parameters; -1 takes the rest.
    devices: the devices to use; None for all devices of all processes.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count() if devices is None else len(devices)
  sizes = [data, fsdp]
  if sizes.count(-1) == 2:
    raise errors.UserError("Only one of mesh.data and mesh.fsdp may be -1.")
  if -1 in sizes:
    known = -math.prod(sizes)
    sizes[sizes.index(-1)] = max(count // known, 1)
  if math.prod(sizes) != count:
    raise errors.UserError(
      f"mesh.data={data} and mesh.fsdp={fsdp} do not fit the {count} devices "
      f"here; their product must be {count} (-1 takes the rest)."
    )
  return jax.make_mesh(
    sizes,
    BATCH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=devices,
  )


def check_batch_size(
  batch_size: int, mesh: Mesh, *, micro_batches: int = 1
) -> None:
  """Raises UserError unless the batch splits evenly over the devices.

  Args:
    batch_size: number of pairs in the global batch.
    mesh: the mesh whose devices share the batch.
    micro_batches: number of parts into which each device's share is split.
  """
  parts = mesh.size * micro_batches
  if batch_size % parts:
    nearest = max(batch_size // parts, 1) * parts
    times = f" times micro_batches={micro_batches}" if micro_batches > 1 else ""
    raise errors.UserError(
      f"batch_size={batch_size} must be divisible by the {mesh.size} devices "
      f"on the mesh (data={mesh.shape[DATA]}, fsdp={mesh.shape[FSDP]}){times}; "
      f"try {nearest}."
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first dimension is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are whole on every device."""
  return NamedSharding(mesh, P())


def split_axis(spec: P) -> int | None:
  """Returns the axis of an array that `fsdp` splits, or None."""
  axes = tuple(spec)
  return axes.index(FSDP) if FSDP in axes else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
  """Returns the whole array of which `x` is this device's part over `fsdp`.

  To be called inside `shard_map`. The array is cast to `dtype` before it is
  gathered. Its gradient is summed over the devices in the type of `x`: a sum
  over many devices in bfloat16 would lose the smaller terms.

  Args:
    x: this device's part.
    axis: the axis that is split.
    dtype: type of the result.
  """
  return jax.lax.all_gather(x.astype(dtype), FSDP, axis=axis, tiled=True)


def _gather_forward(x, axis, dtype):
  # The backward pass needs only the type of `x`.
  return gather(x, axis, dtype), jnp.zeros((), x.dtype)


def _gather_backward(axis, dtype, kind, gradient):
  del dtype
  # The devices get an axis of their own: libtpu 0.0.52 pads a scatter along the
  # rows of an embedding table, and then fails to compile some steps.
  devices = jax.lax.axis_size(FSDP)
  shape = gradient.shape
  parts = gradient.astype(kind.dtype).reshape(
    *shape[:axis], devices, shape[axis] // devices, *shape[axis + 1 :]
  )
  return (jax.lax.psum_scatter(parts, FSDP, scatter_dimension=axis),)


gather.defvjp(_gather_forward, _gather_backward)


def gather_tree(
  tree: Any, specs: Any, *, dtype: jnp.dtype, layer: bool = False
) -> Any:
  """Returns `tree` with the arrays that `fsdp` splits gathered.

  To be called inside `shard_map`.

  Args:
    tree: this device's parts.
    specs: the PartitionSpec of each array.
    dtype: type of the gathered arrays.
    layer: True if `tree` is one layer and `specs` are of the whole stack,
      which has one leading axis more.
  """

  def gathered(x, spec):
    axis = split_axis(spec)
    return x if axis is None else gather(x, axis - int(layer), dtype)

  return jax.tree.map(gathered, tree, specs)


def vary(tree: Any, specs: Any) -> Any:
  """Returns `tree` as arrays that vary over all axes of the mesh.

  The gradient of a varying array is this device's share, in the array's type,
  until `sum_gradients` sums the shares. Otherwise JAX would sum the shares
  wherever arrays that do not vary meet arrays that do, in whatever type.

  Args:
    tree: this device's parts, inside `shard_map`.
    specs: the PartitionSpec of each array.
  """

  def cast(x, spec):
    same = BATCH_AXES if split_axis(spec) is None else (DATA,)
    return jax.lax.pcast(x, same, to="varying")

  return jax.tree.map(cast, tree, specs)


def sum_gradients(gradients: Any, specs: Any) -> Any:
  """Returns gradients summed over the mesh.

  Args:
    gradients: gradients of this device's pairs; if `fsdp` splits a parameter,
      those of this device's part, which `gather` has summed over `fsdp`.
    specs: the PartitionSpec of each parameter.
  """

  def total(x, spec):
    return jax.lax.psum(x, BATCH_AXES if split_axis(spec) is None else DATA)

  return jax.tree.map(total, gradients, specs)


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a key path of `jax.tree_util` as "/"-joined names."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """Returns the global batch's row numbers on this process's devices."""
  indices = sharding.addressable_devices_indices_map((batch_size,))
  rows = {index[0].indices(batch_size) for index in indices.values() if index}
  return np.unique(np.concatenate([np.arange(*bounds) for bounds in rows]))


def place(batch: dict[str, Any], sharding: NamedSharding) -> dict[str, Any]:
  """Returns the arrays of `batch` as global `jax.Array`s.

  Args:
    batch: this process's rows, those of `local_rows` in ascending order.
      Entries that are not arrays or trees of arrays (`problems`) are left out.
    sharding: how the first axis is split over the devices.
  """
  return {
    name: jax.tree.map(lambda x: _place_array(np.asarray(x), sharding), value)
    for name, value in batch.items()
    if _is_arrays(jax.tree.leaves(value))
  }


def _is_arrays(leaves: list) -> bool:
  return bool(leaves) and all(isinstance(x, np.ndarray) for x in leaves)


def _place_array(local: np.ndarray, sharding):
  # All blocks have the same number of rows, so this process's share of a batch
  # is its share of a batch with one row per device.
  devices = len(sharding.device_set)
  share = len(local_rows(sharding, devices))
  batch_size = len(local) * devices // share
  rows = local_rows(sharding, batch_size)

  def block(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(rows, start)
    return local[first : first + stop - start]

  shape = (batch_size, *local.shape[1:])
  return jax.make_array_from_callback(shape, sharding, block)


def shared_mesh(devices: Sequence[Device] | None = None) -> Mesh | None:
  """Returns the mesh of `devices`, of all if None.

  It is None for the first device alone, where JAX computes without a mesh.

  Raises:
    UserError: there are none, or one is no device of JAX.
  """
  known = jax.devices()
  chosen = known if devices is None else devices
  chosen = list(chosen) if isinstance(chosen, Iterable) else []
  are_known = all(each in known for each in chosen)
  if not (are_known and 0 < len(set(chosen)) == len(chosen)):
    raise errors.UserError(
      "devices is a list of some of jax.devices(), each once; got "
      f"{devices!r:.100}."
    )
  is_first = chosen == jax.local_devices()[:1]
  return None if is_first else make_mesh(devices=chosen)


def place_everywhere(variables: Any, mesh: Mesh | None) -> Any:
  """Returns variables replicated on `mesh`.

  If it is None, they are on the first device of this process.
  """
  placement = jax.local_devices()[0] if mesh is None else replicated(mesh)
  return jax.device_put(variables, placement)
