"""PyTorch's files against torch.save, torch.load and torch.jit.save."""

import collections
import io
import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from clip_jax import errors
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import torch_zip, zip_directory

DTYPES = {
  "float32": np.float32,
  "float64": np.float64,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "int64": np.int64,
  "int32": np.int32,
  "int16": np.int16,
  "int8": np.int8,
  "uint8": np.uint8,
  "bool": np.bool_,
  "uint16": np.uint16,
  "uint32": np.uint32,
  "uint64": np.uint64,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
}


def _random(shape, dtype):
  rng = np.random.default_rng(0)
  if dtype == "bool":
    return rng.integers(2, size=shape).astype(np.bool_)
  # Every pattern of bits, NaNs with payloads among them.
  dtype = np.dtype(DTYPES[dtype])
  size = int(np.prod(shape)) * dtype.itemsize
  return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


def _to_torch(array, dtype):
  bits = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8)
  return bits.view(getattr(torch, dtype)).reshape(array.shape)


def _bits(tensor):
  """Returns the bytes of a torch tensor, in C order."""
  flat = tensor.detach().contiguous().reshape(-1)
  return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _assert_same(read, tensors):
  assert list(read) == list(tensors)
  for name, tensor in tensors.items():
    array = read[name].checked_read()
    assert array.shape == tuple(tensor.shape)
    assert array.dtype == DTYPES[str(tensor.dtype).removeprefix("torch.")]
    assert array.tobytes() == _bits(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_tensor_is_read_bit_by_bit(dtype, tmp_path):
  tensors = {
    "matrix": _to_torch(_random((3, 5), dtype), dtype),
    "vector": _to_torch(_random((7,), dtype), dtype),
    "scalar": _to_torch(_random((1,), dtype), dtype).reshape(()),
    "empty": torch.zeros((0, 4), dtype=getattr(torch, dtype)),
  }
  torch.save(tensors, tmp_path / "w.pt")
  _assert_same(torch_zip.read(tmp_path / "w.pt").tensors, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_load_reads_what_is_written(dtype, tmp_path):
  arrays = {
    "matrix": _random((3, 5), dtype),
    "scalar": _random((1,), dtype).reshape(()),
    "empty": _random((0, 4), dtype),
    "näme": np.asfortranarray(_random((2, 3), dtype)),
  }
  path = tmp_path / "w.pt"
  tensors = {k: tensor_lib.Tensor.from_array(a) for k, a in arrays.items()}
  torch_zip.write(path, tensors)
  loaded = torch.load(path, weights_only=True)
  assert type(loaded) is collections.OrderedDict
  assert list(loaded) == list(arrays)
  for name, array in arrays.items():
    assert tuple(loaded[name].shape) == array.shape
    assert loaded[name].dtype == getattr(torch, dtype)
    assert loaded[name].is_contiguous()
    assert _bits(loaded[name]) == array.tobytes()
  assert torch.load(path, weights_only=True, mmap=True).keys() == arrays.keys()
  _assert_same(torch_zip.read(path).tensors, loaded)
  # The same bytes again, whatever the time.
  again = tmp_path / "again.pt"
  torch_zip.write(again, torch_zip.read(path).tensors)
  assert again.read_bytes() == path.read_bytes()


def test_views_are_read_as_torch_sees_them(tmp_path):
  base = torch.arange(60.0).reshape(3, 4, 5)
  tensors = {
    "transposed": base.permute(2, 0, 1),
    "column": base[:, 1, 2],
    "slice": base[1:, ::2, 1:4],
    "offset": base.reshape(-1)[7:9],
    "channels_last": torch.randn(2, 3, 4, 5).to(
      memory_format=torch.channels_last
    ),
  }
  torch.save(tensors, tmp_path / "w.pt")
  _assert_same(torch_zip.read(tmp_path / "w.pt").tensors, tensors)


def test_tied_tensors_stay_tied(tmp_path):
  shared = torch.randn(40, 50)
  torch.save({"a": shared, "b": shared, "c": shared.clone()}, tmp_path / "w.pt")
  read = torch_zip.read(tmp_path / "w.pt").tensors
  assert read["a"] is read["b"] is not read["c"]
  torch_zip.write(tmp_path / "again.pt", read)
  loaded = torch.load(tmp_path / "again.pt", weights_only=True)
  assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
  assert loaded["a"].data_ptr() != loaded["c"].data_ptr()
  _assert_same(read, loaded)


class _Tower(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.fc = torch.nn.Linear(3, 2).half()
    self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    self.register_buffer("input_resolution", torch.tensor(224))

  def forward(self, x):
    return x * torch.sigmoid(1.702 * x) + self.input_resolution


def _traced(path):
  tower = _Tower().eval()
  torch.jit.save(torch.jit.trace(tower, torch.ones(2)), path)
  return tower


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_read_with_its_constants(tmp_path):
  tower = _traced(tmp_path / "w.pt")
  archive = torch_zip.read(tmp_path / "w.pt")
  wanted = tower.state_dict()
  _assert_same({name: archive.tensors[name] for name in wanted}, dict(wanted))
  assert archive.tensors.keys() == wanted.keys()
  assert archive.torchscript
  assert [float(c.read()) for c in archive.constants.values()] == [1.702]


def test_nested_dicts_are_joined_and_other_values_left_out(tmp_path):
  state = {"a": {"b": torch.ones(2), "c": True}, "d": [torch.ones(3), "x", 2]}
  torch.save(state, tmp_path / "w.pt")
  archive = torch_zip.read(tmp_path / "w.pt")
  assert list(archive.tensors) == ["a.b", "d.0"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(protocol, tmp_path):
  tensors = collections.OrderedDict(a=torch.nn.Parameter(torch.randn(2, 3)))
  torch.save(tensors, tmp_path / "w.pt", pickle_protocol=protocol)
  _assert_same(torch_zip.read(tmp_path / "w.pt").tensors, tensors)


def test_a_state_dict_with_metadata_is_read(tmp_path):
  state = _Tower().state_dict()
  assert state._metadata
  torch.save(state, tmp_path / "w.pt")
  _assert_same(torch_zip.read(tmp_path / "w.pt").tensors, state)


def test_torchs_other_formats_are_refused_with_advice(tmp_path):
  torch.save(
    {"a": torch.ones(2)},
    tmp_path / "old.pt",
    _use_new_zipfile_serialization=False,
  )
  with pytest.raises(errors.UserError, match=r"before 1\.6.*re-save"):
    torch_zip.read(tmp_path / "old.pt")
  torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt")
  with pytest.raises(errors.UserError, match=r"linear\.Linear.*state_dict\(\)"):
    torch_zip.read(tmp_path / "module.pt")


def test_big_endian_archives_are_read(tmp_path):
  tensors = {name: _to_torch(_random((3, 5), name), name) for name in DTYPES}
  buffer = io.BytesIO()
  torch.save(tensors, buffer)
  path = tmp_path / "w.pt"
  names = list(tensors)
  swapped = []
  with zipfile.ZipFile(buffer) as archive:
    for name in archive.namelist():
      data = archive.read(name)
      if name.endswith("byteorder"):
        data = b"big"
      elif "/data/" in name:
        dtype = np.dtype(DTYPES[names[int(name.rpartition("/")[2])]])
        data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().tobytes()
      swapped.append((name, [data], len(data)))
  with path.open("wb") as file:
    zip_directory.write(file, swapped)
  _assert_same(torch_zip.read(path).tensors, tensors)


def test_a_damaged_tensor_is_found_when_it_is_read(tmp_path):
  path = tmp_path / "w.pt"
  base = torch.arange(8.0)
  torch.save({"whole": torch.full((4,), 7.0), "part": base[2:5]}, path)
  data = path.read_bytes()
  for wanted, found in ((7.0, "whole"), (6.0, "part")):
    # Of the storage of "part", a byte that the view does not even show.
    old = np.float32(wanted).tobytes()
    at = data.index(old)
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    read = torch_zip.read(path).tensors
    with pytest.raises(errors.UserError, match="checksum"):
      read[found].read()


def test_a_dtype_that_torch_lacks_is_refused_by_name(tmp_path):
  tensor = tensor_lib.Tensor.from_array(np.zeros(2, np.complex64))
  with pytest.raises(errors.UserError, match=r"complex64.*Known: bfloat16"):
    torch_zip.write(tmp_path / "w.pt", {"a": tensor})
  assert not os.listdir(tmp_path)
