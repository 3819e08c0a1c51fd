"""open_clip as an oracle."""

import pathlib
import tempfile
from typing import Any

import numpy as np

import clip_jax.convert.formats.open_clip as open_clip_format
from clip_jax.convert.formats import open_clip_files
from clip_jax.convert.verify.oracle import (
  Checkpoint,
  Oracle,
  Tower,
  image_tower,
  make_inputs,
)


def load(source: Checkpoint) -> Oracle:
  """Loads a directory strictly, as open_clip's users do.

  A file of weights alone, or a directory with other file names, is first
  written to a directory as open_clip expects it, with its config and its
  tensors unchanged.
  """
  if open_clip_files.is_usual(source.path):
    return _load(source.path, double=source.double)
  with tempfile.TemporaryDirectory() as directory:
    usual = pathlib.Path(directory)
    # Written by the config and the names that it came with.
    open_clip_format.write(
      open_clip_format.read(source.path, source.options), usual
    )
    return _load(usual, double=source.double)


def _load(path: pathlib.Path, *, double: bool) -> Oracle:
  import open_clip

  model: Any = open_clip.create_model(f"local-dir:{path}", precision="fp32")
  model = (model.double() if double else model).eval()
  transformer = getattr(model, "transformer", None)
  if transformer is None:
    transformer = model.text.transformer
  is_bert = not hasattr(transformer, "resblocks")  # HuggingFace's.
  towers = {
    "image": image_tower(
      model.visual,
      run=lambda x: {"embedding": model.encode_image(x, normalize=True)},
    ),
    "text": Tower(
      transformer.encoder.layer if is_bert else transformer.resblocks,
      lambda ids: {"embedding": model.encode_text(ids, normalize=True)},
    ),
  }

  def make_pixels():
    from torchvision import transforms  # type: ignore  # As open_clip's transform does.

    assert transforms.Compose
    config = open_clip.transform.PreprocessCfg(
      **open_clip.get_model_preprocess_cfg(model)
    )
    process: Any = open_clip.transform.image_transform_v2(
      config, is_train=False
    )
    return lambda images: np.stack(
      [process(image).numpy().transpose(1, 2, 0) for image in images]
    )

  def make_tokens():
    tokenize = open_clip.get_tokenizer(f"local-dir:{path}")
    return lambda texts: tokenize(texts).numpy()

  inputs = make_inputs("open_clip", pixels=make_pixels, tokens=make_tokens)
  return Oracle(f"open_clip {open_clip.__version__}", towers, model, **inputs)
