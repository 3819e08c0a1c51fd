"""The class of a family of HuggingFace's models, and rows that they share."""

import dataclasses
from collections.abc import Callable
from typing import Any

from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.family import Family
from clip_jax.convert.engine.fields import Fixed, Written
from clip_jax.convert.formats import huggingface_tokenizer as tokenizers

# transformers 5 saves a single tower without the prefix that version 4 had.
PREFIXES = {"text": "text_model.", "image": "vision_model."}
# `hidden_act` -> our activation; the first of several is the one to write.
GELUS = {
  **{"gelu": "gelu", "gelu_python": "gelu"},
  **{"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"},
}

# A function of the tokenizer's files, the text tower's description and the
# report, which returns the tokenizer's description.
DescribeTokenizer = Callable[
  [dict[str, bytes], dict[str, Any], report_lib.Report], dict[str, Any]
]


@dataclasses.dataclass(frozen=True)
class HuggingFaceFamily(Family):
  """A family whose `name` is the `model_type` of its config.

  The fields of its towers are in the sections "text_config" and
  "vision_config"; the `model_type` of a single tower is "NAME_text_model" or
  "NAME_vision_model".

  Attributes:
    processor: class of its image processor, of `huggingface_images`.
    tokenizer: function that describes its tokenizer.
    legacy_parts: whether its configs may have a "text_config_dict" and a
      "vision_config_dict", which replace the sections.
  """

  processor: str = "CLIPImageProcessor"
  tokenizer: DescribeTokenizer = tokenizers.clip
  legacy_parts: bool = True


def tower(width: int, **fields: Any) -> dict[str, Any]:
  """Returns the defaults of a tower's config: usual sizes and `fields`."""
  return {
    **{"hidden_size": width, "intermediate_size": 4 * width},
    **{"num_hidden_layers": 12, "num_attention_heads": width // 64},
    **fields,
  }


def classes(family: str, architecture: str) -> tuple[Written, ...]:
  """Returns the rows of the names of transformers' classes in a config."""
  return (
    Written("architectures", [architecture]),
    Written("model_type", family),
    Written("text_config.model_type", f"{family}_text_model"),
    Written("vision_config.model_type", f"{family}_vision_model"),
  )


def structure(**facts: Any) -> tuple[Fixed, ...]:
  """Returns rows of fields that have a single value in the format."""
  return tuple(Fixed(k, v, in_weights=True) for k, v in facts.items())
