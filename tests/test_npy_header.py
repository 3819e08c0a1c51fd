"""Headers of `.npy` files are read as numpy reads them, but not as Python."""

import ast
import io
import time

import numpy as np
import pytest

from clip_jax import npy_header
from clip_jax.data import builtin
from clip_jax.data.sources import captions


def _bytes(array, version=None):
  file = io.BytesIO()
  np.lib.format.write_array(file, array, version, allow_pickle=False)
  return file.getvalue()


@pytest.fixture
def no_parser(monkeypatch):
  """On Python 3.11 `ast.parse` fails where several threads call it at once."""

  def parse(*_, **__):
    raise SystemError("AST constructor recursion depth mismatch")

  monkeypatch.setattr(ast, "parse", parse)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize(
  "dtype", ["?", "u1", "<i2", ">i4", "<i8", "<u8", "<f2", ">f4", "<f8"]
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (3, 1, 2)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_as_numpy_reads_it(
  version, dtype, shape, order, no_parser
):
  size = int(np.prod(shape))
  given = np.arange(size).reshape(shape).astype(dtype, order=order)
  got = npy_header.array(_bytes(given, version))
  assert got.shape == shape and got.dtype == given.dtype
  np.testing.assert_array_equal(got, given)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x93NUMPY",
    _bytes(np.zeros(3))[:-1],
    _bytes(np.zeros(3)) + b"x",
    _bytes(np.zeros(3))[:40],
    _bytes(np.array(["a"])),
    _bytes(np.zeros(2, [("a", "f4")])),
    _bytes(np.zeros(3)).replace(b"(3,)", b"(3**9,)"),
    _bytes(np.zeros(3)).replace(b"False", b"print"),
    _bytes(np.zeros(3)).replace(b"\x01\x00v", b"\x04\x00v"),
  ],
)
def test_other_bytes_are_refused(data):
  with pytest.raises(ValueError):
    npy_header.array(data)


@pytest.mark.parametrize(
  "text",
  [
    "{'shape': (3,), 'fortran_order': False, 'descr': '<f8'}",
    '{"descr": "<f8", "fortran_order": False, "shape": (3,), }\n',
    "{ 'descr':'<f8',\t'fortran_order' :False,'shape':( 3L, ) ,}\t\n",
  ],
)
def test_a_header_may_be_written_otherwise(text):
  data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
  got = npy_header.read(data + text.encode())
  assert got == ((3,), np.dtype("f8"), False, 10 + len(text))


@pytest.mark.parametrize(
  "text",
  [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': '(3,)'}",
    "{'descr': '<f8', 'fortran_order': '', 'shape': (3,)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'x': 1}",
    "{'descr': '<f8', 'fortran_order': False}",
    "{'descr': '<f8' 'fortran_order': False, 'shape': (3,)}",
    "{'descr':" + 9900 * " ",
    "{'shape':(" + 3000 * "1, ",
    "{'descr':[" + 9000 * "]",
  ],
)
def test_other_headers_are_refused_at_once(text):
  data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
  began = time.process_time()
  with pytest.raises(ValueError, match="header is not numpy's"):
    npy_header.read(data + text.encode())
  assert time.process_time() - began < 1  # It was 5 s.


def test_what_threads_read_needs_no_parser_of_python(no_parser):
  images, digits = builtin.scans.__wrapped__()
  assert images.shape == (1797, 8, 8) and digits.shape == (1797,)
  marks = _bytes(np.array([0, 1, 1]))
  assert captions.labels_from(marks, key="a", classes=3) == (1, 2)
