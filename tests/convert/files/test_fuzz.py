"""Damaged files: a clear error, or exactly what the file still says.

Zip archives carry checksums, so a mutation that loads must load the original.
The pickles and headers inside are mutated too, under correct checksums, and
files without checksums anywhere: there the reference library says what a
mutated file holds.
"""

import io
import json
import os
import pathlib
import resource
import time
import warnings
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch

from clip_jax import errors
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import (
  msgpack_file,
  npz,
  safetensors_file,
  torch_zip,
  zip_directory,
)

# Files a case, and a container. CLIP_JAX_FUZZ_FILES=20000 takes ten minutes.
QUICK, SLOW = 500, int(os.environ.get("CLIP_JAX_FUZZ_FILES", "1000"))
# Of this process: other ones may keep the machine busy.
MAX_SECONDS, MAX_BYTES = 5.0, 2 << 30

_RNG = np.random.default_rng(0)
ARRAYS = {
  "a.weight": _RNG.normal(size=(3, 2)).astype(np.float32),
  "a.bias": _RNG.normal(size=(2,)).astype(ml_dtypes.bfloat16),
  "step": np.asarray(7, np.int64),
  "mask": np.asarray([True, False, True]),
}


def mutate(rng, data: bytes) -> bytes:
  """Returns `data` with one to three changes, small or large."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 3])):
    if not data:
      break
    at = int(rng.integers(len(data)))
    other = int(rng.integers(len(data)))
    size = int(rng.integers(1, 17))
    block = data[other : other + size]
    match rng.integers(9):
      case 0 | 1:
        data[at] ^= 1 << int(rng.integers(8))
      case 2:
        data[at] = int(rng.integers(256))
      case 3:
        del data[at:]
      case 4:
        del data[at : at + size]
      case 5:
        data[at:at] = block
      case 6:
        data[at : at + size] = block
      case 7:
        data[at:at] = rng.bytes(size)
      case 8:  # Lengths and counts that overflow something.
        edge = rng.choice([0x7F, 0x80, 0xFF, 0x00])
        data[at : at + int(rng.choice([1, 2, 4, 8]))] = bytes([edge]) * int(
          rng.choice([1, 2, 4, 8])
        )
  return bytes(data)


def _tensors():
  return {
    name: tensor_lib.Tensor.from_array(array) for name, array in ARRAYS.items()
  }


def _same(got: dict, wanted: dict) -> bool:
  """Whether names, shapes, dtypes and bytes agree."""
  return got.keys() == wanted.keys() and all(
    got[name].shape == array.shape
    and got[name].dtype == array.dtype
    and got[name].tobytes() == array.tobytes()
    for name, array in wanted.items()
  )


def _read_all(tensors):
  return {name: tensor.read() for name, tensor in tensors.items()}


# A case mutates the bytes of a good file, and says what a changed file holds:
# None if the reference library, too, finds no sense in it.


def _repacked(data: bytes, rng, member) -> bytes:
  """Mutates one member of a zip archive under a correct checksum."""
  file = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    chosen = [name for name in names if member(name)]
    chosen = chosen[int(rng.integers(len(chosen)))]
    contents = {name: archive.read(name) for name in names}
  contents[chosen] = mutate(rng, contents[chosen])
  zip_directory.write(
    file,
    [(name, [content], len(content)) for name, content in contents.items()],
  )
  return file.getvalue()


class TorchFile:
  suffix = ".pt"

  def make(self, path):
    torch_zip.write(path, _tensors())

  def change(self, rng, data):
    return mutate(rng, data)

  def read(self, path):
    return _read_all(torch_zip.read(path).tensors)

  def reference(self, data):
    return ARRAYS


class TorchPickle(TorchFile):
  def change(self, rng, data):
    return _repacked(data, rng, lambda name: name.endswith("data.pkl"))

  def reference(self, data):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # About a mutated protocol number.
      state = torch.load(
        io.BytesIO(data), weights_only=True, map_location="cpu"
      )
    found = {}
    waiting = [((), state)]
    while waiting:
      names, value = waiting.pop()
      if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        dtype = ml_dtypes.bfloat16 if value.dtype == torch.bfloat16 else None
        dtype = np.dtype(dtype or str(value.dtype).removeprefix("torch."))
        found[".".join(map(str, names))] = bits.view(dtype).reshape(value.shape)
      elif isinstance(value, dict | list | tuple):
        items = value if isinstance(value, dict) else dict(enumerate(value))
        waiting += [((*names, key), v) for key, v in items.items()]
    return found


class SafetensorsFile:
  suffix = ".safetensors"

  def make(self, path):
    safetensors_file.write(path, _tensors())

  def change(self, rng, data):
    return mutate(rng, data)

  def read(self, path):
    return _read_all(safetensors_file.read(path).tensors)

  def reference(self, data):
    return {
      name: np.frombuffer(
        entry["data"], safetensors_file.DTYPES[entry["dtype"]]
      ).reshape(entry["shape"])
      for name, entry in safetensors.deserialize(data)
    }


class NumpyFile:
  suffix = ".npz"

  def make(self, path):
    npz.write(path, _tensors())

  def change(self, rng, data):
    return mutate(rng, data)

  def read(self, path):
    return _read_all(npz.read(path).tensors)

  def reference(self, data):
    return ARRAYS


class DeflatedNumpyFile(NumpyFile):
  def make(self, path):
    np.savez_compressed(path, **ARRAYS)


class NumpyMember(NumpyFile):
  def change(self, rng, data):
    return _repacked(data, rng, lambda name: True)

  def reference(self, data):
    found = {}
    for name, array in np.load(io.BytesIO(data), allow_pickle=False).items():
      if array.dtype.kind == "V":
        array = array.view(ml_dtypes.bfloat16)
      found[name] = array.astype(array.dtype.newbyteorder("="))
    return found


class MsgpackFile:
  suffix = ".msgpack"

  def make(self, path):
    tree = {"text": ARRAYS, "step": 3, "scalar": np.float32(0.5)}
    path.write_bytes(flax.serialization.msgpack_serialize(tree))

  def change(self, rng, data):
    return mutate(rng, data)

  def read(self, path):
    return _read_all(msgpack_file.read(path).tensors)

  def reference(self, data):
    found = {}
    waiting = [((), flax.serialization.msgpack_restore(data))]
    while waiting:
      names, value = waiting.pop()
      if isinstance(value, dict | list | tuple):
        items = value if isinstance(value, dict) else dict(enumerate(value))
        waiting += [((*names, key), v) for key, v in items.items()]
      elif isinstance(value, np.ndarray | np.generic):
        found["/".join(map(str, names))] = np.asarray(value)
    return found


CASES = [
  TorchFile,
  TorchPickle,
  SafetensorsFile,
  NumpyFile,
  DeflatedNumpyFile,
  NumpyMember,
  MsgpackFile,
]


def _peak_bytes() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fuzz(case, path: pathlib.Path, count: int) -> dict:
  """Mutates a file `count` times; returns how it went."""
  case.make(path)
  good = path.read_bytes()
  assert case.read(path)
  slowest = 0.0
  refused = loaded = 0
  before = _peak_bytes()  # Of all tests that this process has run.
  for seed in range(count):
    data = case.change(np.random.default_rng([seed, 5]), good)
    path.write_bytes(data)
    start = time.process_time()
    try:
      got = case.read(path)
    except errors.UserError as error:
      assert str(path) in str(error), seed
      refused += 1
    else:
      loaded += 1
      assert _same(got, case.reference(data)), f"seed {seed}"
    slowest = max(slowest, time.process_time() - start)
  peak = _peak_bytes()
  # Where other tests had the peak, this one may add next to nothing to it.
  assert peak < max(before + (1 << 28), MAX_BYTES)
  assert refused > count / 3
  assert slowest < MAX_SECONDS
  return {
    "case": type(case).__name__,
    "files": count,
    "refused": refused,
    "loaded": loaded,
    "slowest_seconds": round(slowest, 3),
    "process_peak_mib": peak >> 20,
  }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_mutated_file_is_refused_or_read_exactly(case, tmp_path):
  _fuzz(case(), tmp_path / f"file{case.suffix}", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_many_mutated_files_are_refused_or_read_exactly(case, tmp_path):
  # The cases of one container share its number.
  count = -(-SLOW // sum(case.suffix == other.suffix for other in CASES))
  start = time.perf_counter()
  measured = _fuzz(case(), tmp_path / f"file{case.suffix}", count)
  measured["seconds"] = round(time.perf_counter() - start, 1)
  print(json.dumps(measured))
