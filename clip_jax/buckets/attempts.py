"""What is asked of servers, and asked again where it fails for a moment."""

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from clip_jax import errors
from clip_jax.buckets import clients

ATTEMPTS = 8
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 16.0
# Words of Arrow's errors.
_REFUSED = re.compile(
  r"ACCESS_DENIED|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ACCESS_KEY"
  r"|INVALID_CLIENT_TOKEN|SIGNATURE|HTTP (response code:? )?40[13]",
  re.IGNORECASE,
)
_NO_CREDENTIALS = re.compile(r"OAuth2|credentials", re.IGNORECASE)
_NOT_THERE = re.compile(
  r"NO_SUCH_(KEY|BUCKET)|NOT_FOUND|does not exist|Bucket .* not found"
)
# A read of a few bytes has no room for the error that comes in their place.
_UNREADABLE = "Failed to flush response stream"
_LOG_IN = {
  "gs": "log in by `gcloud auth application-default login`, or set "
  "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
  "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
# Schemes whose credentials were good in this process: an error of theirs is
# then one of the server that renews them.
_answered: set[str] = set()
# While it is set, nobody waits for an answer any more.
_given_up = threading.Event()
_LOOKED_SECONDS = 0.2  # Between two looks at it.
_Result = TypeVar("_Result")


@contextlib.contextmanager
def given_up() -> Iterator[None]:
  """Ends what waits for answers, by an error, until the end of the block."""
  _given_up.set()
  try:
    yield
  finally:
    _given_up.clear()


def retried(
  address: str,
  ask: Callable[[], _Result],
  *,
  rights: str = "read and list",
  seconds: float | None = None,
) -> _Result:
  """Returns the result of `ask`, repeated after failures that may pass.

  Args:
    address: what is asked for.
    ask: asks once.
    rights: what the account must be allowed to do to the bucket.
    seconds: for one attempt; None for those of a short answer.
  """
  import pyarrow

  wait, failure, reason = FIRST_WAIT_SECONDS, None, ""
  for attempt in range(1, ATTEMPTS + 1):
    try:
      result = _in_time(ask, seconds)
      _answered.add(address[:2])
      return result
    except FileNotFoundError:
      raise
    except (OSError, pyarrow.ArrowException) as error:
      failure = error
    reason = str(failure)
    if _UNREADABLE in reason:
      reason = _hidden_reason(address) or reason
    if _NOT_THERE.search(reason):
      raise FileNotFoundError(2, "No such object", address) from failure
    if _REFUSED.search(reason) or (
      _NO_CREDENTIALS.search(reason) and address[:2] not in _answered
    ):
      raise _refusal(address, reason, rights) from failure
    if attempt < ATTEMPTS:
      # Not all at once: many processes may wait for the same server.
      _given_up.wait(wait * random.uniform(0.5, 1.0))
      wait = min(2 * wait, LONGEST_WAIT_SECONDS)
  raise errors.UnreachableError(
    f"{address} could not be reached, {ATTEMPTS} times: "
    f"{_shortened(reason)}. Check the network, and give the same command again."
  ) from failure


def _in_time(
  ask: Callable[[], _Result], seconds: float | None = None
) -> _Result:
  """Returns the result of `ask`; raises TimeoutError if it takes too long."""
  limit = clients.TIMEOUT_SECONDS if seconds is None else seconds
  outcome: list[Any] = []

  def run() -> None:
    try:
      outcome.append((ask(), None))
    except BaseException as error:
      outcome.append((None, error))

  # A thread of its own: Arrow's reads cannot be interrupted.
  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  until = time.monotonic() + limit
  while thread.is_alive() and (left := until - time.monotonic()) > 0:
    thread.join(min(left, _LOOKED_SECONDS))
    if _given_up.is_set():
      raise errors.UnreachableError("The command was interrupted.")
  if not outcome:
    raise TimeoutError(f"no answer within {limit:.0f} s")
  result, error = outcome[0]
  if error is not None:
    raise error
  return result


def _hidden_reason(address: str) -> str | None:
  try:
    _in_time(
      lambda: clients.client(address).get_file_info(clients.place(address))
    )
  except Exception as error:  # The one behind the error that is being handled.
    return str(error)
  return None


def _refusal(address: str, reason: str, rights: str) -> errors.UnreachableError:
  scheme = address[:2]
  if _REFUSED.search(reason):
    return errors.UnreachableError(
      f"Access to {address} is denied ({_shortened(reason)}). Ask for the "
      f"right to {rights} that bucket, or take another account: "
      f"{_LOG_IN[scheme]}."
    )
  return errors.UnreachableError(
    f"There are no credentials for {address}; {_LOG_IN[scheme]}."
  )


def _shortened(reason: str) -> str:
  first = errors.first_line(OSError(reason)).partition(" error_info=")[0]
  return first[:300].rstrip(". ")
