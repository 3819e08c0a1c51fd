"""The language of a text, by py3langid (extra `language`)."""

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
  try:
    import py3langid  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise errors.UserError(_MISSING) from None
  known = {str(code) for code, _ in py3langid.rank("")}
  for code in codes:
    if code not in known:
      raise errors.unknown("language", code, known)


def of(text: str) -> str:
  """Returns the code of the language that `text` is most likely in.

  A few words say little of their language: what is returned then is a guess.
  """
  import py3langid  # pyright: ignore[reportMissingImports]

  return str(py3langid.classify(text)[0])
