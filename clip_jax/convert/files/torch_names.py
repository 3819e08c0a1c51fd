"""The Python names in a torch file, and the dtypes that they mean."""

REBUILD = "torch._utils._rebuild_tensor_v2"
# The function that has an explicit dtype, for dtypes without a storage class.
REBUILD_TYPED = "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
UNTYPED_STORAGE = "torch.storage.UntypedStorage"

# The name of a storage class, and its dtype in torch and here; a storage of
# bytes has none.
STORAGES = {
  UNTYPED_STORAGE: None,
  "torch.FloatStorage": "float32",
  "torch.DoubleStorage": "float64",
  "torch.HalfStorage": "float16",
  "torch.BFloat16Storage": "bfloat16",
  "torch.LongStorage": "int64",
  "torch.IntStorage": "int32",
  "torch.ShortStorage": "int16",
  "torch.CharStorage": "int8",
  "torch.ByteStorage": "uint8",
  "torch.BoolStorage": "bool",
}
# torch has no storage class for these dtypes; `_rebuild_tensor_v3` names them.
TYPED = {
  f"torch.{name}": name
  for name in (
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
  )
}
# Objects that training programs save beside the weights: options, paths, a best
# score. They become `Inert` objects, whose content is skipped.
INERT = frozenset(
  (
    "_codecs.encode",
    "argparse.Namespace",
    "lightning_fabric.utilities.data.AttributeDict",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "types.SimpleNamespace",
  )
)
NAMES = {
  *(REBUILD, REBUILD_TYPED, PARAMETER, ORDERED_DICT),
  *STORAGES,
  *TYPED,
  *INERT,
}
