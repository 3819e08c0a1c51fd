"""The device mesh, its axis names and the one table of parameter rules.

The batch is split over both axes; parameters and optimizer state are split
over `fsdp` and repeated over `data`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import errors

DATA = "data"
FSDP = "fsdp"
BATCH_AXES = (DATA, FSDP)

# Arrays below this size are repeated: gathering them costs more than it saves.
MIN_SHARDED_ELEMENTS = 2**14

# First match on the path wins; the number is how many leading dimensions are
# never split. A scanned stack's leading axis is the layer that a loop indexes.
RULES: tuple[tuple[str, int | None], ...] = (
  (r"(^|/)(\w*bias|scale|log_scale|mean|var)$", None),
  (r"(^|/)blocks/", 1),
  (r"", 0),
)


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh over all devices with the axes `data` and `fsdp`.

  Args:
    data: size of the axis that splits only the batch; -1 takes the rest.
    fsdp: size of the axis that also splits parameters; -1 takes the rest.
    devices: those to use; None for all, of every process.

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
    sizes, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless `batch_size` splits evenly over the mesh."""
  if batch_size % mesh.size:
    nearest = max(batch_size // mesh.size, 1) * mesh.size
    raise errors.UserError(
      f"batch_size={batch_size} must divide by the {mesh.size} devices on the "
      f"mesh (data={mesh.shape[DATA]}, fsdp={mesh.shape[FSDP]}); try {nearest}."
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first dimension is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, P())


def parameter_spec(
  path: str,
  shape: tuple[int, ...],
  *,
  fsdp: int,
  min_elements: int = MIN_SHARDED_ELEMENTS,
) -> P:
  """Returns how one array is split: its largest dimension that `fsdp` divides.

  Args:
    path: "/"-joined names from the root of the tree.
    shape: of the whole array.
    fsdp: size of the mesh axis.
    min_elements: smaller arrays are repeated.
  """
  skip = next(rule for pattern, rule in RULES if re.search(pattern, path))
  if skip is None or fsdp == 1 or math.prod(shape) < min_elements:
    return P()
  splittable = [
    (size, -axis)
    for axis, size in enumerate(shape)
    if axis >= skip and size % fsdp == 0
  ]
  if not splittable:
    return P()
  axis = -max(splittable)[1]
  return P(*(FSDP if i == axis else None for i in range(len(shape))))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
  """Returns the sharding of each array (or shape) in `tree`.

  Optimizer moments lie under the names of their parameters and have their
  shapes, so the same rules place them beside their parameters.
  """

  def place(path, leaf):
    spec = parameter_spec(path_name(path), leaf.shape, fsdp=mesh.shape[FSDP])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a key path of `jax.tree_util` as "/"-joined names."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
