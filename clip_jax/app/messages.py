"""The messages of a request and its answer, on their way through the guard."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

HEADERS = {
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-resource-policy": "same-origin",
}


class Counted:
  """The body of a request, cut off where it becomes too large.

  Attributes:
    is_too_large: whether it has.
  """

  def __init__(self, receive: Receive, most: int):
    self._receive = receive
    self._left = most
    self.is_too_large = False

  async def __call__(self) -> Message:
    """Returns the next part of the body."""
    if self.is_too_large:
      return {"type": "http.disconnect"}
    message = await self._receive()
    self._left -= len(message.get("body", b""))
    if self._left < 0:
      self.is_too_large = True
      return {"type": "http.disconnect"}
    return message


def replay(body: bytes, receive: Receive) -> Receive:
  """Returns a function that gives `body` first, then calls `receive`."""
  waiting = [{"type": "http.request", "body": body, "more_body": False}]

  async def again() -> Message:
    return waiting.pop() if waiting else await receive()

  return again


class Guarded:
  """Sends with more headers; nothing at all once a body is too large.

  Of an upload, an answer that it failed waits for `release`: another one may
  take its place.

  Attributes:
    started: whether an answer has begun.
  """

  def __init__(self, send: Send, policy: str, body: Counted | None = None):
    self._send = send
    self._added = {**HEADERS, "content-security-policy": policy}
    self._body = body
    self._held: list[Message] = []
    self.started = False

  async def release(self) -> None:
    """Sends what was held back."""
    for message in self._held:
      await self._send(message)

  async def __call__(self, message: Message) -> None:
    """Sends a part of the answer."""
    if self._body is not None and self._body.is_too_large:
      return
    if message["type"] == "http.response.start":
      kept = [x for x in message["headers"] if x[0].decode() not in self._added]
      message = {**message, "headers": [*kept, *encoded(self._added)]}
      if self._body is not None and message["status"] >= 500:
        self._held.append(message)
        return
      self.started = True
    if self._held:
      self._held.append(message)
      return
    await self._send(message)


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
  """Returns headers as ASGI has them."""
  return [(name.encode(), value.encode()) for name, value in headers.items()]
