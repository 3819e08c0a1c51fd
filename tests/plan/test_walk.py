"""Counts in programs written by hand and in compiled ones."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.models import flops
from clip_jax.plan import arithmetic, collectives, topology, walk


def compiled_totals(function, *arguments, devices=1):
  text = jax.jit(function).lower(*arguments).compile().as_text()
  return walk.walk(text, devices=devices)


def shapes(*sizes):
  return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def nested(x, weights):
  def inner(x, w):
    return jnp.tanh(x @ w), None

  def outer(x, _):
    return jax.lax.scan(inner, x, weights)[0], None

  return jax.lax.scan(outer, x, None, length=3)[0].sum()


def from_two_in_threes(x, w):
  def body(state):
    i, x = state
    return i + 3, jnp.tanh(x @ w)

  return jax.lax.while_loop(lambda state: state[0] <= 17, body, (2, x))[1]


def test_products_in_nested_loops_count_as_often_as_they_run():
  totals = compiled_totals(nested, *shapes((6, 64), (5, 64, 64)))
  assert totals.flops == 3 * 5 * 2 * 6 * 64 * 64
  assert not totals.unknown_loops


def test_gradients_of_nested_loops_count():
  arguments = shapes((6, 64), (5, 64, 64))
  gradient = jax.grad(nested, argnums=(0, 1))
  totals = compiled_totals(gradient, *arguments)
  assert totals.flops == flops.count(gradient, *arguments)


def test_a_counter_may_start_step_and_end_anywhere():
  # At 2, 5, 8, 11, 14 and 17.
  totals = compiled_totals(from_two_in_threes, *shapes((6, 64), (64, 64)))
  assert totals.flops == 6 * 2 * 6 * 64 * 64


def test_loops_of_unknown_length_are_named():
  def until_small(x, w):
    return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ w, x)

  totals = compiled_totals(until_small, *shapes((6, 64), (64, 64)))
  assert len(totals.unknown_loops) == 1
  assert totals.flops == 2 * 6 * 64 * 64  # Once.


def test_the_dearest_branch_counts():
  def either(flag, x, w):
    return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

  flag = jax.ShapeDtypeStruct((), bool)
  totals = compiled_totals(either, flag, *shapes((6, 64), (64, 64)))
  assert totals.flops == 2 * 2 * 6 * 64 * 64


@pytest.mark.parametrize(
  "settings",
  [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": "VALID"},
    {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
    {
      "window_strides": (1, 1),
      "padding": "VALID",
      "feature_group_count": 2,
      "kernel": (3, 3, 2, 6),
    },
  ],
)
def test_convolutions_count_taps_that_meet_an_input(settings):
  settings = dict(settings)
  kernel = settings.pop("kernel", (3, 3, 4, 6))

  def convolve(x, k):
    return jax.lax.conv_general_dilated(
      x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
    )

  arguments = shapes((2, 11, 9, 4), kernel)
  totals = compiled_totals(convolve, *arguments)
  out = jax.eval_shape(convolve, *arguments).shape
  taps = 9
  if settings["padding"] == "SAME":
    # Of 3 taps the first and the last position see 2.
    taps = (3 * 11 - 2) * (3 * 9 - 2) / (11 * 9)
  expected = 2 * out[0] * out[1] * out[2] * out[3] * taps * kernel[2]
  assert totals.flops == round(expected)


def test_collectives_in_loops_count_as_often_as_they_run():
  mesh = jax.make_mesh(
    (2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def step(x):
    def body(x, _):
      whole = jax.lax.all_gather(x, "b", tiled=True)  # (64, 32)
      part = jax.lax.psum_scatter(whole, "b", tiled=True)
      moved = jax.lax.ppermute(part, "a", [(0, 1), (1, 0)])
      return moved / 2, None

    x = jax.lax.scan(body, x, None, length=7)[0]
    return jax.lax.psum(x.sum(), ("a", "b"))

  split = P(("a", "b"))
  function = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=P())
  x = jax.ShapeDtypeStruct(
    (128, 32), jnp.float32, sharding=jax.NamedSharding(mesh, split)
  )
  totals = compiled_totals(function, x, devices=8)
  found = collectives.summary(totals.collectives)
  part, whole = 16 * 32 * 4, 64 * 32 * 4
  assert found["all-gather"] == {"count": 7, "bytes": 7 * whole}
  assert found["reduce-scatter"] == {"count": 7, "bytes": 7 * whole}
  assert found["collective-permute"] == {"count": 7, "bytes": 7 * part}
  # One axis after the other, or both at once, as the compiler likes.
  assert found["all-reduce"]["count"] in (1, 2)
  groups = {c.kind: c.groups for c in totals.collectives}
  assert groups["all-gather"] == ((0, 1, 2, 3), (4, 5, 6, 7))
  assert (0, 4) in groups["collective-permute"]


# As libtpu writes it: no trip count beside the loop, products as convolutions
# over padding, a gather spread over fusions, a sum that scatters in a fusion.
TPU = """HloModule step, is_scheduled=true

%compare_computation (p.0: s32[], p.1: s32[]) -> pred[] {
  %p.0 = s32[]{:T(128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %lt.1 = pred[]{:T(512)} compare(%p.0, %p.1), direction=LT
}

%condition (state.1: (s32[], bf16[12,128,256])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %at.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %twelve = s32[]{:T(128)} constant(12)
  ROOT %more = pred[]{:T(512)} fusion(%at.1, %twelve), kind=kLoop, \
calls=%compare_computation
}

%sliced (p.2: bf16[12,128,256], p.3: s32[]) -> bf16[1,128,256] {
  %p.2 = bf16[12,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.3 = s32[]{:T(128)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = bf16[1,128,256]{2,1,0:T(8,128)(2,1)S(1)} \
dynamic-slice(%p.2, %p.3, %zero.1, %zero.1), dynamic_slice_sizes={1,128,256}
}

%gather_step (p.4: f32[16,128]) -> f32[64,128] {
  %p.4 = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.2 = f32[64,128]{1,0:T(8,128)} all-gather(%p.4), \
channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, \
dimensions={0}, frontend_attributes={chain_id="0"}
}

%gather_start (p.5: f32[16,128]) -> (f32[16,128], f32[64,128]) {
  %p.5 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %all-gather.1 = f32[64,128]{1,0:T(8,128)} all-gather(%p.5), \
channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, \
dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.1 = (f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%all-reduce-scatter.3 (p.6: f32[64,128]) -> f32[16,128] {
  %p.6 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%p.6), channel_id=1, \
replica_groups=[4,4]<=[4,4]T(1,0), to_apply=%add
  ROOT %own = f32[16,128]{1,0:T(8,128)} slice(%all-reduce.1), slice={[0:16]}
}

%body (state.2: (s32[], bf16[12,128,256])) -> (s32[], bf16[12,128,256]) {
  %state.2 = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %at.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %stack = bf16[12,128,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state.2), \
index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%at.2, %one)
  %layer = bf16[1,128,256]{2,1,0:T(8,128)(2,1)S(1)} fusion(%stack, %at.2), \
kind=kLoop, calls=%sliced, backend_config={"estimated_cycles":"100"}
  ROOT %state.3 = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
tuple(%next, %stack)
}

ENTRY %main (x: bf16[128,77,512], k: bf16[512,8,64], e: f32[16,128], \
s: bf16[12,128,256]) -> f32[16,128] {
  %x = bf16[128,77,512,1]{2,1,0,3:T(8,128)(2,1)} parameter(0)
  %k = bf16[512,8,64,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  %e = f32[16,128]{1,0:T(8,128)} parameter(2)
  %s = bf16[12,128,256]{2,1,0:T(8,128)(2,1)} parameter(3)
  %heads = bf16[128,77,8,64]{0,3,2,1:T(8,128)(2,1)} convolution(%x, %k), \
window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=b0f1_i1o0->b01f, \
backend_config={"estimated_cycles":"1000"}
  %gathering = (f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) \
fusion(%e), kind=kCustom, calls=%gather_start
  %gathered = f32[64,128]{1,0:T(8,128)} fusion(%e), kind=kOutput, \
calls=%gather_step
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
tuple(%zero, %s)
  %loop = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
while(%start), condition=%condition, body=%body
  %kernel = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), \
custom_call_target="tpu_custom_call"
  ROOT %scattered = f32[16,128]{1,0:T(8,128)} fusion(%gathered), \
kind=kCustom, calls=%all-reduce-scatter.3
}
"""


@pytest.fixture(scope="module")
def tpu():
  return walk.walk(TPU, devices=16)


def test_a_product_written_as_a_convolution_counts_as_a_product(tpu):
  assert tpu.flops == 2 * 128 * 77 * 512 * 8 * 64


def test_cycles_count_with_the_loops(tpu):
  assert tpu.cycles == 1000 + 12 * 100


def test_a_gather_over_several_fusions_counts_once(tpu):
  found = collectives.summary(tpu.collectives)
  assert found["all-gather"] == {"count": 1, "bytes": 64 * 128 * 4}


def test_a_sum_that_scatters_is_no_all_reduce(tpu):
  (exchange,) = (
    exchange
    for exchange in tpu.collectives
    if exchange.kind == "reduce-scatter"
  )
  assert exchange.groups[1] == (1, 5, 9, 13)
  assert exchange.bytes == 64 * 128 * 4


def test_a_sum_of_narrow_numbers_in_wide_ones_counts_the_wide_ones():
  text = """HloModule step, is_scheduled=true

ENTRY %main (x: bf16[64,128]) -> f32[64,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %sum = f32[64,128]{1,0:T(8,128)} all-reduce(%x), channel_id=1, \
replica_groups=[1,16]<=[16], to_apply=%add
}
"""
  totals = walk.walk(text, devices=16)
  found = collectives.summary(totals.collectives)
  assert found["all-reduce"]["bytes"] == 4 * 64 * 128


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is missing: pip install 'jax-clip[plan]'",
)
def test_a_program_compiled_for_a_slice_is_read():
  where = topology.make_topology("v5e:2x2")
  mesh = jax.sharding.Mesh(where.devices, ("d",))
  split = jax.NamedSharding(mesh, P("d"))
  x = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=split)
  compiled = jax.jit(lambda x: (x @ x.T).sum()).lower(x).compile()
  totals = walk.walk(compiled.as_text(), devices=4)
  assert totals.flops == 2 * 512 * 512 * 256 // 4
  assert totals.cycles > 0
  found = collectives.summary(totals.collectives)
  assert found["all-gather"] == {"count": 1, "bytes": 2 * 512 * 256}


def test_kernels_without_figures_are_named(tpu):
  assert tpu.hidden == tpu.uncosted == {"tpu_custom_call"}


def test_slices_of_a_stack_move_one_layer(tpu):
  without_loop = walk.walk(
    TPU.replace("constant(12)", "constant(0)"), devices=1
  )
  moved = tpu.moved_bytes - without_loop.moved_bytes
  # Read one layer of 128 x 256 a round; it is written on the chip. The counter
  # takes a tile of 512 bytes, which is added to, sliced by and compared.
  layer = 128 * 256 * 2
  assert 12 * layer <= moved <= 12 * (layer + 12 * 512)


def test_taps_are_counted_as_one_by_one():
  rng = np.random.default_rng(0)
  for _ in range(300):
    inputs, outputs, size = (int(n) for n in rng.integers(1, 12, 3))
    stride, dilation, window = (int(n) for n in rng.integers(1, 5, 3))
    pad = int(rng.integers(-3, 12))
    places = (
      output * stride + tap * window - pad
      for output in range(outputs)
      for tap in range(size)
    )
    want = sum(
      0 <= at <= (inputs - 1) * dilation and at % dilation == 0 for at in places
    )
    got = arithmetic._taps(
      inputs=inputs,
      outputs=outputs,
      size=size,
      stride=stride,
      pad=pad,
      input_dilation=dilation,
      window_dilation=window,
    )
    assert got == want


def test_windows_as_long_as_a_batch_take_no_time():
  many = 2**19
  taps = arithmetic._taps(
    inputs=many,
    outputs=many,
    size=many,
    stride=1,
    pad=many - 1,
    input_dilation=1,
    window_dilation=1,
  )
  assert taps == many * (many + 1) // 2
