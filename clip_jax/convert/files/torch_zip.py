"""Reads and writes PyTorch's files (`.pt`, `.pth`, `.bin`), without PyTorch.

Since PyTorch 1.6 they are zip archives: one folder with `data.pkl`, which
describes the tensors, and `data/<key>` with their bytes; a TorchScript archive
also has code and constants. `state_pickle` reads the pickle without running any
code. The bytes are read when a tensor is used, and compared with the archive's
checksum then.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import errors, whole_files
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import (
  datafile,
  nested,
  state_pickle,
  state_pickle_writer,
  zip_directory,
)

_KIND = "a PyTorch archive"
# Kinds of files by their bytes at a position; None for those that are read.
_KINDS = (
  (0, zip_directory.MAGIC, None),
  (
    *(0, bytes.fromhex("80028a0a6cfc9c46f920")),
    "in the format of PyTorch before 1.6",
  ),
  (257, b"ustar", "a tar archive, the format of the first PyTorch versions"),
  (0, b"\x80", "a bare pickle, not an archive of tensors"),
)
_RE_SAVE = (
  "re-save it where PyTorch runs: torch.save(torch.load(path, "
  "weights_only=True), new_path)"
)
MAX_PICKLE_BYTES = 1 << 26

# Limits on the total size of a file's tensors, in bytes and relative to the
# file: few are tied, and a small file must not describe an endless conversion.
MAX_VIEW_BYTES = 1 << 30
MAX_VIEW_RATIO = 16


def read(
  path: str | os.PathLike, select: nested.Select = nested.flatten
) -> datafile.Contents:
  """Returns the tensors of a PyTorch file; reads only names, shapes and dtypes.

  Args:
    path: path of the file.
    select: chooses the state dict in the saved object, and its names.

  Raises:
    UserError: the file is of another kind; the message says how to re-save it.
    DamagedError: the file is inconsistent.
  """
  file = datafile.DataFile(path)
  with datafile.checked(file.path, _KIND):
    _refuse_other_kinds(file)
    source = _Source(file)
    state = source.unpickle("data.pkl")
    if not isinstance(state, dict):
      raise ValueError(f"it holds a {type(state).__name__}, no state dict")
    tensors = source.bind(select(state, "."), "data")
    constants = {}
    if source.torchscript and source.has("constants.pkl"):
      flat = nested.flatten(source.unpickle("constants.pkl"), ".")
      constants = source.bind(
        {f"c{name}": leaf for name, leaf in flat.items()}, "constants"
      )
  return datafile.Contents(tensors, source.torchscript, constants)


def _refuse_other_kinds(file: datafile.DataFile) -> None:
  head = file.read(0, min(file.size, 512))
  for at, magic, what in _KINDS:
    if head[at:].startswith(magic):
      if what is None:
        return
      raise errors.UserError(
        f"{file.path} is {what}, which is not read here; {_RE_SAVE}."
      )
  raise datafile.damaged(file.path, "it is no zip archive, as PyTorch makes")


class _Source:
  """An archive's entries, and the tensors in them."""

  def __init__(self, file: datafile.DataFile):
    self.file = file
    self.entries = zip_directory.read(file)
    tops = [n for n in self.entries if n.endswith("/data.pkl")]
    tops = [n.partition("/")[0] for n in tops if n.count("/") == 1]
    if len(tops) != 1:
      raise ValueError(
        f"the archive has {len(tops)} entries FOLDER/data.pkl instead of one"
      )
    self.top = tops[0]
    self.torchscript = any(
      name.startswith(f"{self.top}/code/") for name in self.entries
    )
    self.byteorder = self._byteorder()
    self._checked: set[str] = set()
    self._bound: dict[tuple, tensor_lib.Tensor] = {}
    self._budget = max(MAX_VIEW_BYTES, MAX_VIEW_RATIO * file.size)

  def has(self, name: str) -> bool:
    return f"{self.top}/{name}" in self.entries

  def entry(self, name: str) -> zip_directory.Entry:
    entry = self.entries.get(f"{self.top}/{name}")
    if entry is None:
      raise ValueError(f"the archive has no entry {name!r:.100}")
    if entry.compressed:
      raise errors.UserError(
        f"{self.file.path} was packed again: its entry {entry.name!r} is "
        f"compressed, PyTorch stores it as it is; {_RE_SAVE}."
      )
    return entry

  def _byteorder(self) -> str:
    if not self.has("byteorder"):
      return "little"  # Archives made before PyTorch 2.1 do not say it.
    entry = self.entry("byteorder")
    if entry.size > 16:
      raise ValueError("the byte order is unknown")
    order = zip_directory.content(self.file, entry).tobytes()
    if order not in (b"little", b"big"):
      raise ValueError(f"the byte order is {order!r}")
    return order.decode()

  def unpickle(self, name: str) -> Any:
    entry = self.entry(name)
    if entry.size > MAX_PICKLE_BYTES:
      raise ValueError(f"{name} has {entry.size} bytes")
    data = zip_directory.content(self.file, entry).tobytes()
    try:
      return state_pickle.load(data, torchscript=self.torchscript)
    except state_pickle.RefusedError as error:
      raise errors.UserError(
        f"{self.file.path} is refused: it needs {error}, which a checkpoint of "
        "tensors does not need. No code of it was run. If it is a whole "
        "pickled model or a training state, re-save its weights in the program "
        "that made it: torch.save(model.state_dict(), path)."
      ) from None

  def bind(
    self, leaves: dict[str, Any], folder: str
  ) -> dict[str, tensor_lib.Tensor]:
    """Returns the tensors among the leaves of a pickle."""
    tensors = {}
    for name, leaf in leaves.items():
      if isinstance(leaf, state_pickle.View):
        with datafile.about(f"tensor {name!r}"):
          tensors[name] = self._tensor(leaf, folder)
    return tensors

  def _tensor(self, view: state_pickle.View, folder: str) -> tensor_lib.Tensor:
    """Returns the tensor of a view; tied views share one tensor."""
    dtype = np.dtype(view.dtype)
    size = datafile.byte_count(view.shape, dtype)
    entry = self.entry(f"{folder}/{view.storage.key}")
    stored = view.storage.count
    if view.storage.dtype is not None:
      stored *= np.dtype(view.storage.dtype).itemsize
    if stored != entry.size:
      raise ValueError(
        f"its storage has {stored} bytes, the archive {entry.size}"
      )
    span = _span(view) * dtype.itemsize
    start = view.offset * dtype.itemsize
    if start < 0 or start + span > entry.size:
      raise ValueError(
        f"it takes bytes {start} to {start + span} of {entry.size}"
      )
    self._budget -= span
    if self._budget < 0:
      raise ValueError("the file's tensors overlap too much")
    key = (entry.name, view.dtype, view.offset, view.shape, view.stride)
    if key not in self._bound:
      whole = size == span == entry.size
      self._bound[key] = tensor_lib.Tensor(
        view.shape, dtype, lambda: self._read(view, entry, dtype, whole)
      )
    return self._bound[key]

  def _read(self, view, entry, dtype, whole: bool) -> np.ndarray:
    with datafile.checked(self.file.path, _KIND):
      if whole:
        raw = zip_directory.content(self.file, entry)
      else:
        if entry.name not in self._checked:
          zip_directory.check(self.file, entry)
          self._checked.add(entry.name)
        raw = self.file.read_array(
          entry.offset + view.offset * dtype.itemsize,
          _span(view) * dtype.itemsize,
        )
      if self.byteorder == "big" and dtype.itemsize > 1:
        raw = raw.view(f"u{dtype.itemsize}").byteswap().view(np.uint8)
      if not raw.size:
        return np.zeros(view.shape, dtype)
      flat = datafile.as_array(raw, (raw.size // dtype.itemsize,), dtype)
      strides = tuple(step * dtype.itemsize for step in view.stride)
      # numpy checks again that every element is inside of the buffer.
      array = np.ndarray(view.shape, dtype, flat, strides=strides)
      return array if array.flags.c_contiguous else array.copy("C")


def _span(view: state_pickle.View) -> int:
  """Returns the number of elements from a view's first to its last one.

  Raises:
    ValueError: elements overlap, or a stride is negative.
  """
  if view.offset < 0 or any(step < 0 for step in view.stride):
    raise ValueError("a tensor has a negative stride or offset")
  if 0 in view.shape:
    return 0
  last = 0
  axes = zip(view.stride, view.shape, strict=True)
  for step, length in sorted(axis for axis in axes if axis[1] > 1):
    # The stride of an axis must exceed the span of the axes with smaller ones.
    if step <= last:
      raise ValueError("a tensor's elements overlap (an expanded view)")
    last += step * (length - 1)
  return last + 1


def write(
  path: str | os.PathLike, tensors: Mapping[str, tensor_lib.Tensor]
) -> None:
  """Writes a state dict that `torch.load(path, weights_only=True)` reads.

  One tensor is in memory at a time, and the same tensors give the same bytes.
  Names that share one `Tensor` share a storage, as tied parameters do.
  """
  # A tensor with several names gets one storage.
  keys = {id(tensor): "" for tensor in tensors.values()}
  keys = {identity: str(key) for key, identity in enumerate(keys)}
  storages = {keys[id(tensor)]: tensor for tensor in tensors.values()}
  header = state_pickle_writer.dump(
    {
      name: (keys[id(tensor)], tensor.dtype.name, tensor.shape)
      for name, tensor in tensors.items()
    }
  )
  data = (
    (f"archive/data/{key}", datafile.tensor_bytes(tensor), tensor.nbytes)
    for key, tensor in storages.items()
  )
  entries = [
    ("archive/data.pkl", [header], len(header)),
    ("archive/byteorder", [b"little"], len(b"little")),
    *data,
    ("archive/version", [b"3\n"], len(b"3\n")),
  ]
  with whole_files.replacing(pathlib.Path(path)) as file:
    zip_directory.write(file, entries)
