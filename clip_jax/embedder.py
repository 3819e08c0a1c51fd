"""Compiled functions of a model in use, for a few batch shapes.

Compiling costs seconds, so any number of images or texts is computed in
batches of at most three shapes for each tower. Which rows share a batch
depends only on their number and their lengths.
"""

import collections
import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from clip_jax import errors, programs, sharding
from clip_jax.models import padding, paths, sharded

BATCH_SIZES = (1, 16, 256)  # Images in a batch.
_PROGRAMS_KEPT = 64  # In memory, over all modules.
_IN_FLIGHT = 2  # Batches that the devices compute or have waiting.

_PROGRAMS: collections.OrderedDict = collections.OrderedDict()
_COMPILING = threading.Lock()
_is_forked = False  # After JAX began to compute.


def _note_fork() -> None:
  global _is_forked
  _is_forked = _is_forked or bool(_PROGRAMS)


os.register_at_fork(after_in_child=_note_fork)


def check_process() -> None:
  """Raises UserError in a forked process, where JAX would wait for ever."""
  if _is_forked:
    raise errors.UserError(
      "JAX cannot compute in a process that was forked after it began to. "
      "Start it by multiprocessing.get_context('spawn'), and load the model "
      "there."
    )


class Shape(NamedTuple):
  """The shape of a batch: its rows, and the tokens in each (1 for images)."""

  rows: int
  length: int = 1


@dataclasses.dataclass(frozen=True)
class Share:
  """The images of a whole batch, of which this process has some rows.

  Attributes:
    pixels: this process's rows of the batch (`sharding.local_rows`), uint8
      (rows, size, size, 3); rows without an image are black. The batch has one
      of the sizes in `Embedder.image_shapes`.
    rows: the numbers of the rows of the whole batch that have an image, in
      ascending order.
  """

  pixels: np.ndarray
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)


def text_shapes(tower: nn.Module, longest: int) -> tuple[Shape, ...]:
  """Returns batch shapes for few texts, dozens of short texts and long texts.

  Args:
    tower: a text tower; if it sees padding, all shapes have full rows.
    longest: number of tokens in a full row.
  """
  if not padding.can_be_cut(tower):
    return tuple(Shape(rows, longest) for rows in BATCH_SIZES)
  shapes = [Shape(4, min(32, longest)), Shape(64, min(16, longest))]
  if longest > 32:
    shapes.append(Shape(max(1, 512 // longest), longest))
  return tuple(shapes)


def batches(
  needed: np.ndarray, shapes: Sequence[Shape]
) -> Iterator[tuple[np.ndarray, Shape]]:
  """Yields, for each batch, the indices of its rows and its shape.

  A shape with more rows is taken where the empty rows are at most half as many
  as the rows to compute: a smaller shape would have to be compiled as well.

  Args:
    needed: number of tokens that each row needs (n,).
    shapes: the shapes to choose from; one is long enough for every row.
  """
  shorter = 0
  for length in sorted({shape.length for shape in shapes}):
    rows = np.flatnonzero((shorter < needed) & (needed <= length))
    shorter, count = length, len(rows)
    fitting = [shape for shape in shapes if shape.length >= length]
    small = min(fitting, key=lambda shape: shape.rows * shape.length)
    larger = [
      shape
      for shape in sorted(fitting, reverse=True)
      if shape.rows > small.rows and shape.length <= small.length
    ]
    while left := len(rows):
      fit = (shape for shape in larger if shape.rows - left <= count / 2)
      shape = next(fit, small)
      yield rows[: shape.rows], shape
      rows = rows[shape.rows :]


@functools.partial(jax.jit, static_argnames=("module", "method", "mesh"))
def _embed(variables, inputs, *, module, method, mesh):
  def embed(module, variables, inputs):
    embeds = module.apply(variables, inputs, method=method)
    return embeds.astype(jnp.float32)

  if mesh is None:
    return embed(module, variables, inputs)
  specs = sharded.tree_specs(variables, mesh)
  placed = sharded.place(module, specs["params"])

  def on_device(variables, inputs):
    params = sharded.gather_beside_layers(
      variables["params"], specs["params"], dtype=module.dtype
    )
    return embed(placed, {**variables, "params": params}, inputs)

  split = P(sharding.BATCH_AXES)
  embeds = jax.shard_map(
    on_device, mesh=mesh, in_specs=(specs, split), out_specs=split
  )(variables, inputs)
  return jax.lax.with_sharding_constraint(embeds, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _log_probabilities(variables, features, units, *, module, mesh):
  def predict(module, params, features, units):
    return module.head.apply(
      {"params": params[paths.HEAD]},
      features,
      units,
      method="log_probabilities",
    ).astype(jnp.float32)

  params = {paths.HEAD: variables["params"][paths.HEAD]}
  if mesh is None:
    return predict(module, params, features, units)
  specs = sharded.tree_specs(params, mesh)
  placed = sharded.place(module, specs)

  def on_device(params, features, units):
    whole = sharded.gather_beside_layers(params, specs, dtype=module.dtype)
    return predict(placed, whole, features, units)

  split = P(sharding.BATCH_AXES)
  found = jax.shard_map(
    on_device, mesh=mesh, in_specs=(specs, split, P()), out_specs=split
  )(params, features, units)
  return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


class Embedder:
  """The compiled embedding functions of one module.

  On a mesh each batch is split over all devices, and parameters that are split
  are gathered layer by layer. Every process gets the whole result, so all
  processes must call with the same inputs.
  """

  def __init__(
    self,
    module: nn.Module,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
  ):
    """Stores the arguments; compilation happens at the first call.

    Args:
      module: the two-tower module.
      mesh: the devices that share each batch; None computes where the
        variables are.
      batch_sizes: batch sizes for images, rounded up to multiples of the
        number of devices.
    """
    self.module = module
    self.mesh = mesh
    self.image_shapes = self._shared(Shape(size) for size in batch_sizes)

  def embed_images(
    self,
    variables: Any,
    images: np.ndarray | Share,
    *,
    method: str = "encode_image",
  ) -> np.ndarray:
    """Returns embeddings, float32 (n, embed), of images.

    Args:
      variables: the module's parameters and batch statistics.
      images: preprocessed images, uint8 (n, size, size, 3); or this process's
        share of them, which gives every process the embeddings of all.
      method: the module's method to apply; "image_features" gives (n, width),
        "encode_patches" (n, rows, cols, embed).
    """
    if isinstance(images, Share):
      return self._embed_share(variables, images, method)
    images = np.asarray(images)
    return self._run(
      variables,
      images,
      batches(np.ones(len(images)), self.image_shapes),
      method=method,
    )

  def _embed_share(self, variables, images: Share, method: str) -> np.ndarray:
    assert self.mesh is not None
    split = sharding.batch_sharding(self.mesh)
    batch = sharding.place({"image": images.pixels}, split)["image"]
    program = self._program(_signature(variables), variables, batch, method)
    return np.asarray(program(variables, batch))[images.rows]

  def embed_tokens(self, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """Returns embeddings, float32 (n, embed), of int32 `tokens` (n, length).

    Columns that hold only padding are skipped where the tower allows it.
    """
    tokens, tower = np.asarray(tokens), self.module.text
    needed = np.maximum(padding.needed_lengths(tower, tokens), 1)
    shapes = self._shared(text_shapes(tower, tokens.shape[1]))
    return self._run(
      variables,
      tokens,
      batches(needed, shapes),
      method="encode_text",
    )

  def log_probabilities(
    self, variables: Any, images: np.ndarray | Share, units: np.ndarray
  ) -> np.ndarray:
    """Returns a head's log-probabilities of `units`, float32 (n, units).

    The image tower sees each image once.

    Args:
      variables: of the module.
      images: as in `embed_images`.
      units: of the head's `units`.
    """
    features = self.embed_images(variables, images, method="image_features")
    found = np.empty((len(images), len(units)), np.float32)
    at_once = self.module.head.UNITS_AT_ONCE or len(units)
    predict = functools.partial(
      _log_probabilities, module=self.module, mesh=self.mesh
    )
    for rows, shape in batches(np.ones(len(images)), self.image_shapes):
      batch = self._place(features[rows], shape.rows)
      for start in range(0, len(units), at_once):
        some = units[start : start + at_once]
        # The last few are filled up, for one program to do for all.
        filling = np.repeat(some[:1], at_once - len(some), axis=0)
        answer = predict(variables, batch, np.concatenate([some, filling]))
        columns = slice(start, start + len(some))
        found[rows, columns] = np.asarray(answer)[: len(rows), : len(some)]
    return found

  def _shared(self, shapes) -> list[Shape]:
    """Returns `shapes` with rows rounded up to a multiple of the devices."""
    devices = 1 if self.mesh is None else self.mesh.size
    rounded = (
      shape._replace(rows=-(-shape.rows // devices) * devices)
      for shape in shapes
    )
    return sorted(set(rounded))

  def _run(self, variables, inputs, plan, *, method):
    found: list[tuple[np.ndarray, np.ndarray]] = []
    signature = _signature(variables)
    pending: collections.deque = collections.deque()

    def collect():
      rows, answer = pending.popleft()
      found.append((rows, np.asarray(answer)[: len(rows)]))

    for rows, shape in plan:
      part = inputs[rows]
      if method == "encode_text":
        part = part[:, : shape.length]
      batch = self._place(part, shape.rows)
      program = self._program(signature, variables, batch, method)
      pending.append((rows, program(variables, batch)))
      if len(pending) == _IN_FLIGHT:
        collect()
    while pending:
      collect()
    if not found:
      apply = functools.partial(self.module.apply, method=method)
      one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
      shape = jax.eval_shape(apply, variables, one).shape
      return np.zeros((0, *shape[1:]), np.float32)
    embeds = np.empty((len(inputs), *found[0][1].shape[1:]), np.float32)
    for rows, part in found:
      embeds[rows] = part
    return embeds

  def _program(self, signature, variables, batch, method):
    """Returns the compiled function of (variables, batch), from a cache."""
    about = (self.module, method, self.mesh, batch.shape, str(batch.dtype))
    key = (*about, signature, programs.options())
    if (program := _PROGRAMS.get(key)) is not None:
      return program
    with _COMPILING:
      if key not in _PROGRAMS:
        lowered = _embed.lower(
          variables, batch, module=self.module, method=method, mesh=self.mesh
        )
        _PROGRAMS[key] = programs.compile(
          lowered,
          devices=self._devices(variables),
          what=_in_words(method, batch.shape),
        )
        while len(_PROGRAMS) > _PROGRAMS_KEPT:
          _PROGRAMS.popitem(last=False)
      return _PROGRAMS[key]

  def _devices(self, variables) -> list[sharding.Device]:
    """Returns the devices in the program's order; [] if that is unknown."""
    if self.mesh is not None:
      return self.mesh.devices.flatten().tolist()
    arrays = [x for x in jax.tree.leaves(variables) if isinstance(x, jax.Array)]
    placed = {d for array in arrays if array.committed for d in array.devices()}
    placed = placed or {jax.devices()[0]}
    return list(placed) if len(placed) == 1 else []

  def _place(self, part, size):
    """Pads `part` to `size` rows with copies of its first row."""
    # A copy of a real row, so that the padding's embeddings are finite.
    filling = np.repeat(part[:1], size - len(part), axis=0)
    batch = np.concatenate([part, filling])
    if self.mesh is None:
      return batch
    return jax.make_array_from_callback(
      batch.shape, sharding.batch_sharding(self.mesh), lambda at: batch[at]
    )


def _signature(variables) -> tuple:
  """Returns the shapes, types and shardings that a program depends on."""
  leaves, structure = jax.tree.flatten(variables)
  return structure, tuple(
    (x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in leaves
  )


def _in_words(method: str, shape: tuple[int, ...]) -> str:
  rows = shape[0]
  if method != "encode_text":
    what = "one image" if rows == 1 else f"{rows} images at once"
    return f"the image tower for {what}"
  what = "one text" if rows == 1 else f"{rows} texts at once"
  return f"the text tower for {what}, of {shape[1]} tokens"
