"""Which features of a data set of TFDS hold images, captions and labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from clip_jax import errors
from clip_jax.data.sources import usual_names


class _Kind(NamedTuple):
  """What a feature is used for: `image`, `caption` or `label`.

  `usual` are the names that are looked for, `is_such` says whether a feature is
  found without being named, `may_be` whether it can be named, and `said` what
  it is then.
  """

  usual: tuple[str, ...]
  is_such: Callable[[Any], bool]
  may_be: Callable[[Any], bool]
  said: str


def _is_image(feature: Any) -> bool:
  return type(feature).__name__ == "Image"


def is_text(feature: Any) -> bool:
  """Whether a feature is a text, or a sequence of texts."""
  inner = getattr(feature, "feature", feature)  # Of a sequence.
  return type(inner).__name__ == "Text"


def _is_label(feature: Any) -> bool:
  return type(feature).__name__ == "ClassLabel"


def _holds(feature: Any, kinds: str, *, most_axes: int) -> bool:
  """Whether values are of one of numpy's `kinds`, with at most so many axes."""
  about = feature.get_tensor_info()  # A dict where it has parts.
  return (
    not _is_image(feature)
    and not isinstance(about, dict)
    and np.dtype(about.np_dtype).kind in kinds
    and len(about.shape) <= most_axes
  )


_KINDS = {
  "image": _Kind(
    ("image",),
    _is_image,
    lambda each: _is_image(each) or _holds(each, "OSU", most_axes=0),
    "an image, or the bytes of its file",
  ),
  "caption": _Kind(
    ("caption", "captions", "captions/text", *usual_names.CAPTIONS),
    is_text,
    lambda each: _holds(each, "OSU", most_axes=1),
    "a text, or a sequence of texts",
  ),
  "label": _Kind(
    ("label",),
    _is_label,
    lambda each: _holds(each, "biu", most_axes=1),
    "a class, a whole number, or a sequence of these",
  ),
}


def find(features: Any, wanted: str | None, what: str) -> str | None:
  """Returns the path of the wanted or the usual feature, if there is one.

  Of images and labels it may be the only one.

  Args:
    features: of the data set.
    wanted: what a user has named, with "/" for nested ones; None for nothing.
    what: "image", "caption" or "label".

  Raises:
    UserError: the wanted one is not there or of another kind, or several may
      be the images.
  """
  kind = _KINDS[what]
  if wanted is not None:
    if (feature := _feature(features, wanted)) is None:
      raise errors.unknown(f"feature for {what}=", wanted, features)
    if not kind.may_be(feature):
      raise errors.UserError(
        f"The feature {wanted!r} cannot be the {what}, which is {kind.said}; "
        f"the features are {', '.join(features)}."
      )
    return wanted
  for path in kind.usual:
    feature = _feature(features, path)
    if feature is not None and kind.is_such(feature):
      return path
  if what == "caption":
    return None
  found = [name for name, feature in features.items() if kind.is_such(feature)]
  if len(found) > 1 and what == "image":
    raise errors.UserError(
      f"Several features are images: {', '.join(found)}. Choose with"
      " ?image=NAME."
    )
  return found[0] if len(found) == 1 else None


def _feature(features: Any, path: str) -> Any:
  for part in path.split("/"):
    features = getattr(features, "feature", features)  # Of a sequence.
    try:
      features = features[part]
    except (KeyError, TypeError, AttributeError):
      return None
  return features


def class_names(features: Any, path: str) -> Any:
  """Returns the names of the classes of a feature; None where it has none."""
  feature = _feature(features, path)
  return getattr(getattr(feature, "feature", feature), "names", None)
