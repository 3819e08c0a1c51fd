"""Cycles in a program written by hand and in compiled ones."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.plan import cycles, topology

# As libtpu writes it: no length beside the loop, and strings that hold what
# would end a line or a computation.
TPU = """HloModule step, is_scheduled=true

FileNames
1 "/home/a (b) {c}/step.py"

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
  ROOT %slice.1 = bf16[1,128,256]{2,1,0:T(8,128)(2,1)S(1)} \
dynamic-slice(%p.2, %p.3), dynamic_slice_sizes={1,128,256}
}

%body (state.2: (s32[], bf16[12,128,256])) -> (s32[], bf16[12,128,256]) {
  %state.2 = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %at.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %layer = bf16[1,128,256]{2,1,0:T(8,128)(2,1)S(1)} fusion(%state.2, %at.2), \
kind=kLoop, calls=%sliced, backend_config={"estimated_cycles":"100"}
}

%called (p.4: f32[16,128]) -> f32[16,128] {
  %p.4 = f32[16,128]{1,0:T(8,128)} parameter(0), metadata={op_name="a \\" (
}
{ b"}
  ROOT %twice = f32[16,128]{1,0:T(8,128)} add(%p.4, %p.4), \
backend_config={"window_config":{"estimated_cycles":"7"}}
}

ENTRY %main (x: f32[16,128], s: bf16[12,128,256]) -> f32[16,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0)
  %s = bf16[12,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %heads = f32[16,128]{1,0:T(8,128)} convolution(%x, %x), \
backend_config={"estimated_cycles":"1000"}
  %inner = f32[16,128]{1,0:T(8,128)} call(%x), to_apply=%called
  %loop = (s32[]{:T(128)}, bf16[12,128,256]{2,1,0:T(8,128)(2,1)}) \
while(%start), condition=%condition, body=%body
  ROOT %end = f32[16,128]{1,0:T(8,128)} add(%heads, %inner)
}
"""


def test_cycles_count_as_often_as_the_loops_run():
  assert cycles.count(TPU) == 1000 + 7 + 12 * 100


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("s32[]{:T(128)} constant(12)", "s32[]{:T(128)} parameter(1)", "condition"),
    ("call(%x), to_apply", "conditional(%x), true_computation", "conditional"),
    ("estimated_cycles", "other", "no cycles"),
  ],
)
def test_programs_whose_cycles_cannot_be_told_are_refused(old, new, message):
  with pytest.raises(ValueError, match=message):
    cycles.count(TPU.replace(old, new))


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is missing: pip install 'jax-clip[plan]'",
)
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1"])
def test_large_products_take_the_cycles_of_the_chips_peak(name):
  target = topology.make_topology(name)
  mesh = jax.sharding.Mesh(target.devices, ("d",))

  def array(*shape, spec):
    placed = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=placed)

  def nine_times(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=9)[0]

  x, w = array(8192, 4096, spec=P("d")), array(4096, 4096, spec=P())
  compiled = jax.jit(nine_times).lower(x, w).compile()
  seconds = cycles.count(compiled.as_text()) / target.chip.clock_hertz
  least = 9 * 2 * 2048 * 4096 * 4096 / target.chip.peak_flops
  # Copies between the rounds come on top of the products.
  assert 1 <= seconds / least < 1.5
