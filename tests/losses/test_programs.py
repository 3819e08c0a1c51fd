"""What the losses' programs hold and exchange, before anything runs."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import losses, sharding
from clip_jax.plan import cycles, topology

AXES = sharding.BATCH_AXES
TILE = losses.Tile(rows=128, columns=256)
CLOCK = 1.5e9  # Of a TPU v5e, cycles a second.


def plain(images, texts, scale):
  """The loss as everyone writes it; the compiler splits it."""
  logits = scale * jnp.einsum(
    "id,jd->ij", images, texts, preferred_element_type=jnp.float32
  )
  own = (images.astype(jnp.float32) * texts.astype(jnp.float32)).sum(axis=-1)
  rows, columns = jax.nn.logsumexp(logits, 1), jax.nn.logsumexp(logits, 0)
  return jnp.mean((rows + columns) / 2 - scale * own)


def lowered(method, pairs, mesh, *, embed=64, kind="softmax", tile=None):
  """Returns the program of value and gradients, from bfloat16 embeddings."""
  if method == "plain":
    loss, count = plain, 3
  else:
    local = functools.partial(
      losses.local_loss(kind),
      axes=AXES,
      method=method,
      tile=tile or losses.Tile(),
    )
    count = 4 if kind in losses.BIASED_KINDS else 3
    specs = P(AXES), P(AXES), P(), P()
    loss = jax.shard_map(
      lambda *arrays: local(*arrays),
      mesh=mesh,
      in_specs=specs[:count],
      out_specs=P(),
    )
  split, whole = NamedSharding(mesh, P(AXES)), NamedSharding(mesh, P())
  embeds = jax.ShapeDtypeStruct((pairs, embed), jnp.bfloat16, sharding=split)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  arrays = (embeds, embeds, scalar, scalar)[:count]
  return jax.jit(jax.value_and_grad(loss, argnums=range(count))).lower(*arrays)


def largest(text):
  """Returns the elements of the largest array in a program."""
  shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
  return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def exponent(sizes):
  """Returns how bytes by pairs grow: 1 in proportion, 2 as the square."""
  (few, small), (many, large) = sizes.items()
  return math.log(large / small) / math.log(many / few)


@pytest.mark.parametrize(
  ("method", "least", "most"),
  # The tile is the same for all sizes, so that some of it is constant.
  [("plain", 1.7, 2.1), ("ring", 0.5, 1.05), ("two_level", 0.5, 1.05)],
)
def test_memory_grows_with_the_pairs_and_not_their_square(method, least, most):
  mesh = sharding.make_mesh(data=4, fsdp=2)
  sizes = {}
  for pairs in (2048, 16_384):
    program = lowered(method, pairs, mesh, tile=TILE).compile()
    # On the CPU the peak leaves out what the program allocates by itself.
    sizes[pairs] = program.memory_analysis().temp_size_in_bytes
  assert least < exponent(sizes) <= most


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("method", ["ring", "two_level"])
def test_no_array_holds_a_devices_logits(method, kind):
  mesh, pairs = sharding.make_mesh(data=4, fsdp=2), 4096
  logits = pairs * pairs // mesh.size
  program = lowered(method, pairs, mesh, kind=kind, tile=TILE)
  assert largest(program.compile().as_text()) < logits
  whole = lowered("gathered", pairs, mesh, kind=kind)
  assert largest(whole.compile().as_text()) >= logits  # The check can fail.


def exchanges(program):
  """Returns the collectives of a program: (kind, element type, elements)."""
  found = []
  text = program.as_text()
  for match in re.finditer(
    r'"?stablehlo\.(all_reduce|reduce_scatter|all_gather|collective_permute)\b'
    r".*?\) -> (?:\()?tensor<((?:\d+x)*)(\w+)>",
    text,
    re.DOTALL,
  ):
    kind, shape, dtype = match.groups()
    sizes = [int(size) for size in shape.split("x") if size]
    found.append((kind, dtype, math.prod(sizes)))
  return found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
  ("method", "carrier"),
  [
    ("gathered", "reduce_scatter"),
    ("ring", "collective_permute"),
    ("two_level", "reduce_scatter"),
  ],
)
def test_gradients_of_texts_are_exchanged_in_float32(method, carrier, kind):
  mesh = sharding.make_mesh(data=4, fsdp=2)
  found = exchanges(lowered(method, 4096, mesh, kind=kind, tile=TILE))
  embeds = 64 * 64  # A chunk of texts, at least.
  carried = [x for x in found if x[0] == carrier and x[2] >= embeds]
  assert any(dtype == "f32" for _, dtype, _ in carried)
  for operation, dtype, elements in found:
    if operation in ("all_reduce", "reduce_scatter"):
      assert dtype == "f32", (operation, elements)
    if operation == "all_reduce":
      assert elements <= 4096  # The largest logit of each column.
    if operation == "all_gather" and dtype != "bf16":  # Texts as they are.
      assert elements <= 4096  # An index or cosine of each pair.


def test_a_gather_left_to_autodiff_would_be_seen():
  """Its gradient comes back in bfloat16."""
  mesh = sharding.make_mesh(data=4, fsdp=2)

  def on_device(images, texts):
    for axis in reversed(AXES):
      texts = jax.lax.all_gather(texts, axis, tiled=True)
    cosines = images @ texts.T
    return jax.lax.psum(cosines.astype(jnp.float32).sum(), AXES)

  loss = jax.shard_map(
    on_device, mesh=mesh, in_specs=(P(AXES), P(AXES)), out_specs=P()
  )
  embeds = jax.ShapeDtypeStruct((4096, 64), jnp.bfloat16)
  program = jax.jit(jax.grad(loss, argnums=1)).lower(embeds, embeds)
  found = exchanges(program)
  assert ("reduce_scatter", "bf16") in [x[:2] for x in found]


@pytest.fixture(scope="module")
def pod(tpu_compiler):
  """A TPU v5e pod's mesh, to compile for."""
  found = topology.make_topology("v5e:16x16")
  return sharding.make_mesh(data=16, fsdp=16, devices=found.devices)


# Megabytes a chip; pairs of 768 dimensions.
BARS = {32_768: 40, 131_072: 100, 1_048_576: 350}


@pytest.mark.slow
def test_the_automatic_loss_fits_a_v5e_pod(pod):
  """By itself it holds little at any size, and grows with the pairs at most."""
  peaks = {}
  for pairs, megabytes in BARS.items():
    program = lowered("auto", pairs, pod, embed=768).compile()
    peaks[pairs] = program.memory_analysis().peak_memory_in_bytes
    assert peaks[pairs] <= megabytes * 1e6
    text = program.as_text()
    if pairs > 2**17:
      assert largest(text) < pairs * pairs / pod.size
    assert not re.search(r"bf16\[[\d,]+\]\S* all-reduce", text)
    assert re.search(r"all-reduce-scatter|reduce-scatter", text)
    assert " collective-permute-start(" in text
    assert " collective-permute(" not in text  # None waits.
  for few, many in itertools.pairwise(BARS):
    assert exponent({few: peaks[few], many: peaks[many]}) <= 1.05


@pytest.mark.slow
def test_a_ring_over_both_axes_of_a_pod_hops_beside_its_work(pod):
  text = lowered("ring", 32_768, pod, embed=768).compile().as_text()
  assert " collective-permute-start(" in text
  assert " collective-permute(" not in text


@pytest.mark.slow
def test_the_plain_loss_does_not_fit_a_v5e_pod(pod):
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    lowered("plain", 1_048_576, pod, embed=768).compile()
  # A control for the exponent of the other: the larger of two parts, the texts
  # of all devices and a device's logits, grows with the square.
  peaks = {}
  for pairs in (131_072, 524_288):
    program = lowered("plain", pairs, pod, embed=768).compile()
    peaks[pairs] = program.memory_analysis().peak_memory_in_bytes
  assert exponent(peaks) > 1.3


@pytest.mark.slow
def test_the_automatic_loss_takes_little_more_time_than_the_plain_one(pod):
  seconds = {}
  for method in ("auto", "plain"):
    text = lowered(method, 32_768, pod, embed=768).compile().as_text()
    seconds[method] = cycles.count(text) / CLOCK
  assert seconds["auto"] <= 1.5 * seconds["plain"]
