import pytest

from clip_jax.plan import hlo

# Strings hold what would end an instruction or a computation.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/a (b) {c}/step.py"

%inner (param_0.1: f32[4,8]) -> f32[4,8] {
  %param_0.1 = f32[4,8]{1,0:T(8,128)} parameter(0)
  ROOT %double = f32[4,8]{1,0:T(8,128)S(1)} add(%param_0.1, %param_0.1)
}

ENTRY %main.1_spmd (x: f32[4,8], /*index=1*/y: s32[]) -> (f32[4,8], s32[]) {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="a \\" (
}
  ROOT %no = f32[] constant(3)
{ b"}
  %y = s32[] parameter(1)
  %fused = f32[4,8]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%inner, \
metadata={op_name="f(x)" stack_frame_id=3}, \
backend_config={"window_config":{"estimated_cycles":"12"}}
  ROOT %both = (f32[4,8]{1,0:T(8,128)}, s32[]) tuple(%fused, /*index=1*/%y)
}
"""


def test_strings_with_line_breaks_and_braces_change_nothing():
  program = hlo.parse(PROGRAM)
  assert program.entry == "main.1_spmd"
  assert set(program.computations) == {"inner", "main.1_spmd"}
  main = program.computations["main.1_spmd"]
  assert list(main.instructions) == ["x", "y", "fused", "both"]
  assert main.root.name == "both"
  assert main.parameters == {"x": 0, "y": 1}


def test_instructions_have_operands_shapes_and_attributes():
  main = hlo.parse(PROGRAM).computations["main.1_spmd"]
  fused, both = main.instructions["fused"], main.instructions["both"]
  assert fused.opcode == "fusion"
  assert fused.called("calls") == "inner"
  assert both.operands == ("fused", "y")
  assert [shape.dims for shape in both.shapes] == [(4, 8), ()]
  assert main.operand(both, 0) is fused
  assert main.users["y"] == [both]


@pytest.mark.parametrize(
  ("text", "size", "padded"),
  [
    ("f32[]", 4, 4),
    ("pred[3]", 3, 3),
    ("bf16[2,3]{1,0}", 12, 12),
    # The last two dimensions fill tiles of 8 x 128.
    ("f32[2,3]{1,0:T(8,128)}", 24, 4096),
    ("bf16[5,257,1024]{2,1,0:T(8,128)(2,1)}", 2631680, 5 * 264 * 1024 * 2),
    # The layout's order decides which they are.
    ("f32[128,8,5]{0,1,2:T(8,128)}", 20480, 20480),
    ("f32[3]{0:T(1024)}", 12, 4096),
    ("s4[7]", 4, 4),
    ("f8e4m3fn[10]", 10, 10),
    ("token[]", 0, 0),
  ],
)
def test_sizes_with_and_without_padding(text, size, padded):
  (shape,) = hlo.shapes(text)
  assert (shape.bytes, shape.padded_bytes) == (size, padded)


def test_the_memory_space_is_read():
  on_chip, main = hlo.shapes("(f32[8]{0:T(256)S(1)}, f32[8]{0:T(256)})")
  assert on_chip.space == 1
  assert main.space == hlo.HBM


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("HloModule nothing\n")
