"""Connections between the processes of one run, and what is sent over them."""

import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from clip_jax import errors

# A process that fails because another is gone learns so within this time.
SETTLE_SECONDS = 1.0
LONGEST_MESSAGE = 4096


def send(link: socket.socket, *message: Any) -> None:
  """Sends a message, which is a list of JSON's values."""
  with contextlib.suppress(OSError):  # Whoever reads from it will notice.
    link.sendall(json.dumps(message).encode() + b"\n")


def receive(link: socket.socket) -> list[Any]:
  """Returns the next message.

  Raises:
    OSError: the connection is closed, or nothing came in time.
    ValueError: it is no message.
  """
  line = b""
  while not line.endswith(b"\n"):
    # One by one: after a first line may come bytes that are JAX's.
    byte = link.recv(1)
    if not byte:
      raise ConnectionResetError("closed")
    if len(line) > LONGEST_MESSAGE:
      raise ValueError("too long")
    line += byte
  message = json.loads(line)
  if not isinstance(message, list) or not message:
    raise ValueError("no list")
  return message


def is_closed(link: socket.socket) -> bool:
  """Returns whether the other end of a connection is gone."""
  flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
  try:
    return not link.recv(1, flags)
  except BlockingIOError:
    return False
  except OSError:
    return True


def shut(link: socket.socket) -> None:
  """Ends a connection for those who read from it, here and there."""
  with contextlib.suppress(OSError):
    link.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, sink: socket.socket) -> None:
  """Copies what comes from one connection into another until either ends."""
  with contextlib.suppress(OSError):
    while block := source.recv(1 << 16):
      sink.sendall(block)
  # A client of JAX's aborts its process as soon as its connection closes; if
  # that is because process 0 is gone, the watch has ended this one before.
  time.sleep(SETTLE_SECONDS)
  for end in (source, sink):
    shut(end)
  source.close()


def relay(one: socket.socket, other: socket.socket) -> None:
  """Copies between two connections, both ways, until either ends."""
  for link in (one, other):
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  start(_pump, one, other)
  start(_pump, other, one)


def start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
  """Runs a function in a thread that ends with the process."""
  thread = threading.Thread(target=function, args=arguments, daemon=True)
  thread.start()
  return thread


def free_port() -> int:
  """Returns a port of this machine that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def own_address() -> str:
  """Returns HOST:PORT at which other machines reach this one, and it is free.

  The address of the interface that leads to all others; without one, loopback.
  """
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    try:
      link.connect(("192.0.2.1", 9))  # Sends nothing: RFC 5737's, nobody's.
      host = link.getsockname()[0]
    except OSError:
      host = "127.0.0.1"
  return f"{host}:{free_port()}"


def listen(address: tuple[str, int]) -> socket.socket:
  """Listens where others look for this process."""
  host, port = address
  # A machine's own name is often another address for itself than for others.
  if host != "localhost" and not _is_number(host):
    host = ""
  try:
    try:
      family = socket.AF_INET6 if ":" in host else socket.AF_INET
      return socket.create_server((host, port), family=family, backlog=1024)
    except OSError:  # Not one of this machine's: a network translates it.
      return socket.create_server(("", port), backlog=1024)
  except OSError as error:
    raise errors.UserError(
      f"Process 0 cannot listen at {address[0]}:{port}: "
      f"{error.strerror or error}. Give --coordinator another port, in all "
      "processes."
    ) from error


def _is_number(host: str) -> bool:
  try:
    ipaddress.ip_address(host)
  except ValueError:
    return False
  return True


def connect(address: tuple[str, int], end: float) -> socket.socket:
  """Connects, trying until `end`."""
  while True:
    try:
      return socket.create_connection(address, timeout=5)
    except OSError as error:
      if time.monotonic() > end:
        raise errors.UserError(
          f"Process 0 cannot be reached at {address[0]}:{address[1]}: "
          f"{error.strerror or error}. Start it, or mend --coordinator."
        ) from error
      time.sleep(0.2)
