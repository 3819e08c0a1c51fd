"""Finds the config and the weights of an OpenCLIP model.

A directory has `open_clip_config.json` beside weights. Other names are accepted
if there is only one choice. For a file of weights alone, the user gives the
config, as a file or by the name of a model.
"""

import dataclasses
import os
import pathlib
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, portable, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import open_clip_config, timm_vit
from clip_jax.convert.source_reading import SourceReading
from clip_jax.models import other_families, variants

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# In the order in which open_clip prefers them (`_find_checkpoint_in_dir`).
PREFERRED = (
  WEIGHTS,
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
  "open_clip_pytorch_model.pth",
  "model.safetensors",
  "pytorch_model.bin",
  "pytorch_model.pth",
  "model.pth",
)
_TOWERS = ("vision_cfg", "text_cfg")
_MAX_CONFIG_BYTES = 1 << 17  # Tokenizers' files are larger.


@dataclasses.dataclass(frozen=True)
class Files:
  """The config and files of an OpenCLIP model.

  Attributes:
    config: the content of `open_clip_config.json`, with "model_cfg".
    where: the config's name in messages.
    weights: the file of weights.
    configs: files that the config was read from, if any.
    directories: where to look for a tokenizer or a BERT's config, in order.
    spec: for a named model, fields of the description that a config does not
      say.
  """

  config: dict[str, Any]
  where: str
  weights: pathlib.Path
  configs: tuple[pathlib.Path, ...]
  directories: tuple[pathlib.Path, ...]
  spec: dict[str, Any] = dataclasses.field(default_factory=dict)


def is_config(data: dict[str, Any]) -> bool:
  """Whether a JSON object is OpenCLIP's config, or its model_cfg alone."""
  model = data.get("model_cfg", data)
  return isinstance(model, dict) and all(key in model for key in _TOWERS)


def find_configs(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the config by its usual name, or else all by their content."""
  if (directory / CONFIG).is_file():
    return [directory / CONFIG]
  return [
    path
    for path in sorted(directory.glob("*.json"))
    if path.is_file()
    and path.stat().st_size <= _MAX_CONFIG_BYTES
    and is_config(config_file.peek(path))
  ]


def find_config(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns the only config in a directory, None if there is none.

  Raises:
    UserError: there are several.
  """
  found = find_configs(directory)
  if len(found) > 1:
    raise errors.UserError(
      f"{directory} has several configs of OpenCLIP: "
      f"{_names(found)}. Leave the one of the weights, or name it {CONFIG}."
    )
  return found[0] if found else None


def is_usual(path: pathlib.Path) -> bool:
  """Whether open_clip itself can load a directory as it is."""
  return "model_cfg" in config_file.peek(path / CONFIG) and any(
    (path / name).is_file() for name in PREFERRED
  )


def find(path: pathlib.Path, reading: SourceReading) -> Files:
  """Returns the config and files of a model, given a directory or a file.

  Raises:
    UserError: a file is missing, or there are several.
    AmbiguousError: it is a file, and the options have no config.
  """
  given, report = reading.options.config, reading.report
  if path.is_dir():
    file = find_config(path)
    if file is None:
      raise errors.UserError(f"{path} has no {CONFIG}.")
    weights = _find_weights(path, report)
    return Files(read_config(file), str(file), weights, (file,), (path,))
  if given is None:
    raise errors.AmbiguousError(
      f"{path} holds weights under OpenCLIP's names and does not say which "
      "model they are of.",
      flags="--config FILE (open_clip_config.json, or the model's JSON of "
      "open_clip) or --config NAME (such as ViT-B-16-SigLIP)",
    )
  file = pathlib.Path(os.path.expanduser(given))
  # Path.is_dir raises on names that are long.
  if os.path.isdir(file):
    file = find_config(file) or file / CONFIG
  if os.path.isfile(file):
    report.infer("config", str(file), "flag")
    beside = (file.parent, path.parent)
    return Files(read_config(file), str(file), path, (file,), beside)
  if given not in variants.VARIANTS:
    near = errors.nearest(given, variants.VARIANTS)
    listed = f"Nearest of {len(variants.VARIANTS)} names: {', '.join(near)}."
    raise errors.UserError(
      f"--config {given} is neither a file nor the name of a model. "
      f"{other_families.sentence(given) or listed}"
    )
  report.infer("config", given, "flag")
  spec = named(given, reading.options)
  if spec["image_mean"] != variants.DEFAULTS["image_mean"]:
    report.warnings.append(
      f"Images are preprocessed as for the published {given}. If the model was "
      "trained from scratch by open_clip, whose default is OpenAI's mean and "
      "deviation, give its config with its preprocess_cfg by --config FILE."
    )
  model = portable.Portable(spec, {}, report)
  config = open_clip_config.configure(model)
  return Files(config, given, path, (), (path.parent,), spec)


def read_config(file: pathlib.Path) -> dict[str, Any]:
  """Returns the config of a file, which may be the "model_cfg" alone."""
  data = config_file.read(file)
  if "model_cfg" not in data and is_config(data):
    return {"model_cfg": data}
  return data


def named(name: str, options: portable.Options) -> dict[str, Any]:
  """Returns the description of open_clip's model of a name.

  Raises:
    AmbiguousError: OpenAI's model of that name has another activation.
  """
  spec = variants.spec(name)
  if f"{name}-gelu" in variants.VARIANTS and options.activation is None:
    raise errors.AmbiguousError(
      f"{name} has QuickGELU as OpenAI released it, and GELU in open_clip.",
      flags=f"--config {name}-quickgelu or --config {name}-gelu",
    )
  if "SigLIP" in name:  # open_clip has timm's activations, not big_vision's.
    tanh = "SigLIP2" in name
    text = {**spec["text"], "activation": "gelu_tanh" if tanh else "gelu"}
    image = dict(spec["image"])
    for activation in ("gelu", "gelu_tanh"):
      image["activation"] = activation
      if timm_vit.find(image, at_creation=spec["image_projection"] == "none"):
        break
    spec = {**spec, "image": image, "text": text}
  return spec


def _find_weights(
  path: pathlib.Path, report: report_lib.Report
) -> pathlib.Path:
  """Returns the file of weights that open_clip would load, or the only one.

  Raises:
    UserError: no file has weights, or several with unusual names do.
  """
  found = [path / name for name in PREFERRED if (path / name).is_file()]
  if found:
    if others := [other.name for other in found[1:]]:
      report.warnings.append(
        f"{found[0].name} was read, as open_clip does, and not "
        f"{', '.join(others)}."
      )
    return found[0]
  others = list(filter(weights_file.is_one, sorted(path.iterdir())))
  if len(others) == 1:
    return others[0]
  if others:
    raise errors.UserError(
      f"{path} has several files of weights: {_names(others)}. Give one of "
      "them as the source of `clip-jax convert`, with --config and the "
      "config's file."
    )
  raise errors.UserError(
    f"{path} has no weights: open_clip takes {', '.join(PREFERRED)}, and any "
    f"other name ending in {', '.join(weights_file.SUFFIXES)} is read where "
    f"it is the only one; found {_names(sorted(path.iterdir()))}."
  )


def _names(paths) -> str:
  return report_lib.shown([path.name for path in paths], 5)
