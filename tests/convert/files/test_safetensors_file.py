"""Safetensors files against the safetensors library, both ways."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from clip_jax import errors
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import safetensors_file


def _arrays():
  rng = np.random.default_rng(0)
  arrays = {
    name: np.frombuffer(rng.bytes(3 * length * dtype.itemsize), dtype).reshape(
      3, length
    )
    for length, (name, dtype) in enumerate(safetensors_file.DTYPES.items(), 1)
    if name != "BOOL"
  }
  return arrays | {
    "mask": np.asarray([True, False]),
    "scalar": np.asarray(3.5, ml_dtypes.bfloat16),
    "empty": np.zeros((2, 0, 3), np.float32),
    "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
    "näme/with.signs": np.zeros(1, np.int8),
  }


def _tensors(arrays):
  return {k: tensor_lib.Tensor.from_array(a) for k, a in arrays.items()}


def _assert_same(read, arrays):
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    got = read[name].checked_read()
    assert got.shape == array.shape
    assert got.dtype == array.dtype
    assert got.tobytes() == array.tobytes()


def test_the_librarys_files_are_read_bit_by_bit(tmp_path):
  arrays = _arrays()
  path = tmp_path / "w.safetensors"
  wide = {
    k: np.ascontiguousarray(a).reshape(a.shape) for k, a in arrays.items()
  }
  safetensors.numpy.save_file(wide, path, metadata={"format": "np", "x": "ü"})
  file = safetensors_file.read(path)
  _assert_same(file.tensors, wide)


def test_a_pointer_of_git_lfs_is_called_so(tmp_path):
  path = tmp_path / "w.safetensors"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  with pytest.raises(errors.UserError, match="with `git lfs pull`"):
    safetensors_file.read(path)


def test_the_library_reads_what_is_written(tmp_path):
  arrays = _arrays()
  path = tmp_path / "w.safetensors"
  safetensors_file.write(path, _tensors(arrays))
  found = dict(safetensors.deserialize(path.read_bytes()))
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert tuple(found[name]["shape"]) == array.shape
    assert safetensors_file.DTYPES[found[name]["dtype"]] == array.dtype
    assert bytes(found[name]["data"]) == array.tobytes()
  with safetensors.safe_open(path, "np") as file:
    assert file.metadata() == {"format": "pt"}
  _assert_same(safetensors_file.read(path).tensors, arrays)
  again = tmp_path / "again.safetensors"
  safetensors_file.write(again, safetensors_file.read(path).tensors)
  assert again.read_bytes() == path.read_bytes()


def test_a_file_without_tensors_or_metadata_is_read(tmp_path):
  path = tmp_path / "w.safetensors"
  safetensors.numpy.save_file({}, path)
  assert safetensors_file.read(path).tensors == {}
  safetensors_file.write(path, {}, metadata={})
  assert safetensors.numpy.load_file(path) == {}


def test_big_endian_arrays_are_written_little_endian(tmp_path):
  path = tmp_path / "w.safetensors"
  array = np.arange(6, dtype=">f4").reshape(2, 3)
  safetensors_file.write(path, _tensors({"w": array}))
  assert np.array_equal(safetensors.numpy.load_file(path)["w"], array)


def test_a_dtype_beyond_the_format_is_refused_by_name(tmp_path):
  with pytest.raises(errors.UserError, match="'w' of dtype complex128"):
    safetensors_file.write(
      tmp_path / "w.safetensors", _tensors({"w": np.zeros(2, complex)})
    )


def _shards(directory, weight_map):
  arrays = {
    "a": np.arange(3.0),
    "b": np.arange(4, dtype=np.int32),
    "c": np.ones((2, 2), np.float16),
  }
  safetensors.numpy.save_file(
    {"a": arrays["a"], "b": arrays["b"]}, directory / "1.safetensors"
  )
  safetensors.numpy.save_file({"c": arrays["c"]}, directory / "2.safetensors")
  index = directory / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return index, arrays


def test_shards_are_read_as_one(tmp_path):
  index, arrays = _shards(
    tmp_path, {"c": "2.safetensors", "a": "1.safetensors", "b": "1.safetensors"}
  )
  file = safetensors_file.read_sharded(index)
  assert list(file.tensors) == ["c", "a", "b"]
  _assert_same(file.tensors, arrays)


@pytest.mark.parametrize(
  "weight_map",
  [
    {"a": "1.safetensors", "c": "2.safetensors"},
    {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"},
    {
      "a": "1.safetensors",
      "b": "1.safetensors",
      "c": "2.safetensors",
      "d": "2.safetensors",
    },
  ],
)
def test_a_tensor_that_is_elsewhere_is_an_error(weight_map, tmp_path):
  index, _ = _shards(tmp_path, weight_map)
  with pytest.raises(errors.UserError, match="disagree on 1 tensors"):
    safetensors_file.read_sharded(index)


@pytest.mark.parametrize("header", [b"{", b"{}{}", b'{"a":' * 200])
def test_a_damaged_header_says_once_what_to_do(header, tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(errors.DamagedError) as raised:
    safetensors_file.read(path)
  assert str(raised.value).lower().count("etch or make it again.") == 1
