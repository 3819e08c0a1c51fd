"""Writes what `clip-jax models` lists; run it after a variant changed."""

import json
import pathlib
from typing import Any

import clip_jax
from clip_jax.cli.commands import models
from clip_jax.models import flops, variants


def count() -> list[dict[str, Any]]:
  """Returns the size of every named model, by tracing it."""
  counted = []
  for name in variants.VARIANTS:
    model = variants.create_model(name)
    sizes = flops.tower_sizes(model)
    counted.append(
      {
        "name": name,
        "parameters": flops.parameter_count(model, sizes),
        "image_size": model.image.image_size,
        "flops_image": sizes["image"].flops,
        "flops_text": sizes["text"].flops,
      }
    )
  return counted


if __name__ == "__main__":
  assets = pathlib.Path(clip_jax.__file__).parent / "assets"
  text = json.dumps(count(), indent=2)
  (assets / models.COUNTS).write_text(text + "\n", "utf-8")
