"""Flax msgpack files against flax.serialization."""

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from clip_jax.convert.files import msgpack_file


def _tree():
  rng = np.random.default_rng(0)
  return {
    "text": {
      "kernel": rng.normal(size=(3, 5)),
      "bias": rng.normal(size=(5,)).astype(ml_dtypes.bfloat16),
      "half": rng.normal(size=(2, 1)).astype(np.float16),
      "fortran": np.asfortranarray(rng.normal(size=(2, 3))),
    },
    "mask": np.asarray([True, False]),
    "ids": jnp.arange(7),
    "empty": np.zeros((0, 3), np.float32),
    "scale": np.asarray(2.5, np.float32),
    "scalar": np.float32(1.5),
    "step": 3,
    "name": "clip",
    "none": None,
    "flag": True,
  }


def _assert_tree_is_read(path, tree):
  file = msgpack_file.read(path)
  text = {f"text/{name}": value for name, value in tree["text"].items()}
  wanted = text | {k: v for k, v in tree.items() if k != "text"}
  for name in ("step", "name", "none", "flag"):
    del wanted[name]
  assert file.tensors.keys() == wanted.keys()
  for name, value in wanted.items():
    got = file.tensors[name].checked_read()
    value = np.asarray(value)
    assert got.shape == value.shape
    assert got.dtype == value.dtype
    assert got.tobytes() == value.tobytes()


def test_flaxs_files_are_read_bit_by_bit(tmp_path):
  path = tmp_path / "flax_model.msgpack"
  path.write_bytes(flax.serialization.msgpack_serialize(_tree()))
  _assert_tree_is_read(path, _tree())


@pytest.mark.parametrize("chunk_bytes", [8, 16, 24])
def test_arrays_in_chunks_are_joined(chunk_bytes, tmp_path, monkeypatch):
  monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk_bytes)
  path = tmp_path / "flax_model.msgpack"
  tree = _tree()
  # Flax cannot join the order that Fortran arrays are cut in.
  tree["text"]["fortran"] = np.ascontiguousarray(tree["text"]["fortran"])
  path.write_bytes(flax.serialization.msgpack_serialize(tree))
  assert b"chunked_array" in path.read_bytes()
  _assert_tree_is_read(path, tree)


def test_a_file_larger_than_a_piece_is_read(tmp_path):
  path = tmp_path / "flax_model.msgpack"
  array = np.random.default_rng(0).normal(size=(700, 501))
  path.write_bytes(flax.serialization.msgpack_serialize({"a": {"b": array}}))
  assert path.stat().st_size > 2 << 20
  assert np.array_equal(msgpack_file.read(path).tensors["a/b"].read(), array)
