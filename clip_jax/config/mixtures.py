"""Several sources of training data in one field of a config."""

import collections
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
    UserError: an address is given twice.
  """
  is_dict = isinstance(weights, Mapping)
  pairs = list(weights.items() if is_dict else weights)
  counts = collections.Counter(address for address, _ in pairs)
  twice = [address for address, count in counts.items() if count > 1]
  if twice:
    raise errors.UserError(
      f"The mixture names {twice[0]!r:.100} {counts[twice[0]]} times; give it "
      "once, with the sum of its weights."
    )
  return json.dumps(dict(pairs))
