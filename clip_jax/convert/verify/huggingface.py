"""HuggingFace transformers as an oracle: models of two towers, and BERT."""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable, tokenizer_files
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import (
  huggingface,
  huggingface_weights,
  sentence_transformers,
)
from clip_jax.convert.verify.oracle import (
  Checkpoint,
  MissingError,
  Oracle,
  Tower,
  make_inputs,
  unit,
)

_CLASSES = {
  "clip": "CLIPModel",
  "metaclip_2": "MetaClip2Model",
  "chinese_clip": "ChineseCLIPModel",
  "siglip": "SiglipModel",
  "siglip2": "Siglip2Model",
  "bert": "BertModel",
}
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = (
  *(tokenizer_files.FAST, tokenizer_files.VOCAB, tokenizer_files.WORDS),
  *tokenizer_files.SENTENCEPIECE,
)


def load(source: Checkpoint) -> Oracle:
  """Loads a directory by `from_pretrained`.

  A file of weights alone is first written to a directory with its config, with
  its tensors' names unchanged.
  """
  if source.path.is_dir():
    return _load(source)
  assert source.options.config, "a bare file was read with it"
  config = huggingface.config_directory(source.options.config)
  with tempfile.TemporaryDirectory() as directory:
    usual = pathlib.Path(directory)
    for name in (*_CONFIGS, *tokenizer_files.NAMES):
      if (config / name).is_file():
        shutil.copy(config / name, usual)
    weights = usual / huggingface_weights.WEIGHTS
    safetensors_file.write(weights, source.tensors())
    there = dataclasses.replace(source, path=usual, options=portable.Options())
    return _load(there)


def _load(source: Checkpoint) -> Oracle:
  import torch
  import transformers

  path, spec = source.path, source.spec
  if sentence_transformers.recognise(path):
    path = sentence_transformers.model_directory(path)
  kind = json.loads((path / "config.json").read_text())["model_type"]
  if kind not in _CLASSES:
    raise errors.UserError(
      f"{source.path} has model_type {kind!r}, which is not compared; these "
      f"are: {', '.join(sorted(_CLASSES))}."
    )
  model = getattr(transformers, _CLASSES[kind]).from_pretrained(
    path,
    dtype=torch.float64 if source.double else torch.float32,
    attn_implementation="sdpa",  # Eager attention casts to float32.
    local_files_only=True,
  )
  model = model.eval()
  if kind == "chinese_clip":
    _restore_words(model, source.tensors(huggingface_weights.require(path)))
  library = f"transformers {transformers.__version__}"
  makers: dict[str, Callable[[], Callable[[list], np.ndarray]]] = {}
  if "image" in spec:
    makers["pixels"] = lambda: _pixels(path, kind)
  if "text" in spec:
    makers["tokens"] = lambda: _tokens(path, spec["text"]["context_length"])
  inputs = make_inputs("transformers", **makers)
  if kind == "bert":
    layers = model.encoder.layer
    text = Tower(layers, lambda ids: _pooled_bert(model, ids, spec["text"]))
    return Oracle(library, {"text": text}, **inputs)

  def run_image(pixels):
    inputs = {"pixel_values": pixels}
    if kind == "siglip2":
      inputs = _patches(pixels, model.config.vision_config.patch_size)
    return {"embedding": unit(_embedding(model.get_image_features(**inputs)))}

  def run_text(ids):
    inputs = _ids_and_mask(ids, spec["text"])
    return {"embedding": unit(_embedding(model.get_text_features(**inputs)))}

  encoder = model.text_model.encoder
  layers = encoder.layer if kind == "chinese_clip" else encoder.layers
  towers = {
    "image": Tower(model.vision_model.encoder.layers, run_image),
    "text": Tower(layers, run_text),
  }
  return Oracle(library, towers, model, **inputs)


def _restore_words(model, tensors) -> None:
  """Restores the padding token's embedding.

  transformers 5.24 sets it to zero after loading, so that its layers' outputs
  at padding would differ (no other token sees them).
  """
  import torch

  name = "text_model.embeddings.word_embeddings.weight"
  words = torch.from_numpy(tensors[name].read().astype(np.float64))
  with torch.no_grad():
    model.get_parameter(name).copy_(words)


def _need_one_of(path, names) -> None:
  if not any((path / name).is_file() for name in names):
    raise MissingError(f"the source has no {' or '.join(names)}")


def _pixels(path, kind):
  """Returns the image processor that resizes with Pillow."""
  import transformers

  _need_one_of(path, _CONFIGS[1:])
  if kind == "siglip2":
    raise MissingError("a NaFlex processor keeps each image's shape")
  # The other backend resizes tensors; that needs torchvision and is not exact.
  process = transformers.AutoImageProcessor.from_pretrained(
    path, backend="pil", local_files_only=True
  )

  def pixels(images: list) -> np.ndarray:
    arrays = [
      process(image, return_tensors="np")["pixel_values"][0] for image in images
    ]
    return np.stack(arrays).transpose(0, 2, 3, 1)

  return pixels


def _tokens(path, context_length):
  import transformers

  _need_one_of(path, _TOKENIZER_FILES)
  tokenize = transformers.AutoTokenizer.from_pretrained(
    path, local_files_only=True
  )
  return lambda texts: tokenize(
    texts,
    padding="max_length",
    truncation=True,
    max_length=context_length,
    return_tensors="np",
  )["input_ids"]


def _embedding(features):
  """Returns the embedding, which newer versions return in an output object."""
  return getattr(features, "pooler_output", features)


def _patches(pixels, patch_size: int) -> dict[str, Any]:
  """Returns images as the flat patches that a NaFlex model takes."""
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


def _ids_and_mask(ids, text: dict[str, Any]) -> dict[str, Any]:
  """Returns a model's text inputs; a BERT's have a mask of padding."""
  if text["kind"] != "bert":
    return {"input_ids": ids}
  return {"input_ids": ids, "attention_mask": (ids != text["pad_id"]).long()}


def _pooled_bert(model, ids, text: dict[str, Any]) -> dict[str, Any]:
  """Returns a BERT's last layer, pooled as its description says."""
  inputs = _ids_and_mask(ids, text)
  hidden = model(**inputs).last_hidden_state
  pooled = hidden[:, 0]
  if text["pooling"] == "mean":
    weights = inputs["attention_mask"][:, :, None].double()
    pooled = (hidden * weights).sum(1) / weights.sum(1).clip(1e-9)
  return {"pooled": unit(pooled) if text["normalize"] else pooled}
