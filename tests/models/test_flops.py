import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from clip_jax.models import flops, variants

LEFT, RIGHT = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def transformer_flops(*, length, width, depth):
  projections = 4 * width * width
  mlp = 2 * width * 4 * width
  attention = 2 * length * width
  return 2 * depth * length * (projections + mlp + attention)


@pytest.mark.parametrize(
  ("name", "patches", "grid_values"),
  [("ViT-B-32", 49, 32 * 32 * 3), ("ViT-L-14", 256, 14 * 14 * 3)],
)
def test_towers_match_the_formula(name, patches, grid_values):
  model = variants.create_model(name)
  image, text = model.image, model.text
  want = transformer_flops(
    length=patches + 1, width=image.width, depth=image.depth
  )
  want += 2 * patches * grid_values * image.width
  want += 2 * image.width * model.embed_dim
  assert flops.image_flops(model) == want
  want = transformer_flops(length=77, width=text.width, depth=text.depth)
  assert flops.text_flops(model) == want + 2 * text.width * model.embed_dim


def test_a_scan_counts_as_often_as_it_runs_and_unrolling_changes_nothing():
  model = variants.create_model("tiny-vit")
  unrolled = variants.create_model(
    "tiny-vit", overrides={"image": {"scan": False}}
  )
  assert flops.image_flops(model) == flops.image_flops(unrolled) > 0


def convolution_flops(images, kernel, stride):
  """Counts two operations for each tap of each output, padding included."""
  outputs = images.shape[0] * (images.shape[1] // stride) ** 2
  return 2 * outputs * kernel.size


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients_count_alike(stride):
  images, kernel = jnp.ones((2, 8, 8, 5)), jnp.ones((3, 3, 5, 7))

  def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  want = convolution_flops(images, kernel, stride)
  assert flops.count(convolve, images, kernel) == want
  grads = jax.grad(lambda *args: (convolve(*args) ** 2).sum(), argnums=(0, 1))
  assert flops.count(grads, images, kernel) == 3 * want


@pytest.mark.parametrize(
  ("function", "products"),
  [
    (jnp.matmul, 1),
    (jax.jit(jnp.matmul), 1),
    (lambda a, b: jax.checkpoint(jnp.matmul)(a, b), 1),
    (jax.vmap(jnp.matmul, in_axes=(None, None), axis_size=4), 1),
    (
      lambda a, b: jax.lax.cond(
        a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7))
      ),
      1,
    ),
    (
      lambda a, b: jax.lax.scan(
        lambda carry, _: (carry + a @ b, None), jnp.zeros((3, 7)), length=6
      ),
      6,
    ),
    (jax.grad(lambda a, b: (a @ b).sum() ** 2, argnums=(0, 1)), 3),
    (lambda a, b: jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0), 0),
  ],
)
def test_programs_within_programs_are_followed(function, products):
  assert flops.count(function, LEFT, RIGHT) == products * PRODUCT


def test_a_custom_gradient_is_followed():
  @jax.custom_vjp
  def product(a, b):
    return a @ b

  product.defvjp(
    lambda a, b: (a @ b, (a, b)),
    lambda saved, g: (g @ saved[1].T, saved[0].T @ g),
  )
  assert flops.count(product, LEFT, RIGHT) == PRODUCT
  grads = jax.grad(lambda a, b: product(a, b).sum(), argnums=(0, 1))
  assert flops.count(grads, LEFT, RIGHT) == 3 * PRODUCT


def test_work_inside_a_shard_map_counts_on_every_device():
  mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
  local = functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P("data"), P()),
    out_specs=P("data"),
  )(jnp.matmul)
  assert flops.count(local, LEFT, RIGHT) == PRODUCT


def test_a_loop_of_unknown_length_with_products_is_refused():
  def loop(a):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, a)

  with pytest.raises(ValueError, match="while loop"):
    flops.count(loop, np.ones((3, 3), np.float32))
