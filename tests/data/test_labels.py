"""Which classes an image is of, as its label file says."""

import io

import numpy as np
import pytest

from clip_jax.data import sources
from clip_jax.data.sources import captions


def _npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32, ">i2"])
def test_an_array_of_marks_names_the_classes(dtype):
  marks = _npy(np.array([0, 1, 0, 1], dtype))
  assert captions.labels_from(marks, key="k", classes=4) == (1, 3)


def _with_header(header):
  text = header.encode().ljust(118) + b"\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
  "data",
  [
    _npy(np.array([0, 2])),
    _npy(np.zeros((2, 2))),
    _npy(np.array(["a"])),
    _npy(np.zeros(3))[:-1],
    _npy(np.zeros(3)) + b"x",
    b"\x93NUMPY",
    # A claim of 80 PB, a header that is cut, and one that is no header.
    _with_header(
      f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**16},), }}"
    ),
    _with_header("{'descr': '<i8', 'shape': (3,"),
    _with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
    _with_header("[" * 100),
  ],
)
def test_an_array_that_is_none_is_a_bad_record(data):
  with pytest.raises(sources.BadRecord, match="bad_label"):
    captions.labels_from(data, key="k", classes=None)
