"""Every method over two processes equals the dense loss."""

import json

import numpy as np
import pytest

METHODS = ("gathered", "ring", "two_level")
# Both processes have four of the eight devices; on (4, 2) and (2, 4) they share
# one axis, on the others there is but one.
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))
KINDS = ("softmax", "sigmoid")
SCALES = (14.3, 100.0)
CLOSENESS = (0.0, 0.98)  # Unrelated pairs, and almost learned ones.
BIAS = -10.0

_PROCESS = """
import json, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from clip_jax import losses, sharding

address, process, cases, folder = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
jax.config.update("jax_enable_x64", True)
given = np.load(f"{folder}/given.npz")
axes = sharding.BATCH_AXES
arrays = P(axes), P(axes), P(), P()
found = {}
for name, kind, method, data, fsdp, duplicates in json.loads(cases):
  mesh = sharding.make_mesh(data=data, fsdp=fsdp)

  def run(arrays, ids):
    return losses.local_loss(kind)(
      *arrays, image_ids=ids[0], text_ids=ids[1], axes=axes, method=method,
      duplicates=duplicates, tile=losses.Tile(rows=5, columns=7),
    )

  split = jax.NamedSharding(mesh, P(axes))
  whole = jax.NamedSharding(mesh, P())
  def place(x, where):
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

  run = jax.jit(jax.value_and_grad(jax.shard_map(
    run, mesh=mesh, in_specs=(arrays, (P(axes), P(axes))), out_specs=P()
  )))
  ids = tuple(place(given[x], split) for x in ("image_ids", "text_ids"))
  for case in range(len(given["scale"])):
    values = (
      place(given["images"][case], split), place(given["texts"][case], split),
      place(given["scale"][case], whole), place(given["bias"][case], whole),
    )
    loss, gradients = run(values, ids)
    gradients = [multihost_utils.process_allgather(x, tiled=True)
                 for x in gradients]
    for part, x in zip(("loss", "images", "texts", "scale", "bias"),
                       (loss, *gradients)):
      found[f"{name} {case} {part}"] = np.asarray(x)
np.savez(f"{folder}/found{process}.npz", **found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_matches_the_dense_loss_over_two_processes(
  tools, on_two_processes, tmp_path, kind
):
  states = [(scale, close) for scale in SCALES for close in CLOSENESS]
  pairs = [tools.make_pairs(close) for _, close in states]
  ids = tools.make_ids()
  np.savez(
    tmp_path / "given.npz",
    images=[images for images, _ in pairs],
    texts=[texts for _, texts in pairs],
    scale=[scale for scale, _ in states],
    bias=[BIAS for _ in states],
    image_ids=ids[0],
    text_ids=ids[1],
  )
  cases = [
    (f"{method} {data} {fsdp} ignore", kind, method, data, fsdp, "ignore")
    for method in METHODS
    for data, fsdp in MESHES
  ]
  cases.append(("masked", kind, "two_level", 4, 2, "mask"))
  on_two_processes(_PROCESS, json.dumps(cases), str(tmp_path), devices=4)
  first, second = (np.load(tmp_path / f"found{i}.npz") for i in range(2))
  for name, *_, duplicates in cases:
    for i, (scale, _) in enumerate(states):
      arrays = *pairs[i], scale, BIAS
      loss, gradients = tools.dense(
        kind, arrays, duplicates=duplicates, ids=ids
      )
      wanted = dict(
        zip(
          ("loss", "images", "texts", "scale", "bias"),
          (loss, *gradients),
          strict=True,
        )
      )
      for part, want in wanted.items():
        case = f"{name} {i} {part}"
        assert tools.relative(first[case], want) < 1e-12, case
        np.testing.assert_array_equal(first[case], second[case], case)
