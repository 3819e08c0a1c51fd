"""The BERTs that open_clip fetches by their names, for text towers."""

from typing import Any

from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import bert

# Configs of the published ones: what differs from `bert-base-uncased`.
_LARGE = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "intermediate_size": 4096,
}
BERTS: dict[str, dict[str, Any]] = {
  "bert-base-uncased": {},
  "bert-base-cased": {"vocab_size": 28996},
  "bert-large-uncased": dict(_LARGE),
  "bert-large-cased": {**_LARGE, "vocab_size": 28996},
  "bert-base-multilingual-cased": {"vocab_size": 119547},
  "bert-base-multilingual-uncased": {"vocab_size": 105879},
}
BERTS |= {f"google-bert/{name}": config for name, config in BERTS.items()}


def find(text: dict[str, Any]) -> str | None:
  """Returns the name of the BERT that a tower has the sizes of, if any."""
  for name in BERTS:
    if all(text[field] == want for field, want in published(name).items()):
      return name
  return None


def published(name: str) -> dict[str, Any]:
  """Returns the text tower of the BERT of that name."""
  return bert.describe(BERTS[name], report_lib.Report(""), name)


def config(text: dict[str, Any]) -> dict[str, Any]:
  """Returns the HuggingFace config of a BERT tower."""
  names = {v: k for k, v in reversed(bert.ACTIVATIONS.items())}
  return {
    "vocab_size": text["vocab_size"],
    "hidden_size": text["width"],
    "num_hidden_layers": text["depth"],
    "num_attention_heads": text["heads"],
    "intermediate_size": text["mlp_dim"] or 4 * text["width"],
    "max_position_embeddings": text["positions"],
    "type_vocab_size": text["token_types"],
    "hidden_act": names[text["activation"]],
    "layer_norm_eps": text["norm_epsilon"],
    "pad_token_id": text["pad_id"],
  }
