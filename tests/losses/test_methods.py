"""Every method on every mesh equals the reference loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import losses, sharding

KINDS = ("softmax", "sigmoid")
METHODS = ("dense", "gathered", "ring", "two_level")
MESHES = [
  (data, fsdp)
  for data in (1, 2, 4, 8)
  for fsdp in (1, 2, 4, 8)
  if data * fsdp <= 8
]
EIGHT = [mesh for mesh in MESHES if mesh[0] * mesh[1] == 8]
# One device; each axis alone; both. The others are as slow tests.
FEW = {
  "dense": [None, (2, 2)],
  "gathered": [(1, 1), (4, 2)],
  "ring": [(1, 1), (2, 1), (4, 2), (1, 8)],
  "two_level": [(1, 1), (1, 2), (2, 4), (8, 1)],
}
QUICK = [(method, mesh) for method in METHODS for mesh in FEW[method]]
REST = [
  (method, mesh)
  for method in METHODS
  for mesh in MESHES
  if mesh not in FEW[method]
]

# Scales: the start of training, and its end. Pairs: unrelated, half learned,
# and so far that the softmax loss is about 1e-9 at the larger scale.
SCALES = {"softmax": (14.3, 100.0), "sigmoid": (14.3, 100.0, 117.3)}
CLOSENESS = (0.0, 0.5, 0.98)
BIAS = -10.0


def check(tools, kind, method, mesh, *, dtype, tolerance, **options):
  """Compares the loss and all gradients at all scales, with one program."""
  for scale in SCALES[kind]:
    for closeness in CLOSENESS:
      arrays = *tools.make_pairs(closeness, dtype=dtype), scale, BIAS
      arrays = [np.asarray(x, dtype) for x in arrays]
      loss, gradients = tools.evaluate(kind, method, mesh, arrays, **options)
      assert loss.dtype == dtype
      want, wanted = tools.dense(kind, arrays, **options)
      case = f"scale {scale}, closeness {closeness}"
      assert np.isfinite(loss), case
      assert tools.relative(loss, want) < tolerance, case
      for name, got, want in zip(
        ("images", "texts", "scale", "bias"), gradients, wanted, strict=True
      ):
        assert got.dtype == dtype
        assert tools.relative(got, want) < tolerance, f"{name}, {case}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "mesh"), QUICK)
def test_every_method_matches_the_dense_loss_in_float64(
  tools, kind, method, mesh
):
  with jax.enable_x64(True):
    check(tools, kind, method, mesh, dtype=np.float64, tolerance=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("method", "mesh"),
  [("gathered", (2, 2)), ("ring", (4, 1)), ("two_level", (4, 2))],
)
def test_every_method_matches_the_dense_loss_in_float32(
  tools, kind, method, mesh
):
  check(tools, kind, method, mesh, dtype=np.float32, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "mesh"), REST)
def test_every_method_matches_the_dense_loss_on_every_mesh(
  tools, kind, method, mesh
):
  with jax.enable_x64(True):
    check(tools, kind, method, mesh, dtype=np.float64, tolerance=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", EIGHT)
@pytest.mark.parametrize("method", ["ring", "two_level"])
def test_every_method_matches_in_float32_on_eight_devices(
  tools, kind, method, mesh
):
  check(tools, kind, method, mesh, dtype=np.float32, tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize(
  ("which", "method", "mesh"),
  [
    ("both", "two_level", (4, 2)),
    ("both", "gathered", (1, 2)),
    ("images", "ring", (2, 1)),
    ("texts", "dense", None),
  ],
)
def test_duplicates_are_masked_or_positive(
  tools, kind, duplicates, which, method, mesh
):
  images, texts = tools.make_ids()
  ids = (
    images if which != "texts" else None,
    texts if which != "images" else None,
  )
  options = {"duplicates": duplicates, "ids": ids}
  with jax.enable_x64(True):
    check(
      tools, kind, method, mesh, dtype=np.float64, tolerance=1e-12, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
@pytest.mark.parametrize("method", ["ring", "two_level"])
def test_duplicates_are_masked_or_positive_in_float32(
  tools, kind, duplicates, method, mesh
):
  options = {"duplicates": duplicates, "ids": tools.make_ids()}
  check(tools, kind, method, mesh, dtype=np.float32, tolerance=1e-5, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize(
  ("method", "mesh"), [("gathered", (2, 2)), ("two_level", (2, 4))]
)
def test_pairs_that_come_twice_keep_their_digits_near_convergence(
  tools, kind, duplicates, method, mesh
):
  half = tools.pairs // 2
  ids = np.tile(np.arange(half, dtype=np.int32), 2)
  options = {"duplicates": duplicates, "ids": (ids, ids)}
  with jax.enable_x64(True):
    for scale in SCALES[kind]:
      images, texts = (
        np.concatenate([x[:half]] * 2) for x in tools.make_pairs(0.9)
      )
      arrays = images, texts, np.float64(scale), np.float64(BIAS)
      loss, gradients = tools.evaluate(kind, method, mesh, arrays, **options)
      if (kind, duplicates) == ("softmax", "positive"):
        # Twice as many terms in each sum: the loss of either half, and log 2.
        # (On the whole, autodiff would take 1 / 2 from nearly 1 / 2.)
        once = images[:half], texts[:half], scale, BIAS
        want, wanted = tools.dense(kind, once)
        want = want + np.log(2)
        twice = [np.concatenate([x, x]) / 2 for x in wanted[:2]]
        wanted = *twice, *wanted[2:]
      else:
        want, wanted = tools.dense(kind, arrays, **options)
      for a, b in zip((loss, *gradients), (want, *wanted), strict=True):
        # A positive's probability less its target has lost all but 1e-9.
        assert tools.relative(a, b) < 3e-11


def changes(tools):
  """What is wrong, and arrays, targets and ids with it."""
  images, texts = tools.make_pairs(0.5)
  ids = tools.make_ids()
  return {
    "another text is the own one": ((images, texts[::-1], 14.3, BIAS), ids),
    "the sign of the scale": ((images, texts, -14.3, BIAS), ids),
    "no image ids": ((images, texts, 14.3, BIAS), (None, ids[1])),
    "no text ids": ((images, texts, 14.3, BIAS), (ids[0], None)),
    "one id": ((images, texts, 14.3, BIAS), (ids[0], ids[1] // 2)),
  }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
def test_the_tolerance_sees_a_wrong_loss(tools, kind, duplicates):
  right = *tools.make_pairs(0.5), 14.3, BIAS
  want, wanted = tools.dense(
    kind, right, duplicates=duplicates, ids=tools.make_ids()
  )
  for name, (arrays, ids) in changes(tools).items():
    wrong, gradients = tools.dense(kind, arrays, duplicates=duplicates, ids=ids)
    assert tools.relative(wrong, want) > 1e-3, name
    for got, gradient in zip(gradients[:3], wanted[:3], strict=True):
      assert tools.relative(got, gradient) > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_loss_is_the_papers(tools, kind):
  """The textbook's formulas, where they do not cancel."""
  images, texts = tools.make_pairs(0.0)
  logits = 14.3 * images @ texts.T
  if kind == "softmax":
    lines = [*logits, *logits.T]
    want = np.mean(
      [
        np.log(np.exp(line).sum()) - line[i % tools.pairs]
        for i, line in enumerate(lines)
      ]
    )
  else:
    z = (2 * np.eye(tools.pairs) - 1) * (logits + BIAS)
    want = -np.log(1 / (1 + np.exp(-z))).sum() / tools.pairs
  loss, gradients = tools.dense(kind, (images, texts, 14.3, BIAS))
  assert tools.relative(loss, want) < 1e-13

  # And its gradients are its slopes.
  direction = np.random.default_rng(1).normal(size=images.shape)
  for position, step in ((0, direction), (1, direction), (2, 1.0), (3, 1.0)):
    ends = []
    for sign in (1, -1):
      arrays = [images, texts, 14.3, BIAS]
      arrays[position] = arrays[position] + sign * 1e-6 * step
      ends.append(tools.dense(kind, arrays)[0])
    slope = (ends[0] - ends[1]) / 2e-6
    want = (gradients[position] * step).sum()
    assert abs(slope - want) < 1e-7 * max(1, abs(want))


def plain_softmax(images, texts, scale):
  """As everyone writes it: log-sum-exp less the own logit."""
  logits = scale * images @ texts.T
  rows, columns = jax.nn.logsumexp(logits, 1), jax.nn.logsumexp(logits, 0)
  return jnp.mean((rows + columns) / 2 - jnp.diagonal(logits))


@pytest.mark.parametrize("method", ["dense", "two_level"])
def test_the_temperatures_gradient_keeps_its_digits_near_convergence(
  tools, method
):
  arrays = *tools.make_pairs(0.98, dtype=np.float32), np.float32(100), BIAS
  arrays = [np.asarray(x, np.float32) for x in arrays]
  loss, wanted = tools.dense("softmax", arrays)
  assert loss < 1e-8
  got = tools.evaluate("softmax", method, (4, 2), arrays)[1][2]
  assert tools.relative(got, wanted[2]) < 1e-5
  # The plain formula has none left here: a difference of numbers near 1.
  plain = jax.jit(jax.grad(plain_softmax, argnums=2))(*arrays[:3])
  assert tools.relative(plain, wanted[2]) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["gathered", "ring", "two_level"])
def test_bfloat16_embeddings_are_summed_in_float32(tools, kind, method):
  images, texts = tools.make_pairs(0.5)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in (images, texts)]
  arrays += [jnp.float32(14.3), jnp.float32(BIAS)]
  loss, gradients = tools.evaluate(kind, method, (4, 2), arrays)
  wide = [np.asarray(x, np.float64) for x in arrays]
  want, wanted = tools.dense(kind, wide)
  assert loss.dtype == gradients[2].dtype == jnp.float32
  # Products of bfloat16 numbers are exact in float32.
  assert tools.relative(loss, want) < 1e-6
  assert tools.relative(gradients[2], wanted[2]) < 1e-5
  for got, want in zip(gradients[:2], wanted[:2], strict=True):
    assert got.dtype == jnp.bfloat16
    # Weights and results are rounded to 8 bits.
    assert tools.relative(got, want) < 2**-8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_far_logits_stay_finite_with_finite_gradients(tools, kind, scale):
  """Own texts are the farthest here; their logits are at -scale."""
  images, _ = tools.make_pairs(0.0, dtype=np.float32)
  for sign in (1, -1):
    arrays = [images, sign * images, np.float32(scale), np.float32(-50)]
    loss, gradients = tools.evaluate(kind, "two_level", (4, 2), arrays)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_all_copies_of_one_image_leave_no_negatives(tools):
  same = np.zeros(tools.pairs, np.int32)
  arrays = (
    *tools.make_pairs(0.0, dtype=np.float32),
    np.float32(14.3),
    np.float32(0),
  )
  loss, gradients = tools.evaluate(
    "softmax", "two_level", (4, 2), arrays, duplicates="mask", ids=(same, None)
  )
  assert loss == 0
  assert not any(gradient.any() for gradient in gradients[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_that_vary_over_the_mesh_get_each_devices_share(tools, kind):
  """As in a step that sums all gradients itself, once."""
  mesh, axes = sharding.make_mesh(data=4, fsdp=2), sharding.BATCH_AXES

  def on_device(images, texts, scalars):
    scalars = jax.lax.pcast(scalars, axes, to="varying")

    def loss(scalars):
      return losses.local_loss(kind)(
        images, texts, *scalars, axes=axes, method="two_level"
      )

    shares = jax.grad(loss)(scalars)
    return jax.tree.map(lambda x: jax.lax.psum(x, axes), shares)

  run = jax.shard_map(
    on_device, mesh=mesh, in_specs=(P(axes), P(axes), P()), out_specs=P()
  )
  arrays = *tools.make_pairs(0.5, dtype=np.float32), 14.3, BIAS
  got = jax.jit(run)(*arrays[:2], arrays[2:])
  _, wanted = tools.dense(kind, arrays)
  for one, want in zip(got, wanted[2:], strict=True):
    assert abs(np.asarray(one) - want) < 1e-5 * max(abs(want), 1e-3)


def test_the_cotangent_scales_every_gradient(tools):
  arrays = [*tools.make_pairs(0.5, dtype=np.float32), np.float32(14.3)]

  def loss(factor, *arrays):
    return factor * losses.softmax_loss(*arrays, method="ring")

  one, three = (
    jax.jit(jax.grad(loss, argnums=(1, 2, 3)))(factor, *arrays)
    for factor in (1.0, 3.0)
  )
  for small, large in zip(one, three, strict=True):
    np.testing.assert_allclose(3 * small, large, rtol=1e-6)
