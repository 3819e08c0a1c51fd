"""A digest of all that a model's embeddings depend on."""

import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from clip_jax import preprocess as preprocess_lib
from clip_jax import sharding
from clip_jax import tokenizer as tokenizer_lib


def of(
  module: nn.Module,
  variables: Any,
  *,
  tokenizer: tokenizer_lib.Tokenizer | None,
  preprocess: preprocess_lib.Preprocess | None,
) -> str:
  """Returns the SHA-256 of a model, in hexadecimal digits.

  Args:
    module: the linen module.
    variables: its parameters and batch statistics.
    tokenizer: None without a text tower.
    preprocess: None without an image tower.
  """
  digest = hashlib.sha256()
  digest.update(repr(module).encode())
  if tokenizer:
    digest.update(tokenizer.fingerprint.encode())
  if preprocess:
    preprocessing = preprocess.to_dict()
    digest.update(json.dumps(preprocessing, sort_keys=True).encode())
  leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
  for path, leaf in sorted(leaves, key=lambda pair: str(pair[0])):
    array = np.ascontiguousarray(leaf)
    name = f"{sharding.path_name(path)} {array.dtype} {array.shape}"
    digest.update(name.encode())
    digest.update(array.view(np.uint8).data)
  return digest.hexdigest()
