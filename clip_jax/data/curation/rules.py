"""The rules that a pair must pass to stay, in the order they are applied.

A rule about captions removes the captions that break it; it drops a pair when
it removes its last one. What a pair breaks first is what it is dropped by.
"""

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping
from typing import Any

from clip_jax import errors, json_text, regular_files
from clip_jax.data.curation import caption_form, queries

# What a rule's value may be; the flags of the command line have the same kinds.
COUNT, FACTOR, NUMBER, SHARE, TEXTS, LIST = (
  *("count", "factor", "number", "share", "texts", "list"),
)


def _rule(kind: str, said: str) -> Any:
  default = () if kind in (TEXTS, LIST) else None
  return dataclasses.field(
    default=default, metadata={"kind": kind, "said": said}
  )


@dataclasses.dataclass(frozen=True)
class Rules:
  """Limits of pairs, in the order of their use; None or () means no limit."""

  min_side: int | None = _rule(COUNT, "pixels of the shorter side, at least")
  max_side: int | None = _rule(COUNT, "pixels of the longer side, at most")
  max_aspect: float | None = _rule(
    FACTOR, "longer side over the shorter one, at most"
  )
  block_domains: tuple[str, ...] = _rule(
    LIST,
    "a file with a domain a line: pairs that name it, or a subdomain of it, "
    "in their key or a caption go",
  )
  block_words: tuple[str, ...] = _rule(
    LIST,
    "a file with a word or words a line: pairs with a caption that has them "
    "go, capitals make no difference",
  )
  min_chars: int | None = _rule(COUNT, "characters of a caption, at least")
  max_chars: int | None = _rule(COUNT, "characters of a caption, at most")
  min_words: int | None = _rule(COUNT, "words of a caption, at least")
  max_words: int | None = _rule(COUNT, "words of a caption, at most")
  min_letters: float | None = _rule(
    SHARE, "share of letters in a caption's characters, at least"
  )
  max_digits: float | None = _rule(
    SHARE, "share of digits in a caption's characters, at most"
  )
  max_urls: float | None = _rule(
    SHARE, "share of URLs in a caption's characters, at most"
  )
  max_run: int | None = _rule(
    COUNT, "times that a caption has one character in a row, at most"
  )
  languages: tuple[str, ...] = _rule(
    TEXTS, "languages of captions that stay, such as en,de"
  )
  max_caption_repeats: int | None = _rule(
    COUNT, "pairs of DATA that may have the same caption, at most"
  )
  min_score: float | None = _rule(
    NUMBER, "cosine of image and caption, at least"
  )
  keep_share: float | None = _rule(
    SHARE, "share of the pairs left by the other rules that stays, by score"
  )

  def __post_init__(self) -> None:
    """Raises UserError for a value that its rule cannot have."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None:
        checked = _checked(field.name, field.metadata["kind"], value)
        object.__setattr__(self, field.name, checked)
    for entry in self.block_domains:
      _check_domain(entry)
    if None not in (self.min_score, self.keep_share):
      raise errors.UserError(
        "Give min_score or keep_share, one of the two: both are limits of the "
        "same score."
      )
    for what in ("side", "chars", "words"):
      low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
      if low is not None and high is not None and low > high:
        raise errors.UserError(
          f"min_{what}={low} is more than max_{what}={high}: nothing passes."
        )

  @property
  def scored(self) -> bool:
    """Whether a rule needs scores."""
    return self.min_score is not None or self.keep_share is not None

  def given(self) -> dict[str, Any]:
    """Returns the limits that are set, by name."""
    found = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    return {k: v for k, v in found.items() if v is not None and v != ()}


NAMES = tuple(field.name for field in dataclasses.fields(Rules))


def _checked(name: str, kind: str, value: Any) -> Any:
  """Returns the value as its rule has it."""
  if kind in (TEXTS, LIST):
    if isinstance(value, str):
      value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple) and all(
      isinstance(text, str) and text.strip() for text in value
    ):
      return tuple(dict.fromkeys(text.strip() for text in value))
    raise errors.UserError(
      f"{name} must be texts, such as a list of them; got {value!r:.100}."
    )
  wanted = {
    COUNT: "a whole number, at least 1",
    FACTOR: "a number, at least 1",
    NUMBER: "a number",
    SHARE: "a number from 0 to 1",
  }[kind]
  fits = isinstance(value, int if kind == COUNT else int | float)
  if not fits or isinstance(value, bool) or not _allowed(kind, value):
    raise errors.UserError(f"{name} must be {wanted}; got {value!r:.100}.")
  return value


def _check_domain(entry: str) -> None:
  """Raises UserError for an entry that no pair can have as a domain."""
  name = entry.lower().strip(".")
  within = name if "." in name else f"a.{name}"
  if name in caption_form.domains(within):
    return
  named = next(caption_form.domains(name), "example.com")
  raise errors.UserError(
    f"block_domains: {entry!r:.100} is no domain and would block nothing; "
    f"write a name alone, such as {named!r:.100}; what is below it goes, too."
  )


def _allowed(kind: str, value: float) -> bool:
  try:
    if not math.isfinite(value):
      return False
  except OverflowError:  # A whole number of hundreds of digits.
    return False
  if kind == SHARE:
    return 0 <= value <= 1
  return kind == NUMBER or value >= 1


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the entries of a file of rules, in TOML or JSON.

  Beside the rules it may have `score_model`.

  Raises:
    OSError: it cannot be read.
    UserError: it is no such file, or holds something else.
  """
  errors.check_local("The file of rules", path)
  path = os.path.expanduser(path)
  if str(path).endswith(".json"):
    found = json_text.read(path)
  elif str(path).endswith(".toml"):
    data = regular_files.read_regular(path, limit=json_text.MAX_BYTES)
    try:
      found = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:  # Of the encoding, the syntax or a number.
      raise errors.UserError(f"{path} is not valid TOML: {error}.") from None
    except RecursionError:
      raise errors.UserError(f"{path} is nested too deeply.") from None
  else:
    raise errors.UserError(f"{path} must end in .toml or .json.")
  known = (*NAMES, "score_model")
  for name in found:
    if name not in known:
      raise errors.unknown(f"rule in {path}:", name, known)
  return found


def of(*settings: Mapping[str, Any]) -> Rules:
  """Returns the rules in all of `settings`, of which later ones win.

  Args:
    *settings: entries by rule; None is not given. Where a rule takes a list, a
      text is the path of a file with an entry a line.

  Raises:
    OSError: such a file cannot be read.
    UserError: an entry is none that its rule can have.
  """
  merged = {k: v for s in settings for k, v in s.items() if v is not None}
  for field in dataclasses.fields(Rules):
    value = merged.get(field.name)
    if field.metadata["kind"] == LIST and isinstance(value, str):
      entry = field.name.removeprefix("block_").removesuffix("s")
      merged[field.name] = queries.read(value, entry=entry).texts
  return Rules(**{k: v for k, v in merged.items() if k in NAMES})
