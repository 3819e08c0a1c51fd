"""HuggingFace transformers as an oracle: its models of two towers and BERT."""

import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable, tokenizer_files, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import huggingface_weights, sentence_transformers
from clip_jax.convert.verify import watching
from clip_jax.convert.verify.oracle import Oracle, Stages, complaint

_CLASSES = {
  "clip": "CLIPModel",
  "chinese_clip": "ChineseCLIPModel",
  "siglip": "SiglipModel",
  "siglip2": "Siglip2Model",
  "bert": "BertModel",
}
_CONFIGS = (
  "config.json",
  "preprocessor_config.json",
  "processor_config.json",
)
_TOKENIZER_FILES = (
  "tokenizer.json",
  "vocab.json",
  "vocab.txt",
  "spiece.model",
  "tokenizer.model",
)


def load(
  path: pathlib.Path,
  *,
  double: bool,
  spec: dict[str, Any],
  options: portable.Options,
) -> Oracle:
  """Loads a directory by `from_pretrained`.

  A bare file is laid beside its config first, under its names as they are.
  """
  if path.is_dir():
    return _load(path, double=double, spec=spec)
  config = pathlib.Path(options.config).expanduser()
  config = config if config.is_dir() else config.parent
  tensors = weights_file.read(path, options, report_lib.Report("")).tensors
  with tempfile.TemporaryDirectory() as directory:
    usual = pathlib.Path(directory)
    for name in (*_CONFIGS, *tokenizer_files.NAMES):
      if (config / name).is_file():
        shutil.copy(config / name, usual)
    safetensors_file.write(usual / huggingface_weights.WEIGHTS, tensors)
    return _load(usual, double=double, spec=spec)


def _load(path: pathlib.Path, *, double: bool, spec: dict[str, Any]) -> Oracle:
  import torch
  import transformers

  if sentence_transformers.recognise(path):
    path = sentence_transformers.model_directory(path)
  kind = json.loads((path / "config.json").read_text())["model_type"]
  if kind not in _CLASSES:
    raise errors.unknown("model_type", kind, _CLASSES)
  model = getattr(transformers, _CLASSES[kind]).from_pretrained(
    path,
    dtype=torch.float64 if double else torch.float32,
    attn_implementation="sdpa",  # Eager attention casts to float32.
    local_files_only=True,
  )
  model = model.eval()
  if kind == "chinese_clip":
    _restore_words(model, path)
  library = f"transformers {transformers.__version__}"
  inputs = _inputs(path, kind, spec)
  if kind == "bert":
    stages = _bert_stages(model, spec["text"])
    return Oracle(library, None, stages, None, **inputs)

  def image_stages(images: np.ndarray) -> Stages:
    tower = model.vision_model
    pixels = watching.channels_first(images, double)
    inputs = {"pixel_values": pixels}
    if kind == "siglip2":
      inputs = _patches(pixels, model.config.vision_config.patch_size)
    embeds = {}

    def run():
      features = model.get_image_features(**inputs)
      embeds["features"] = _pooled(features)

    found = watching.watch(watching.blocks(tower.encoder.layers), run)
    return found | {"embedding": watching.unit(embeds["features"].numpy())}

  def text_stages(tokens: np.ndarray) -> Stages:
    tower = model.text_model
    inputs = _tokens_and_mask(tokens, spec["text"])
    embeds = {}

    def run():
      embeds["features"] = _pooled(model.get_text_features(**inputs))

    encoder = tower.encoder
    layers = encoder.layer if kind == "chinese_clip" else encoder.layers
    found = watching.watch(watching.blocks(layers), run)
    return found | {"embedding": watching.unit(embeds["features"].numpy())}

  def logits(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    scale = model.logit_scale.detach().exp().numpy()
    bias = getattr(model, "logit_bias", None)
    shift = 0 if bias is None else bias.detach().numpy()
    return scale * image_embeds @ text_embeds.T + shift

  return Oracle(library, image_stages, text_stages, logits, **inputs)


def _restore_words(model, path) -> None:
  """Puts back the padding token's embedding.

  transformers 5.24 sets it to zero after it has loaded it, so that what its
  layers return at padding, which no other token sees, is of another model.
  """
  import torch

  name = "text_model.embeddings.word_embeddings.weight"
  tensors = weights_file.read(
    huggingface_weights.require(path),
    portable.Options(),
    report_lib.Report(""),
  ).tensors
  words = torch.from_numpy(tensors[name].read().astype(np.float64))
  with torch.no_grad():
    model.get_parameter(name).copy_(words)


def _inputs(path, kind, spec) -> dict[str, Any]:
  """Returns the fields of an oracle that prepare images and texts."""
  found: dict[str, Any] = {"missing": {}}
  for field, part, load_ in (
    ("pixels", "image", _pixels),
    ("tokens", "text", _tokens),
  ):
    if part not in spec:
      continue
    try:
      found[field] = load_(path, kind, spec)
    except _MissingError as error:
      found["missing"][field] = str(error)
    # transformers raises nearly any, for files and for packages.
    except Exception as error:
      reason = complaint(error)
      found["missing"][field] = f"transformers cannot make it: {reason}"
  return found


class _MissingError(Exception):
  """Why there is nothing to compare with."""


def _need_one_of(path, names) -> None:
  if not any((path / name).is_file() for name in names):
    raise _MissingError(f"the source has no {' or '.join(names)}")


def _pixels(path, kind, spec):
  """Returns the image processor that resizes with Pillow."""
  import transformers

  del spec
  _need_one_of(path, _CONFIGS[1:])
  if kind == "siglip2":
    raise _MissingError("a NaFlex processor keeps each image's shape")
  # The other backend resizes tensors, which needs torchvision and is not exact.
  process = transformers.AutoImageProcessor.from_pretrained(
    path, backend="pil", local_files_only=True
  )

  def pixels(images: list) -> np.ndarray:
    arrays = [
      process(image, return_tensors="np")["pixel_values"][0] for image in images
    ]
    return np.stack(arrays).transpose(0, 2, 3, 1)

  return pixels


def _tokens(path, kind, spec):
  import transformers

  del kind
  _need_one_of(path, _TOKENIZER_FILES)
  tokenize = transformers.AutoTokenizer.from_pretrained(
    path, local_files_only=True
  )

  def tokens(texts: list[str]) -> np.ndarray:
    return tokenize(
      texts,
      padding="max_length",
      truncation=True,
      max_length=spec["text"]["context_length"],
      return_tensors="np",
    )["input_ids"]

  return tokens


def _pooled(features):
  """Returns the embedding, which newer versions wrap in an output object."""
  return getattr(features, "pooler_output", features)


def _patches(pixels, patch_size: int) -> dict[str, Any]:
  """Cuts images into the flat patches that a NaFlex model takes."""
  import torch

  b, channels, h, w = pixels.shape
  rows, cols = h // patch_size, w // patch_size
  x = pixels[:, :, : rows * patch_size, : cols * patch_size]
  x = x.reshape(b, channels, rows, patch_size, cols, patch_size)
  x = x.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * cols, -1)
  return {
    "pixel_values": x,
    "pixel_attention_mask": torch.ones(b, rows * cols, dtype=torch.int64),
    "spatial_shapes": torch.tensor([[rows, cols]] * b),
  }


def _tokens_and_mask(tokens, text: dict[str, Any]) -> dict[str, Any]:
  """Returns the text inputs of a model; a BERT is told what is padding."""
  import torch

  ids = torch.from_numpy(np.asarray(tokens, np.int64))
  if text["kind"] != "bert":
    return {"input_ids": ids}
  mask = (ids != text["pad_id"]).to(torch.int64)
  return {"input_ids": ids, "attention_mask": mask}


def _bert_stages(model, description: dict[str, Any]):
  def stages(tokens: np.ndarray) -> Stages:
    inputs = _tokens_and_mask(tokens, description)
    mask = inputs["attention_mask"]
    out = {}

    def run():
      out["hidden"] = model(**inputs)

    found = watching.watch(watching.blocks(model.encoder.layer), run)
    hidden = out["hidden"].last_hidden_state.numpy()
    if description["pooling"] == "mean":
      weights = mask.numpy()[:, :, None]
      pooled = (hidden * weights).sum(1) / weights.sum(1).clip(1e-9)
    else:
      pooled = hidden[:, 0]
    if description["normalize"]:
      pooled = watching.unit(pooled)
    return found | {"pooled": pooled}

  return stages
