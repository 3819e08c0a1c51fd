"""Our parameters by the names, and in the layout, of transformers' models."""

import jax
import numpy as np


def norm(name, ours):
  return {f"{name}.weight": ours["scale"], f"{name}.bias": ours["bias"]}


def dense(name, ours):
  """A dense layer, whose several axes on a side become one."""
  bias = np.asarray(ours["bias"])
  width = ours["kernel"].size // bias.size
  kernel = np.asarray(ours["kernel"]).reshape(width, bias.size)
  return {f"{name}.weight": kernel.T, f"{name}.bias": bias.reshape(-1)}


def encoder(prefix, blocks):
  """The stacked blocks of a tower of CLIP or SigLIP."""
  tensors = {}
  for i in range(blocks["ln_1"]["bias"].shape[0]):
    block = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
    layer = f"{prefix}.encoder.layers.{i}"
    tensors |= norm(f"{layer}.layer_norm1", block["ln_1"])
    tensors |= norm(f"{layer}.layer_norm2", block["ln_2"])
    for name, projection in block["attention"].items():
      short = "out" if name == "out" else name[0]
      tensors |= dense(f"{layer}.self_attn.{short}_proj", projection)
    tensors |= dense(f"{layer}.mlp.fc1", block["mlp"]["fc_in"])
    tensors |= dense(f"{layer}.mlp.fc2", block["mlp"]["fc_out"])
  return tensors


def tower_config(fields, **more):
  """The fields of a tower's config in transformers."""
  return {
    "hidden_size": fields["width"],
    "intermediate_size": fields["mlp_dim"],
    "num_hidden_layers": fields["depth"],
    "num_attention_heads": fields["heads"],
    **more,
  }


def relative_error(got, want):
  return np.abs(got - want).max() / np.abs(want).max()
