"""open_clip as an oracle."""

import pathlib
import tempfile
from typing import Any

import numpy as np

import clip_jax.convert.formats.open_clip as open_clip_format
from clip_jax.convert import portable
from clip_jax.convert.formats import open_clip_files
from clip_jax.convert.verify import watching
from clip_jax.convert.verify.oracle import Oracle, Stages, complaint


def load(
  path: pathlib.Path,
  *,
  double: bool,
  spec: dict[str, Any],
  options: portable.Options,
) -> Oracle:
  """Loads a directory strictly, as open_clip's users do.

  A bare file, or a directory with other names, is laid out as open_clip takes
  it first: its config and its tensors, as they are.
  """
  del spec
  if open_clip_files.is_usual(path):
    return _load(path, double=double)
  with tempfile.TemporaryDirectory() as directory:
    usual = pathlib.Path(directory)
    # Written by the config and the names that it came with.
    open_clip_format.write(
      open_clip_format.read(path, options), usual, portable.Options()
    )
    return _load(usual, double=double)


def _load(path: pathlib.Path, *, double: bool) -> Oracle:
  import open_clip
  import torch

  model = open_clip.create_model(f"local-dir:{path}", precision="fp32")
  model = (model.double() if double else model).eval()

  def image_stages(images: np.ndarray) -> Stages:
    pixels = watching.channels_first(images, double)
    embeds = {}

    def run():
      features = model.encode_image(pixels, normalize=True)
      embeds["features"] = features.numpy()

    found = watching.watch(_image_parts(model.visual), run)
    return found | {"embedding": embeds["features"]}

  def text_stages(tokens: np.ndarray) -> Stages:
    ids = torch.from_numpy(np.asarray(tokens, np.int64))
    embeds = {}

    def run():
      embeds["features"] = model.encode_text(ids, normalize=True).numpy()

    found = watching.watch(_text_parts(model), run)
    return found | {"embedding": embeds["features"]}

  def logits(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    scale = model.logit_scale.detach().exp().numpy()
    bias = getattr(model, "logit_bias", None)
    shift = 0 if bias is None else bias.detach().numpy()
    return scale * image_embeds @ text_embeds.T + shift

  library = f"open_clip {open_clip.__version__}"
  inputs = _inputs(path, model)
  return Oracle(library, image_stages, text_stages, logits, **inputs)


def _inputs(path, model) -> dict[str, Any]:
  """Returns the fields of an oracle that prepare images and texts."""
  found: dict[str, Any] = {"missing": {}}
  for field, make in (("pixels", _pixels), ("tokens", _tokens)):
    try:
      found[field] = make(path, model)
    # Packages that are not there, files that are not, and what they raise.
    except Exception as error:
      reason = complaint(error)
      found["missing"][field] = f"open_clip cannot make it: {reason}"
  return found


def _pixels(path, model):
  del path
  import open_clip
  from torchvision import transforms  # As open_clip's transform does.

  assert transforms.Compose
  config = open_clip.transform.PreprocessCfg(
    **open_clip.get_model_preprocess_cfg(model)
  )
  process = open_clip.transform.image_transform_v2(config, is_train=False)

  def pixels(images: list) -> np.ndarray:
    arrays = [process(image).numpy() for image in images]
    return np.stack(arrays).transpose(0, 2, 3, 1)

  return pixels


def _tokens(path, model):
  del model
  import open_clip

  tokenize = open_clip.get_tokenizer(f"local-dir:{path}")

  def tokens(texts: list[str]) -> np.ndarray:
    return tokenize(texts).numpy()

  return tokens


def _image_parts(tower) -> list[tuple[str, Any]]:
  if hasattr(tower, "trunk"):  # timm's.
    return watching.blocks(getattr(tower.trunk, "blocks", ()))
  if hasattr(tower, "transformer"):
    return watching.blocks(tower.transformer.resblocks)
  stages = (getattr(tower, f"layer{i}") for i in range(1, 5))
  return [(f"stage {i}", stage) for i, stage in enumerate(stages, start=1)]


def _text_parts(model) -> list[tuple[str, Any]]:
  transformer = getattr(model, "transformer", None)
  if transformer is None:
    transformer = model.text.transformer
  if hasattr(transformer, "resblocks"):
    return watching.blocks(transformer.resblocks)
  return watching.blocks(transformer.encoder.layer)  # HuggingFace's BERT.
