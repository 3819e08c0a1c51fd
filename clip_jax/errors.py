"""Errors that a user can cause, and how their messages are made."""

import difflib
import itertools
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """An error that a user can fix: says what, what was got and what to do.

  The command line prints the message without a traceback and exits with 1.

  Attributes:
    payload: what `--json` prints beside the message; None for nothing.
  """

  payload: Any = None


class AmbiguousError(UserError):
  """Input with several possible meanings; a flag of `convert` chooses one.

  The command line exits with 2.

  Attributes:
    problem: what the input does not say.
    flags: the flags that say it, such as "--activation gelu".
    tower: "image" or "text" where that tower is all that the input holds.
  """

  tower: str | None = None

  def __init__(
    self, problem: str, *, flags: str = "", known_here: bool = False
  ):
    # Most verbs and the API know no such flag: `convert` comes first there.
    where = "to `clip-jax convert`, and take what it writes"
    give = f"Give {flags}" if known_here else f"Give {flags} {where}"
    super().__init__(f"{problem} {give}." if flags else problem)
    self.problem = problem
    self.flags = flags


class DamagedError(UserError):
  """A file whose content is not valid for its format."""


class NoGoodCheckpointError(UserError):
  """Checkpoints of a run, none of which is good.

  Attributes:
    steps: of these.
  """

  def __init__(self, said: str, steps: Iterable[int]):
    super().__init__(said)
    self.steps = frozenset(steps)


class UnreachableError(UserError):
  """Data that cannot be read now, whatever they hold: no fault of theirs."""


# Above this number only the nearest names are listed.
_MAX_LISTED = 300
_MOST_LOOKED_AT = 10_000  # Names of a directory.
# A model of the Hub as other programs and browsers write it.
_ON_THE_HUB = re.compile(
  r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://(?:models/)?"
  r"|(?:hf|hub|hf_hub|huggingface):)(?!datasets/|spaces/)"
  r"(?P<name>[\w.-]+/[\w.-]+)(?:/.*)?",
  re.ASCII | re.IGNORECASE,
)


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
  """Returns the error for a `name` that is none of the `known` ones.

  The message lists the known names, or only the three nearest of many.
  """
  names = sorted(map(str, known))
  close = nearest(name, names, cutoff=0.5)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  listed = f"Known: {', '.join(names)}."
  if len(listed) > _MAX_LISTED:
    listed = f"Nearest of {len(names)}: {', '.join(nearest(name, names))}."
  return UserError(f"Unknown {what} {str(name)!r:.100}.{hint} {listed}")


def check_known(what: str, name: object, known: Iterable[str]) -> None:
  """Raises UserError unless `name`, of any type, is one of the `known` ones."""
  if not isinstance(name, str) or name not in known:
    raise unknown(what, str(name), known)


def nearest(
  name: str, known: Iterable[str], *, cutoff: float = 0.0
) -> list[str]:
  """Returns the at most three `known` names that are nearest to `name`.

  Capitals and signs make no difference: vit_b_32 is near ViT-B-32.
  """
  names = {plain(x) or x: x for x in known}
  near = difflib.get_close_matches(
    plain(str(name)[:100]) or str(name)[:100], names, n=3, cutoff=cutoff
  )
  return [names[x] for x in near]


def plain(name: str) -> str:
  """Returns the letters and digits of a name, without capitals."""
  return re.sub(r"[\W_]", "", name.casefold())


def beside(path: str | os.PathLike) -> str:
  """Returns the sentence that names what lies where `path` does not exist.

  It begins with a space; it is "" where no name there is like the path's. Of a
  link that leads nowhere it says so.
  """
  path = pathlib.Path(os.path.expanduser(path))
  if os.path.exists(path):
    return ""
  if os.path.islink(path):
    return f" It is a link to {os.readlink(path)!r}, which is not there."
  try:
    with os.scandir(path.parent) as entries:
      there = [x.name for x in itertools.islice(entries, _MOST_LOOKED_AT)]
  except (OSError, ValueError):
    return ""
  names = [
    str(path.with_name(x)) for x in nearest(path.name, there, cutoff=0.75)
  ]
  return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def not_finite(key: str) -> UserError:
  """Returns the error for a record whose embedding is not finite."""
  return UserError(
    f"The embedding of {key!r:.200} is not finite; the model is damaged or its "
    "training diverged. Use an earlier checkpoint."
  )


def check_local(what: str, path: object) -> None:
  """Raises UserError if `path` is a network address such as gs://…"""
  if (text := str(path)).startswith("file://"):
    raise UserError(
      f"{what} {text!r} is a URL; give the path in it, "
      f"{urllib.parse.unquote(urllib.parse.urlsplit(text).path)!r}."
    )
  if "://" in text:
    is_web = re.search("https?://", text)
    todo = (
      "download it" if is_web else "mount the bucket (gcsfuse, mountpoint-s3)"
    )
    raise UserError(
      f"{what} {text!r} is remote; {todo} and give the path where it is "
      f"{'then' if is_web else 'mounted'}."
    )


def check_model(what: str, address: str) -> None:
  """Raises UserError if a model is a network address that is not understood.

  A path that is there is one, whatever its name looks like.
  """
  if os.path.exists(address):
    return
  if match := _ON_THE_HUB.fullmatch(address):
    raise UserError(
      f"{what} {address!r} is on the HuggingFace Hub; give it as "
      f"hf-hub:{match['name']}."
    )
  check_local(what, address)


def check_new(what: str, path: object) -> None:
  """Raises UserError if `path`, of something new, is an address."""
  check_local(what, path)
  scheme, colon, name = str(path).partition(":")
  if not colon or os.path.exists(str(path)):
    return
  if scheme == "hf-hub":
    raise UserError(
      f"{what} {str(path)!r} is on the HuggingFace Hub; give a new path here, "
      f"and upload what is there then by `clip-jax push MODEL {name}`."
    )
  if scheme == "arrayrecord":
    raise UserError(
      f"{what} {str(path)!r} is the address of data that are there; give its "
      f"path alone, {name!r}."
    )


def check_out(path: str | os.PathLike) -> None:
  """Raises UserError unless `path` may name what a command is to make."""
  check_new("OUT", path)
  # What is not complete yet lies beside it, under a name made of its name.
  if pathlib.PurePath(os.path.expanduser(path)).name in ("", ".."):
    raise UserError(
      f"OUT {os.fspath(path)!r} has no name of its own; give that of something "
      "new, such as ./out."
    )


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or else its type's name."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def of_machine(error: RuntimeError | MemoryError) -> str | None:
  """Returns advice where memory or a device is lacking; None otherwise."""
  first = first_line(error)
  if isinstance(error, MemoryError):
    return (
      f"The memory of this machine does not suffice ({first}). Take a smaller "
      "batch, or less of what else was asked for."
    )
  if "Unable to initialize backend" in str(error):
    return (
      f"{first}. Install the extra for this hardware, 'jax[tpu]', "
      "'jax[cuda12]' or 'jax[cuda13]', or set JAX_PLATFORMS=cpu."
    )
  if "RESOURCE_EXHAUSTED" in str(error):
    return (
      f"The device is out of memory ({first}). Take a smaller batch, or more "
      "devices."
    )
  return None
