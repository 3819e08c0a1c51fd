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


def nearest(text: dict[str, Any]) -> str:
  """Returns the name of the BERT that a tower differs least from."""

  def differences(name):
    return sum(text[k] != want for k, want in published(name).items())

  return min(BERTS, key=differences)


def published(name: str) -> dict[str, Any]:
  """Returns the text tower of the BERT of that name."""
  return bert.describe(BERTS[name], report_lib.Report(""), name)
