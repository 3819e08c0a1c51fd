"""Exchanges read from traced programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.plan import collectives

ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))
PART, WHOLE = 16 * 32 * 4, 64 * 32 * 4
SAME = P()


def traced(step, sizes=(2, 4), out=SAME):
  """Returns the exchanges of what each device makes of (16, 32) numbers."""
  axis_types = (jax.sharding.AxisType.Auto,) * 2
  count = sizes[0] * sizes[1]
  devices = jax.devices()[:count]
  mesh = jax.make_mesh(sizes, ("a", "b"), axis_types, devices=devices)
  split = P(("a", "b"))
  function = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=out)
  x = jax.ShapeDtypeStruct((16 * count, 32), jnp.float32)
  return collectives.read(jax.make_jaxpr(function)(x).jaxpr)


def round_trip(x):
  whole = jax.lax.all_gather(x, "b", tiled=True)  # (64, 32)
  part = jax.lax.psum_scatter(whole, "b", tiled=True)
  return jax.lax.ppermute(part, "a", [(0, 1), (1, 0)]) / 2


def seven_rounds(x):
  x = jax.lax.scan(lambda x, _: (round_trip(x), None), x, length=7)[0]
  return jax.lax.psum(x.sum(), ("a", "b"))


def test_exchanges_in_loops_count_as_often_as_they_run():
  found = traced(seven_rounds)
  by_kind = collectives.summary(found)
  assert {k: (x["count"], x["bytes"]) for k, x in by_kind.items()} == {
    "all-gather": (7, 7 * WHOLE),
    "all-reduce": (1, 4),
    "collective-permute": (7, 7 * PART),
    "reduce-scatter": (7, 7 * WHOLE),
  }
  groups = {exchange.kind: exchange.groups for exchange in found}
  assert groups["all-gather"] == groups["reduce-scatter"] == ROWS
  assert groups["all-reduce"] == (tuple(range(8)),)
  pairs = {(i, (i + 4) % 8) for i in range(8)}
  assert set(groups["collective-permute"]) == pairs


def test_gradients_exchange_what_their_transposes_do():
  def step(x):
    return jax.lax.pmean(jnp.square(round_trip(x)).sum(), ("a", "b"))

  plain = collectives.summary(traced(step))
  both = collectives.summary(traced(jax.grad(step), out=P(("a", "b"))))
  for kind in ("all-gather", "collective-permute", "reduce-scatter"):
    for name in ("count", "bytes"):
      assert both[kind][name] == 2 * plain[kind][name]


def test_sums_that_follow_each_other_are_one_exchange():
  def step(x):
    first, second, third = x[:3], x[3:], x + 1
    total = jax.lax.psum(first, "a"), jax.lax.psum(second, "a")
    return *total, jax.lax.psum(third, "b")

  found = traced(step, out=(P("b"), P("b"), P("a")))
  assert {(c.groups[0], c.bytes): n for c, n in found.items()} == {
    ((0, 4), PART): 1,
    ((0, 1, 2, 3), PART): 1,
  }


@pytest.mark.parametrize(("sizes", "kinds"), [((1, 4), 3), ((1, 1), 0)])
def test_axes_of_one_device_exchange_nothing(sizes, kinds):
  def step(x):
    whole = jax.lax.all_gather(x, "b", tiled=True)
    part = jax.lax.psum_scatter(whole, "b", tiled=True)
    return jax.lax.psum(jax.lax.ppermute(part, "a", [(0, 0)]).sum(), ("a", "b"))

  assert len(traced(step, sizes)) == kinds


def test_loops_of_unknown_length_are_refused():
  def step(x):
    def body(x):
      return jax.lax.ppermute(x, "b", [(0, 1), (1, 0)])

    return jax.lax.while_loop(lambda x: x[0, 0] > 1, body, x)

  with pytest.raises(ValueError, match="permute in a while loop"):
    traced(step, out=P(("a", "b")))
