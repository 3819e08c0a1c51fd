"""Several sources of training data in one field of a config."""

import json
from collections.abc import Iterable, Mapping

from clip_jax import errors


def mixture(
  weights: Mapping[str, float] | Iterable[tuple[str, float]],
) -> str:
  """Returns the value of `data.train` for several sources.

      config.data.train = mixture({"wds:a.tar": 2, "csv:b.tsv": 1})

  Args:
    weights: of each DATA address, in any unit, as a dict or as pairs.

  Raises:
    UserError: an address is there twice.
  """
  is_dict = isinstance(weights, Mapping)
  pairs = list(weights.items() if is_dict else weights)
  if len(dict(pairs)) < len(pairs):
    raise errors.UserError("A mixture has each address once; add the weights.")
  return json.dumps(dict(pairs))
