import itertools

import pytest

from clip_jax.plan import collectives, interconnect

LINK = 50e9
HOP = interconnect.HOP_SECONDS


def network(shape, wrap):
  return interconnect.Network(
    coordinates=tuple(itertools.product(*map(range, shape))),
    shape=shape,
    wrap=wrap,
    link_bandwidth=LINK,
  )


TORUS = network((16, 16), (True, True))
MESH = network((4, 4), (False, False))
ROWS = tuple(tuple(range(16 * i, 16 * i + 16)) for i in range(16))
SIZE = 2**30


def exchange(kind, groups=(), size=SIZE):
  return collectives.Collective(kind, size, groups)


def test_a_gather_over_one_ring_uses_both_directions():
  seconds = TORUS.seconds(exchange("all-gather", ROWS))
  assert seconds == pytest.approx(SIZE * 15 / 16 / (2 * LINK) + 8 * HOP)


def test_a_gather_over_both_rings_is_twice_as_fast():
  seconds = TORUS.seconds(exchange("all-gather"))
  assert seconds == pytest.approx(SIZE * 255 / 256 / (4 * LINK) + 16 * HOP)


def test_a_line_has_one_direction():
  row = (tuple(range(4)),)
  seconds = MESH.seconds(exchange("all-gather", row))
  assert seconds == pytest.approx(SIZE * 3 / 4 / LINK + 3 * HOP)


def test_half_of_a_ring_is_a_line():
  half = (tuple(range(8)),)
  seconds = TORUS.seconds(exchange("reduce-scatter", half))
  assert seconds == pytest.approx(SIZE * 7 / 8 / LINK + 7 * HOP)


def test_a_sum_takes_two_gathers():
  twice = 2 * TORUS.seconds(exchange("all-gather", ROWS))
  assert TORUS.seconds(exchange("all-reduce", ROWS)) == pytest.approx(twice)


def ring(length, step=1):
  return tuple((i, (i + step) % length) for i in range(length))


def test_a_shift_on_a_ring_takes_one_hop():
  seconds = TORUS.seconds(exchange("collective-permute", ring(16)))
  assert seconds == pytest.approx(SIZE / LINK + HOP)


def test_a_shift_on_a_line_goes_all_the_way_back():
  seconds = MESH.seconds(exchange("collective-permute", ring(4)))
  assert seconds == pytest.approx(SIZE / LINK + 3 * HOP)


def test_longer_shifts_share_links():
  seconds = TORUS.seconds(exchange("collective-permute", ring(16, step=3)))
  assert seconds == pytest.approx(3 * SIZE / LINK + 3 * HOP)


def test_seconds_add_up_by_kind():
  gather = exchange("all-gather", ROWS)
  times = {gather: 3, exchange("all-reduce"): 1}
  found = collectives.summary(times, TORUS.seconds)
  seconds = found["all-gather"]["seconds"]
  assert seconds == pytest.approx(3 * TORUS.seconds(gather))
  assert set(found) == {"all-gather", "all-reduce"}
