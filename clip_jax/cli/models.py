"""The verb that lists the named models."""

import argparse

from clip_jax import terminal
from clip_jax.cli import flags, verb


def models(arguments: argparse.Namespace) -> verb.Answer:
  """Lists the named models; nothing is computed."""
  del arguments
  from clip_jax.models import flops, variants

  payload = []
  for name in variants.VARIANTS:
    model = variants.create_model(name)
    sizes = flops.tower_sizes(model)
    payload.append(
      {
        "name": name,
        "parameters": flops.parameter_count(model, sizes),
        "image_size": model.image.image_size,
        "flops_image": sizes["image"].flops,
        "flops_text": sizes["text"].flops,
      }
    )
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


VERBS = {
  "models": verb.Verb("list the named models", flags.add_json, models),
}
