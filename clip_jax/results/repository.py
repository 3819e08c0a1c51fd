"""A model's repository on the HuggingFace Hub, to write to."""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub import utils as hub_utils

from clip_jax import errors, terminal

_FORM = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
README = "README.md"
_NO_ROOM = re.compile(r"storage|quota|too large|payment|billing", re.IGNORECASE)
# The base of all errors of HTTP, also of those without an answer.
_HTTP_ERROR: Any = hub_errors.HfHubHTTPError.__mro__[1]


@dataclasses.dataclass(frozen=True)
class Held:
  """What a repository holds before an upload.

  Attributes:
    private: whether only its owners see it.
    files: the names of its files.
    readme: its page; None if it has none.
  """

  private: bool
  files: Sequence[str]
  readme: str | None


def check_name(name: str) -> None:
  """Raises UserError unless `name` is ORG/NAME, as the hub allows it."""
  problem = "it has not this form" if not _FORM.fullmatch(name) else ""
  if not problem:
    try:
      hub_utils.validate_repo_id(name)
    except hub_errors.HFValidationError as error:
      problem = errors.first_line(error).rstrip(".")
  if problem:
    raise errors.UserError(
      f"A model on the hub is called ORG/NAME, such as my-name/my-model; got "
      f"{name!r:.200} ({problem})."
    )


def url(name: str) -> str:
  """Returns the address of a model's page on the hub."""
  return f"{huggingface_hub.constants.ENDPOINT}/{name}"


class Repository:
  """One model on the hub, and the account that writes to it.

  Attributes:
    name: "ORG/NAME".
    url: the address of its page.
    account: name of the account that the token is of.
  """

  def __init__(self, name: str):
    """Asks the hub whose token this is, before any work is done.

    Raises:
      UserError: `name` is not ORG/NAME, there is no token, it does not allow to
        write, or the hub cannot be reached.
    """
    check_name(name)
    self.name, self.url = name, url(name)
    self.account = ""
    self._orgs: list[str] = []
    self._api = huggingface_hub.HfApi(library_name="clip_jax")
    if huggingface_hub.constants.is_offline_mode():
      raise errors.UserError(
        "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and pushing needs "
        "the network: unset it, or see with --dry-run what would be uploaded."
      )
    if huggingface_hub.get_token() is None:
      raise errors.UserError(
        "Pushing needs a token of the hub, and there is none: log in with "
        "`hf auth login`, or set HF_TOKEN. "
        f"{self._api.endpoint}/settings/tokens makes one that may write."
      )
    with self._explained():
      about = self._api.whoami()
      self.account = str(about["name"])
      self._orgs = [str(org.get("name")) for org in about.get("orgs") or ()]
      token = about.get("auth", {}).get("accessToken") or {}
      role = token.get("role")
    if role == "read":
      raise errors.UserError(
        f"The token of {self.account} may only read; make one that may write: "
        f"{self._api.endpoint}/settings/tokens."
      )

  def create(self, *, private: bool) -> Held:
    """Makes the repository if there is none, and returns what it holds.

    Args:
      private: whether only its owners may see it.

    Raises:
      UserError: the account may not, or the repository is public and should be
        private.
    """
    with self._explained():
      self._api.create_repo(self.name, private=private or None, exist_ok=True)
      info = self._api.model_info(self.name)
      files = [entry.rfilename for entry in info.siblings or ()]
      readme = None
      if README in files:
        with tempfile.TemporaryDirectory() as room:
          path = self._api.hf_hub_download(self.name, README, local_dir=room)
          readme = pathlib.Path(path).read_text("utf-8", errors="replace")
    if private and not info.private:
      raise errors.UserError(
        f"{self.url} is there and is public, so that --private would hide "
        f"nothing. Make it private on {self.url}/settings, or take another "
        "name. Nothing was uploaded."
      )
    return Held(bool(info.private), files, readme)

  def upload(self, folder: pathlib.Path, *, message: str) -> str:
    """Uploads all files of a folder in one commit; returns the commit's hash.

    What has arrived before is not sent again.

    Raises:
      UserError: the hub refuses, or cannot be reached any more.
    """
    with self._explained(
      " Run the same command again; what has arrived stays."
    ):
      commit = self._api.upload_folder(
        repo_id=self.name, folder_path=folder, commit_message=message
      )
    return commit.oid

  @contextlib.contextmanager
  def _explained(self, again: str = "") -> Iterator[None]:
    """Turns what the hub or the network refuses into a UserError."""
    try:
      yield
    except hub_errors.HfHubHTTPError as error:
      raise self._refusal(error, again) from None
    except (
      *(_HTTP_ERROR, OSError),
      # What is raised where a file's upload fails, from the reason.
      *(RuntimeError, ValueError),
      # Something that is no hub has answered.
      *(KeyError, AttributeError, TypeError),
    ) as error:
      if isinstance(error, OSError) and error.filename:
        raise  # Of this machine: a full disk, or a cache that is not writable.
      reason = error.__cause__ or error
      if isinstance(reason, hub_errors.HfHubHTTPError):
        raise self._refusal(reason, again) from None
      if _NO_ROOM.search(str(reason)):
        raise self._no_room(_shown(reason)) from None
      raise self._unreachable(reason, again) from None

  def _unreachable(self, error: BaseException, again: str) -> errors.UserError:
    said = f"({type(error).__name__}: {_shown(error)})"
    if again:
      where = f"The upload to {self.url} broke off"
      return errors.UserError(f"{where} {said}. Check the network.{again}")
    return errors.UserError(
      f"The hub cannot be reached at {self._api.endpoint} {said}. Check the "
      "network, and HF_ENDPOINT if it is set."
    )

  def _no_room(self, said: str) -> errors.UserError:
    return errors.UserError(
      f"The hub has no room for {self.name}: {said} Free some of the account's "
      "storage, or push to another ORG. No file there was changed; a "
      "repository that was made for this stays, empty."
    )

  def _refusal(
    self, error: hub_errors.HfHubHTTPError, again: str
  ) -> errors.UserError:
    """Returns the error for an answer of the hub that is no success."""
    code = error.response.status_code
    said = terminal.printable(error.server_message or "", limit=300)
    if code == 413 or (code in (402, 403) and _NO_ROOM.search(said)):
      return self._no_room(said or f"({code}).")
    said = f"{code}: {said}" if said else str(code)
    if code == 401 and not self.account:
      return errors.UserError(
        f"The hub does not know this token ({said}): log in with `hf auth "
        "login`, or set HF_TOKEN to a token that may write."
      )
    if code in (401, 403, 404):
      orgs = f", of {', '.join(self._orgs)}" if self._orgs else ""
      return errors.UserError(
        f"The account {self.account or 'of this token'}{orgs} may not write "
        f"to {self.name} ({said}): the name belongs to somebody else, or the "
        "token has not this right. Take a name under your own account, or "
        "another token."
      )
    if code == 409:
      return errors.UserError(
        f"{self.name} was changed by somebody else meanwhile ({said}).{again}"
      )
    if code in (408, 429) or code >= 500:
      return errors.UserError(
        f"The hub cannot answer now ({said}); try again later.{again}"
      )
    return errors.UserError(f"The hub refuses {self.name} ({said}).")


def _shown(error: BaseException) -> str:
  return terminal.printable(errors.first_line(error), limit=300)
