"""The verb `models`: lists the named models."""

import argparse
import importlib.resources
import json

from clip_jax import errors, terminal
from clip_jax.cli import verb

COUNTS = "models.json"  # In assets; `tools/count_models.py` writes it.


def models(arguments: argparse.Namespace) -> verb.Answer:
  """Lists named models from a file of counts, without importing JAX."""
  assets = importlib.resources.files("clip_jax") / "assets"
  payload = json.loads((assets / COUNTS).read_text("utf-8"))
  text, most = arguments.filter, arguments.max_parameters
  payload = [
    entry
    for entry in payload
    if (text is None or errors.plain(text) in errors.plain(entry["name"]))
    and (most is None or entry["parameters"] <= most)
    and (arguments.format in (None, *entry["formats"]))
  ]
  if not payload:
    raise errors.UserError(
      "No named model is like this; `clip-jax models` lists them all."
    )
  rows = [
    (
      entry["name"],
      terminal.quantity(entry["parameters"]),
      entry["image_size"],
      terminal.quantity(entry["flops_image"]),
      terminal.quantity(entry["flops_text"]),
      " ".join(entry["formats"]),
    )
    for entry in payload
  ]
  header = ("name", "parameters", "image size", "FLOPs/image", "FLOPs/text")
  header += ("formats",)
  return verb.Answer(payload, terminal.table(header, rows))
