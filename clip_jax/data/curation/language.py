"""The language of a text, by py3langid (extra `language`)."""

import functools
from collections.abc import Iterable

from clip_jax import errors

_MISSING = (
  "Languages are told apart by py3langid: pip install 'jax-clip[language]'. Or "
  "do without languages."
)


def check(codes: Iterable[str]) -> None:
  """Raises UserError for a code that is no known language, or without library.

  Args:
    codes: of ISO 639-1, such as "en".
  """
  all_codes = known()
  for code in codes:
    if code not in all_codes:
      raise errors.unknown("language", code, all_codes)


@functools.cache
def known() -> tuple[str, ...]:
  """Returns the codes of all languages that are told apart, sorted.

  Raises:
    UserError: the library is missing.
  """
  try:
    import py3langid  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise errors.UserError(_MISSING) from None
  return tuple(sorted(str(code) for code, _ in py3langid.rank("")))


def of(text: str) -> str:
  """Returns the code of the language that `text` is most likely in.

  A few words say little of their language: what is returned then is a guess.
  """
  import py3langid  # pyright: ignore[reportMissingImports]

  return str(py3langid.classify(text)[0])
