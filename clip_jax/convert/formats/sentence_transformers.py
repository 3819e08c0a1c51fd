"""Reads sentence-transformers' directories: a BERT or a CLIP."""

import pathlib
import posixpath

from clip_jax import errors, json_text, regular_files
from clip_jax.convert import adapters, config_file, portable
from clip_jax.convert.engine import kinds
from clip_jax.convert.engine.format import Format
from clip_jax.convert.files import datafile
from clip_jax.convert.formats import bert, huggingface
from clip_jax.convert.source_reading import SourceReading

NAME = "sentence-transformers"
MODULES = "modules.json"
_CLIP = "CLIPModel"
_HELD = tuple(
  (*model, *after)
  for model in (("Transformer", "Pooling"), (_CLIP,))
  for after in ((), ("Normalize",))
)
_MODE = "pooling_mode_"
# Their names of poolings to ours, as flags and, since version 5, as one word.
_POOLINGS = {
  **{"cls_token": "cls", "cls": "cls"},
  **{"mean_tokens": "mean", "mean": "mean"},
}
_LENGTH = kinds.checked(
  "a number of tokens that leaves room for text, 3 or more, or null",
  lambda x: x is None or (type(x) is int and x >= 3),
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with a list of modules."""
  return (path / MODULES).is_file()


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model: a BERT with its pooling, or the CLIP of a `CLIPModel`.

  Raises:
    UserError: it has other modules, or a pooling that is not supported.
  """
  modules, directories = _modules(path)
  normalize = "Normalize" in modules
  if modules[0] == _CLIP:
    model = huggingface.read(directories[0], options)
    if normalize:
      model.report.warnings.append(
        f"{MODULES} ends in Normalize: embeddings have unit length here, too."
      )
    return model
  reading = SourceReading(str(path), NAME, options)
  report = reading.report
  pooling = _pooling(directories[1] / bert.CONFIG)
  report.infer("text.pooling", pooling, "config")
  report.infer("text.normalize", normalize, "config")
  if normalize:
    report.warnings.append(
      f"{MODULES} ends in Normalize, and so does the text tower: its vectors "
      "have unit length. Before a projection without a bias, and a norm after "
      "it, this changes no embedding."
    )
  file = directories[0] / "sentence_bert_config.json"
  settings = reading.config(
    config_file.read(file) if file.exists() else {},
    {"do_lower_case": False, "max_seq_length": None},
    {"": str(file)},
  )
  lower = settings.read("do_lower_case", kinds.FLAG)
  return bert.read_tower(
    directories[0],
    reading,
    pooling=pooling,
    normalize=normalize,
    context_length=settings.read("max_seq_length", _LENGTH),
    cleaning="lower" if lower else None,
  )


def model_directory(path: pathlib.Path) -> pathlib.Path:
  """Returns the directory of the first module, which is the model."""
  return _modules(path)[1][0]


def _modules(path: pathlib.Path) -> tuple[list[str], list[pathlib.Path]]:
  """Returns the types of the modules, and their directories."""
  with datafile.checked(path / MODULES, "a JSON file"):
    listed = json_text.read(path / MODULES, kind=list)
  if not all(isinstance(module, dict) for module in listed):
    raise errors.DamagedError(
      f"{path / MODULES} must hold a list of objects; fetch or make it again."
    )
  modules = [str(module.get("type", "")).split(".")[-1] for module in listed]
  given = [module.get("path") for module in listed]
  # Written by hand, a name may be "./0_CLIPModel/".
  names = [posixpath.normpath(x) if isinstance(x, str) else ".." for x in given]
  if not all(
    name == "." or regular_files.is_plain_name(name) for name in names
  ):
    raise errors.DamagedError(
      f"{path / MODULES} names a directory that is not in its own; fetch or "
      "make it again."
    )
  directories = [path / name for name in names]
  if directories:
    adapters.refuse(directories[0])
  if modules[:1] == ["Transformer"] and huggingface.recognise(directories[0]):
    modules[0] = _CLIP  # As newer versions write it.
  if tuple(modules) not in _HELD:
    raise errors.UserError(
      f"{path / MODULES} lists {', '.join(modules) or 'nothing'}; supported "
      "are a Transformer and a Pooling, or a CLIPModel, and a Normalize after "
      "them, but not a Dense or other modules."
    )
  # The model may lie at the root, whatever the list says.
  if not (directories[0] / bert.CONFIG).exists():
    directories[0] = path
  return modules, directories


def _pooling(path: pathlib.Path) -> str:
  config = config_file.read(path)
  modes = [
    key.removeprefix(_MODE)
    for key, value in config.items()
    if key.startswith(_MODE) and value is True
  ]
  words = config.get("pooling_mode")
  if isinstance(words, str | list):
    modes.extend([words] if isinstance(words, str) else map(str, words))
  if len(modes) != 1 or modes[0] not in _POOLINGS:
    raise errors.UserError(
      f"{path} has the poolings {', '.join(modes) or 'none'}; it must be "
      "exactly one of mean_tokens and cls_token."
    )
  return _POOLINGS[modes[0]]


FORMAT = Format(NAME, read, recognise=recognise)
