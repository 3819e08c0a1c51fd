"""The verb `models`: lists the named models."""

import argparse
import importlib.resources
import json

from clip_jax import terminal
from clip_jax.cli import verb

COUNTS = "models.json"  # In assets; `tools/count_models.py` writes it.


def models(arguments: argparse.Namespace) -> verb.Answer:
  """Lists the named models from a file of counts, without importing JAX."""
  del arguments
  assets = importlib.resources.files("clip_jax") / "assets"
  payload = json.loads((assets / COUNTS).read_text("utf-8"))
  rows = [
    (
      entry["name"],
      terminal.quantity(entry["parameters"]),
      entry["image_size"],
      terminal.quantity(entry["flops_image"]),
      terminal.quantity(entry["flops_text"]),
    )
    for entry in payload
  ]
  header = ("name", "parameters", "image size", "FLOPs/image", "FLOPs/text")
  return verb.Answer(payload, terminal.table(header, rows))
