import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_model
from clip_jax import embedder, sharding
from clip_jax.models import sharded, variants

SPEC = small_model.SPEC
random_images = small_model.random_images


@pytest.fixture(scope="module")
def model():
  return small_model.make()


@pytest.fixture(scope="module")
def plain_embeds(model):
  """The module's own embeddings of 21 images."""
  module, variables = model
  embed = jax.jit(lambda x: module.apply(variables, x, method="encode_image"))
  return np.asarray(embed(random_images(21)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [0, 1, 8, 9, 21])
def test_any_number_of_images_is_embedded_as_the_module_does(
  model, plain_embeds, count, devices
):
  mesh = sharding.make_mesh() if devices == 8 else None
  module, variables = model
  if mesh is not None:
    variables = jax.device_put(variables, sharding.replicated(mesh))
  encoder = embedder.Embedder(module, mesh=mesh, batch_sizes=(1, 8))
  images = random_images(21)[:count]
  embeds = encoder.embed_images(variables, images)
  assert embeds.shape == (count, 12)
  assert embeds.dtype == np.float32
  # Another batch size sums in another order: a few float32 roundings.
  np.testing.assert_allclose(embeds, plain_embeds[:count], atol=2e-6)


@pytest.mark.slow
def test_split_layers_embed_the_same_and_are_never_all_whole():
  sizes = {"width": 128, "depth": 12}
  module = variants.create_model(
    variants.spec(
      "tiny-vit",
      {"image": {**sizes, "image_size": 16, "patch_size": 8}, "text": sizes},
    )
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.1).astype(x.dtype),
    variants.abstract_variables(module),
  )
  tokens = np.zeros((8, module.text.context_length), np.int32)
  tokens[:, 0], tokens[:, 3] = np.arange(8), module.text.vocab_size - 1
  images = random_images(8)
  whole = jax.jit(lambda *given: module.apply(variables, *given))(
    images, tokens
  )
  memory = {}
  for fsdp in (1, 8):
    mesh = sharding.make_mesh(fsdp=fsdp)
    placed = jax.device_put(variables, sharded.tree_shardings(variables, mesh))
    encoder = embedder.Embedder(module, mesh=mesh, batch_sizes=(8,))
    for got, want in (
      (encoder.embed_images(placed, images), whole.image_embeds),
      (encoder.embed_tokens(placed, tokens), whole.text_embeds),
    ):
      np.testing.assert_allclose(got, want, atol=1e-5)
    program = embedder._embed.lower(
      placed,
      images,
      module=module,
      method="encode_image",
      mesh=mesh,
    ).compile()
    memory[fsdp] = program.memory_analysis()
  layers = variables["params"]["image"]["encoder"]["blocks"]
  size = sum(x.nbytes for x in jax.tree.leaves(layers))
  assert memory[1].argument_size_in_bytes > size
  # Two layers at a time, at most, of twelve.
  extra = memory[8].temp_size_in_bytes - memory[1].temp_size_in_bytes
  assert extra < size / 4
  assert memory[8].argument_size_in_bytes < memory[1].argument_size_in_bytes / 4


@pytest.mark.parametrize("scan", [False, True])
def test_a_resnet_in_parts_gathers_its_blocks(scan):
  module = variants.create_model(
    variants.spec(
      "tiny-rn", {"image": {"width": 32, "depths": (1, 5), "scan": scan}}
    )
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: np.abs(rng.normal(size=x.shape, scale=0.1)).astype(x.dtype),
    variants.abstract_variables(module),
  )
  images = np.random.default_rng(1).integers(
    0, 256, size=(8, 32, 32, 3), dtype=np.uint8
  )
  want = jax.jit(module.apply, static_argnames="method")(
    variables, images, method="encode_image"
  )
  mesh = sharding.make_mesh(fsdp=8)
  placed = jax.device_put(variables, sharded.tree_shardings(variables, mesh))
  kernel = placed["params"]["image"]["stage_2_block_3"]["conv_2"]["conv"]
  assert not kernel["kernel"].sharding.is_fully_replicated
  encoder = embedder.Embedder(module, mesh=mesh, batch_sizes=(8,))
  np.testing.assert_allclose(
    encoder.embed_images(placed, images), want, atol=1e-5
  )


def test_batches_divide_over_the_mesh(model):
  encoder = embedder.Embedder(
    model[0], mesh=sharding.make_mesh(), batch_sizes=(1, 2, 20)
  )
  assert [shape.rows for shape in encoder.image_shapes] == [8, 24]


def _compiled():
  return len(embedder._PROGRAMS)


def test_images_and_texts_of_all_numbers_take_three_programs_a_tower(model):
  module, variables = model
  embedder._PROGRAMS.clear()
  encoder = embedder.Embedder(module)
  for count in (1, 2, 3, 7):
    encoder.embed_images(variables, random_images(count))
  assert _compiled() == 1
  for count in (0, 8, 23, 100, 250, 300):
    encoder.embed_images(variables, random_images(count))
  assert _compiled() == 3
  again = embedder.Embedder(variants.create_model(SPEC))
  again.embed_images(variables, random_images(3))
  assert _compiled() == 3


@pytest.mark.parametrize("longest", [9, 16, 32, 33, 77, 248, 2000])
@pytest.mark.parametrize("sees_padding", [False, True])
def test_texts_of_all_numbers_and_lengths_take_three_shapes(
  longest, sees_padding
):
  tower = types.SimpleNamespace(sees_padding=sees_padding)
  shapes = embedder.text_shapes(tower, longest)
  assert len(set(shapes)) == len(shapes) <= 3
  rng = np.random.default_rng(longest)
  for count in (1, 2, 5, 40, 300):
    needed = rng.integers(1, longest + 1, count)
    if sees_padding:
      needed[:] = longest
    seen = []
    for rows, shape in embedder.batches(needed, shapes):
      assert shape in shapes and 0 < len(rows) <= shape.rows
      assert needed[rows].max() <= shape.length
      seen.extend(rows.tolist())
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(
  "count, rows",
  [
    (1, [1]),
    (3, [1, 1, 1]),
    (11, [16]),
    (17, [16, 1]),
    (23, [16, 16]),
    (2000, [256] * 8),
  ],
)
def test_little_is_computed_for_nothing(count, rows):
  shapes = [embedder.Shape(size) for size in embedder.BATCH_SIZES]
  taken = embedder.batches(np.ones(count), shapes)
  assert [shape.rows for _, shape in taken] == rows


def test_texts_of_mixed_lengths_come_back_in_their_order(model):
  module = variants.create_model(
    variants.spec("tiny-vit", {"text": {"context_length": 40, "depth": 1}})
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.2).astype(x.dtype),
    variants.abstract_variables(module),
  )
  tokens = np.zeros((25, 40), np.int32)
  for row, end in zip(tokens, rng.integers(1, 40, 25), strict=True):
    row[:end] = rng.integers(1, 999, end)
    row[end] = module.text.vocab_size - 1
  embed = jax.jit(lambda x: module.apply(variables, x, method="encode_text"))
  embedder._PROGRAMS.clear()
  got = embedder.Embedder(module).embed_tokens(variables, tokens)
  # Other batches sum in another order: a few float32 roundings.
  np.testing.assert_allclose(got, embed(tokens), atol=2e-6)
  assert _compiled() == 2  # Twenty-five are no bulk.


def test_variables_of_another_kind_get_a_program_of_their_own(model):
  module, variables = model
  encoder = embedder.Embedder(module)
  images = random_images(1)
  want = encoder.embed_images(variables, images)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
  assert np.abs(encoder.embed_images(half, images) - want).max() < 0.1
