"""Writes what `clip-jax models` lists; run it after a variant changed."""

import json
import pathlib
from typing import Any

import clip_jax
from clip_jax import names
from clip_jax.cli.commands import models
from clip_jax.convert import engine
from clip_jax.convert.formats.table import FORMATS
from clip_jax.models import flops, variants


def formats(name: str) -> list[str]:
  """Returns the formats that a model of this name can be written in."""
  spec = json.loads(json.dumps(engine.resolve(variants.spec(name))))
  return [x for x in names.TARGETS if not FORMATS[x].refusals(spec)]


def count(name: str) -> dict[str, Any]:
  """Returns the size of a named model, by tracing it."""
  model = variants.create_model(name)
  return {
    "name": name,
    "parameters": variants.parameter_count(model),
    "image_size": model.image.image_size,
    "flops_image": flops.image_flops(model),
    "flops_text": flops.text_flops(model),
    "formats": formats(name),
  }


if __name__ == "__main__":
  assets = pathlib.Path(clip_jax.__file__).parent / "assets"
  text = json.dumps([count(name) for name in variants.VARIANTS], indent=2)
  (assets / models.COUNTS).write_text(text + "\n", "utf-8")
