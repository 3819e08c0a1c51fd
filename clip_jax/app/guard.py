"""Checks each request before it reaches the page: sender, path, body, size.

It is a plain ASGI application around another one. Gradio serves far more than
a page needs (files, proxies, addresses that it fetches): only the routes of
`_GET` and `_POST` pass, and no path but those of uploads that this page took.
"""

import asyncio
import base64
import binascii
import dataclasses
import hmac
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.app import bodies, host_names, limits, messages

_LOGGER = logging.getLogger(__name__)

App = Callable[
  [messages.Scope, messages.Receive, messages.Send], Awaitable[None]
]

_GET = re.compile(
  r"/(theme\.css|favicon\.ico|(assets|static|svelte)/[\w./@+-]+"
  r"|gradio_api/(theme\.css|app_id|startup-events|upload_progress|queue/data"
  r"|heartbeat/\w+))?"
)
_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
_FILE = f"{_API}file="
_JSON = {f"{_API}{x}": x for x in (bodies.JOIN, bodies.CANCEL, bodies.RESET)}
_PICTURE = re.compile(r"/pictures/([0-9]{1,12})", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_LONGEST_PART = 255  # Of a path: no file has a longer name.
_DEEPEST = 20  # Levels of a JSON value.

# Gradio's own page has inline scripts, and makes functions of templates.
_POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
  "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
  "font-src 'self' data:; connect-src 'self'; object-src 'none'; "
  "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
# For uploaded files: a browser may show them as pictures and run nothing.
_POLICY_OF_FILES = "default-src 'none'; sandbox"


class _Refused(Exception):
  """An answer that refuses a request."""

  def __init__(self, status: int, words: str):
    super().__init__(words)
    self.status = status
    self.words = words


@dataclasses.dataclass(frozen=True)
class Guard:
  """Lets requests of the page through to `app`, and answers all others.

  Attributes:
    app: the page.
    uploads: the directory that it puts uploads into, an absolute path.
    thumbnail: row of the index to PNG or JPEG; raises UserError without one.
    events: the kinds of the inputs of the page's functions.
    host: what the server is bound to.
    password: what is asked for, with any user name; "" for nothing.
  """

  app: App
  uploads: str
  thumbnail: Callable[[int], Awaitable[tuple[str, bytes]]]
  events: bodies.Events
  host: str
  password: str = ""
  # For each upload that is being received, the most bytes that it may have.
  _coming: list[int] = dataclasses.field(default_factory=list, init=False)

  async def __call__(
    self, scope: messages.Scope, receive: messages.Receive, send: messages.Send
  ) -> None:
    """Answers one request."""
    if scope["type"] == "lifespan":
      return await self.app(scope, receive, send)
    if scope["type"] != "http":
      return await send({"type": "websocket.close", "code": 1008})
    headers = _headers(scope)
    try:
      self._check_sender(headers)
      path = _path(scope)
      if found := _PICTURE.fullmatch(path):
        _allow(scope, ("GET", "HEAD"))
        return await self._send_picture(int(found[1]), scope, send)
      await self._pass_on(path, headers, scope, receive, send)
    except _Refused as refused:
      await _answer(send, refused.status, refused.words.encode(), scope=scope)

  def _check_sender(self, headers: Mapping[str, str]) -> None:
    """Refuses other names of this server, other pages, and wrong passwords."""
    host = headers.get("host", "")
    # DNS rebinding: another page's name that was made to lead to this machine.
    if not (self.password or host_names.is_ours(host, self.host)):
      raise _Refused(
        421, "This host name is not one of the page's; open its own address."
      )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
      raise _Refused(403, "Other pages may not ask this one.")
    if self.password and not _knows(headers, self.password):
      raise _Refused(401, "A password is needed.")

  async def _pass_on(self, path, headers, scope, receive, send) -> None:
    """Lets what the page needs through to the application."""
    policy = _POLICY
    if scope["method"] in ("GET", "HEAD"):
      if path.startswith(_FILE):
        self.check_upload(path.removeprefix(_FILE))
        policy = _POLICY_OF_FILES
      elif not _GET.fullmatch(path):
        raise _Refused(404, "There is nothing here.")
      most = limits.JSON_BYTES
    elif path != _UPLOAD and path not in _JSON:
      _allow(scope, ("POST",))
      raise _Refused(404, "There is nothing here.")
    else:
      _allow(scope, ("POST",))
      most = limits.REQUEST_BYTES if path == _UPLOAD else limits.JSON_BYTES
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length) or int(length) > most:
      raise _Refused(413, _too_large(most))
    if scope["method"] != "POST":
      guarded = messages.Guarded(send, policy)
      await self._pass_get(scope, receive, guarded)
    elif path == _UPLOAD:
      expected = int(length) or most
      await self._pass_upload(most, expected, scope, receive, send)
    else:
      body = self.rewrite(await _body(receive, most), _JSON[path])
      scope = {**scope, "headers": _with_length(scope, len(body))}
      receive = messages.replay(body, receive)
      await self.app(scope, receive, messages.Guarded(send, policy))

  async def _pass_get(self, scope, receive, guarded) -> None:
    """Passes on what asks for a file, or for the answers of a session."""
    try:
      await self.app(scope, receive, guarded)
    except RuntimeError as error:
      # A session that ended is told in the answer, which had begun.
      if not (guarded.started and hasattr(error.__cause__, "status_code")):
        raise
      await guarded({"type": "http.response.body", "body": b""})

  async def _pass_upload(self, most, expected, scope, receive, send) -> None:
    """Passes an upload on; a form that Gradio cannot read is the sender's."""
    counted = messages.Counted(receive, most)
    guarded = messages.Guarded(send, _POLICY, counted)
    self._coming.append(expected)  # Before `await`: others may upload, too.
    try:
      await self._check_room()
      await self.app(scope, counted, guarded)
    except _Refused:
      raise
    except OSError as error:
      if guarded.started:
        raise
      _LOGGER.error("An upload was not kept: %s", error)
      raise _Refused(507, "The page could not keep the upload.") from None
    except Exception as error:
      if guarded.started:
        raise
      if not counted.is_too_large:  # Else the cut body caused the error.
        said = errors.first_line(error)
        _LOGGER.info("An upload was refused: %s", said)
        raise _Refused(400, "This is no upload of the page.") from None
    finally:
      self._coming.remove(expected)
    if counted.is_too_large and not guarded.started:
      raise _Refused(413, _too_large(most))
    await guarded.release()

  async def _check_room(self) -> None:
    """Refuses an upload where too much is kept, or on its way."""
    kept = await asyncio.to_thread(limits.kept, self.uploads)
    if kept + sum(self._coming) > limits.UPLOADS_BYTES:
      raise _Refused(
        507, "The page keeps as many uploads as it may; try again in an hour."
      )

  def check_upload(self, path: str) -> None:
    """Refuses a path unless this page made it for an upload."""
    room, _, name = path.removeprefix(f"{self.uploads}/").partition("/")
    if (
      not path.startswith(f"{self.uploads}/")
      or not re.fullmatch(r"[0-9a-f]{64}", room)
      or not name
      or name in (".", "..")
      or "/" in name
    ):
      raise _Refused(404, "There is nothing here.")

  def rewrite(self, body: bytes, route: str) -> bytes:
    """Returns a body of JSON as the page would have sent it.

    Refuses what the page does not send, and files that were not uploaded.
    """
    try:
      value = json.loads(body, parse_constant=_no_number)
      if not isinstance(value, dict):
        raise ValueError("It is no object.")
      self._check_value(value, 0)
      value = bodies.rewritten(
        value, route, events=self.events, check_upload=self.check_upload
      )
    except errors.UserError as error:
      raise _Refused(400, f"This is no request of the page: {error}") from None
    except (ValueError, RecursionError):
      raise _Refused(400, "This is no request of the page.") from None
    return json.dumps(value).encode()

  def _check_value(self, value: Any, depth: int) -> None:
    if depth > _DEEPEST:
      raise ValueError
    if isinstance(value, dict):
      if "path" in value:
        if not isinstance(value["path"], str):
          raise ValueError
        self.check_upload(value["path"])
      value = [*value, *value.values()]
    if isinstance(value, list):
      for each in value:
        self._check_value(each, depth + 1)
    elif isinstance(value, str):
      value.encode()  # Raises ValueError where a surrogate is alone.

  async def _send_picture(
    self, row: int, scope: messages.Scope, send: messages.Send
  ) -> None:
    try:
      kind, data = await self.thumbnail(row)
    except errors.UserError:
      raise _Refused(404, "There is no picture.") from None
    more = {"cache-control": "private, max-age=600"}
    await _answer(send, 200, data, kind=kind, headers=more, scope=scope)


def _no_number(name: str) -> float:
  raise ValueError(f"{name} is no number of JSON.")


def _with_length(
  scope: messages.Scope, length: int
) -> list[tuple[bytes, bytes]]:
  """Returns the headers of a request whose body was written anew."""
  about = (b"content-length", b"content-type", b"transfer-encoding")
  kept = [x for x in scope["headers"] if x[0].lower() not in about]
  return [
    *kept,
    (b"content-length", str(length).encode()),
    (b"content-type", b"application/json"),
  ]


def _headers(scope: messages.Scope) -> dict[str, str]:
  return {
    name.decode("latin-1").lower(): value.decode("latin-1")
    for name, value in scope["headers"]
  }


def _path(scope: messages.Scope) -> str:
  """Returns the path; refuses `..`, empty parts and control characters."""
  path = scope["path"]
  # Names of files may hold any marks of direction, but no controls.
  plain = not _CONTROL.search(path) and "//" not in path
  parts = path.split("/")
  fits = all(len(os.fsencode(part)) <= _LONGEST_PART for part in parts)
  if not plain or not fits or {".", ".."} & set(parts):
    raise _Refused(404, "There is nothing here.")
  return path


def _knows(headers: Mapping[str, str], password: str) -> bool:
  kind, _, coded = headers.get("authorization", "").partition(" ")
  if kind.lower() != "basic":
    return False
  try:
    given = base64.b64decode(coded, validate=True).partition(b":")[2]
  except (binascii.Error, ValueError):
    return False
  # A terminal may have given bytes that are no UTF-8.
  wanted = password.encode(errors="surrogateescape")
  return hmac.compare_digest(given, wanted)


def _allow(scope: messages.Scope, methods: tuple[str, ...]) -> None:
  if scope["method"] not in methods:
    raise _Refused(405, "This cannot be done here.")


def _too_large(most: int) -> str:
  return f"The request has more than the {most:,} bytes allowed."


async def _body(receive: messages.Receive, most: int) -> bytes:
  parts, length, more = [], 0, True
  while more:
    message = await receive()
    if message["type"] == "http.disconnect":
      raise _Refused(400, "The request ended early.")
    parts.append(message.get("body", b""))
    length += len(parts[-1])
    more = message.get("more_body", False)
    if length > most:
      raise _Refused(413, _too_large(most))
  return b"".join(parts)


async def _answer(
  send: messages.Send,
  status: int,
  body: bytes,
  *,
  scope: messages.Scope,
  kind: str = "text/plain; charset=utf-8",
  headers: Mapping[str, str] | None = None,
) -> None:
  """Sends a whole answer."""
  all_headers = {
    **messages.HEADERS,
    "content-security-policy": _POLICY_OF_FILES,
    "content-type": kind,
    "content-length": str(len(body)),
    **(headers or {}),
  }
  if status == 401:
    all_headers["www-authenticate"] = 'Basic realm="clip-jax", charset="UTF-8"'
  start = {"status": status, "headers": messages.encoded(all_headers)}
  await send({"type": "http.response.start", **start})
  sent = b"" if scope["method"] == "HEAD" else body
  await send({"type": "http.response.body", "body": sent})
