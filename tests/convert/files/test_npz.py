"""Numpy archives against np.load and np.savez, both ways."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import npz

DTYPES = [
  *("bool", "int8", "int16", "int32", "int64"),
  *("uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"),
]


def _arrays():
  rng = np.random.default_rng(0)
  arrays = {
    f"params/{dtype}/kernel": (9 * rng.normal(size=(3, n))).astype(dtype)
    for n, dtype in enumerate(DTYPES, 1)
    if not dtype.startswith("uint")
  }
  return arrays | {
    "scalar": np.asarray(3, np.uint16),
    "empty": np.zeros((2, 0, 3), np.float32),
    "fortran": np.asfortranarray(rng.normal(size=(3, 4, 5))),
    "bfloat16": rng.normal(size=(2, 5)).astype(ml_dtypes.bfloat16),
    "bfloat16_fortran": np.asfortranarray(
      rng.normal(size=(2, 5)).astype(ml_dtypes.bfloat16)
    ),
  }


def _assert_same(read, arrays):
  assert list(read) == list(arrays)
  for name, array in arrays.items():
    got = read[name].checked_read()
    assert got.shape == array.shape
    assert got.dtype == array.dtype.newbyteorder("=")
    assert got.flags.c_contiguous
    assert got.tobytes() == array.astype(got.dtype).tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_archives_are_read_bit_by_bit(save, tmp_path):
  arrays = _arrays()
  save(tmp_path / "w.npz", **arrays)
  _assert_same(npz.read(tmp_path / "w.npz").tensors, arrays)


def test_numpy_reads_what_is_written(tmp_path):
  arrays = _arrays()
  path = tmp_path / "w.npz"
  npz.write(
    path, {k: tensor_lib.Tensor.from_array(a) for k, a in arrays.items()}
  )
  with np.load(path, allow_pickle=False) as loaded:
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
      if name.startswith("bfloat16"):
        assert loaded[name].dtype == np.dtype("V2")
      else:
        assert loaded[name].dtype == array.dtype
      assert loaded[name].shape == array.shape
      assert loaded[name].tobytes() == array.tobytes()
  _assert_same(npz.read(path).tensors, arrays)
  npz.write(tmp_path / "again.npz", npz.read(path).tensors)
  assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_big_endian_arrays_are_read_and_written(tmp_path):
  path = tmp_path / "w.npz"
  arrays = {"w": np.arange(6, dtype=">f4").reshape(2, 3)}
  np.savez(path, **arrays)
  _assert_same(npz.read(path).tensors, arrays)
  npz.write(path, {"w": tensor_lib.Tensor.from_array(arrays["w"])})
  assert np.array_equal(np.load(path)["w"], arrays["w"])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(version, tmp_path):
  member = io.BytesIO()
  array = np.arange(6.0).reshape(2, 3)
  np.lib.format.write_array(member, array, version=version)
  with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
    archive.writestr("w.npy", member.getvalue())
  _assert_same(npz.read(tmp_path / "w.npz").tensors, {"w": array})


def test_long_integers_of_python_2_are_read(tmp_path):
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L)}\n"
  data = np.arange(6, dtype=np.float32).reshape(3, 2)
  member = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
  with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
    archive.writestr("w.npy", member + data.tobytes())
  _assert_same(npz.read(tmp_path / "w.npz").tensors, {"w": data})


def test_a_dtype_beyond_the_format_is_refused_by_name(tmp_path):
  for dtype in (ml_dtypes.float8_e5m2, np.complex64, "U3"):
    tensor = tensor_lib.Tensor.from_array(np.zeros(2, dtype))
    with pytest.raises(errors.UserError, match="cannot hold 'w'"):
      npz.write(tmp_path / "w.npz", {"w": tensor})
