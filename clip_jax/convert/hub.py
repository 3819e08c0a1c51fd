"""Models of the HuggingFace Hub: `hf-hub:ORG/NAME[@REVISION]`."""

import pathlib
import re

from clip_jax import errors

PREFIX = "hf-hub:"
_ADDRESS = re.compile(
  r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
# The files of a model to download; none of them is ever executed.
PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors", "*.msgpack", "*.npz")
# Pickles, for our own reader; downloaded only if there is no other file.
PICKLES = ("*.bin", "*.pt", "*.pth")


def is_address(source: str) -> bool:
  """Whether `source` names a model of the Hub."""
  return source.startswith(PREFIX)


def is_name(source: str) -> bool:
  """Whether `source` may be the rest of an address, ORG/NAME[@REVISION]."""
  return _ADDRESS.fullmatch(source) is not None


def pinned(source: str, path: pathlib.Path) -> str:
  """Returns the address with the commit of `path`, as of `download`."""
  name = source.removeprefix(PREFIX).partition("@")[0]
  return f"{PREFIX}{name}@{path.name}"


def download(source: str) -> pathlib.Path:
  """Returns the path of a model's local copy, downloading it if necessary.

  Args:
    source: "hf-hub:ORG/NAME", or with "@" and a branch, tag or commit.

  Raises:
    UserError: the address is not valid, there is no such model, or it is not in
      the cache and the Hub cannot be reached.
  """
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

  match = _ADDRESS.fullmatch(source.removeprefix(PREFIX))
  if match is None:
    raise errors.UserError(
      f"{source!r} is not a valid address; give hf-hub:ORG/NAME or "
      "hf-hub:ORG/NAME@REVISION."
    )
  name, revision = match["name"], match["revision"]

  def get(patterns):
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=list(patterns)
      )
    )

  try:
    path = get(PATTERNS)
    if not any(path.rglob("*.safetensors")) and not any(path.glob("*.npz")):
      path = get((*PATTERNS, *PICKLES))
    return path
  except hub_errors.LocalEntryNotFoundError:
    raise errors.UserError(
      f"{source} is not in the local cache, and the Hub cannot be reached. "
      "Connect to the network (and unset HF_HUB_OFFLINE), or download the "
      "model elsewhere and give its directory."
    ) from None
  except hub_errors.RevisionNotFoundError:
    raise errors.UserError(
      f"{name} has no revision {revision!r}; give a branch, a tag or a commit "
      "that its page lists."
    ) from None
  except (hub_errors.RepositoryNotFoundError, hub_errors.GatedRepoError):
    raise errors.UserError(
      f"There is no model {name!r} on the Hub that this account may read; "
      "check the name, or log in with `hf auth login`."
    ) from None
  except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError) as error:
    raise errors.UserError(
      f"{source} cannot be downloaded: {errors.first_line(error)}. Try again, "
      "or download it "
      "elsewhere and give its directory."
    ) from None
