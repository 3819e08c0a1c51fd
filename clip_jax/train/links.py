"""Connections between the processes of one run, and their messages."""

import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from clip_jax import errors

# A process that fails because another has ended learns of it within this time.
SETTLE_SECONDS = 1.0
LONGEST_MESSAGE = 4096


def send(link: socket.socket, *message: Any) -> None:
  """Sends a message, which is a list of JSON values."""
  with contextlib.suppress(OSError):  # The thread that reads notices the error.
    link.sendall(json.dumps(message).encode() + b"\n")


def receive(link: socket.socket) -> list[Any]:
  """Returns the next message.

  Raises:
    OSError: the connection is closed, or nothing arrived in time.
    ValueError: the bytes are not a message.
  """
  line = b""
  while not line.endswith(b"\n"):
    # Byte by byte, because bytes for JAX may follow the first line.
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
  """Whether the other end of a connection has closed it."""
  flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
  try:
    return not link.recv(1, flags)
  except BlockingIOError:
    return False
  except OSError:
    return True


def shut(link: socket.socket) -> None:
  """Closes a connection, so that reading from it ends on both sides."""
  with contextlib.suppress(OSError):
    link.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, sink: socket.socket) -> None:
  """Copies bytes from one connection to another until either ends."""
  with contextlib.suppress(OSError):
    while block := source.recv(1 << 16):
      sink.sendall(block)
  # JAX's client aborts its process as soon as its connection closes; if the
  # reason is that process 0 has ended, `Peers` has ended this process before.
  time.sleep(SETTLE_SECONDS)
  for end in (source, sink):
    shut(end)
  source.close()


def relay(one: socket.socket, other: socket.socket) -> None:
  """Copies bytes between two connections, both ways, until either ends."""
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
  """Returns a free port of this machine."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def own_address() -> str:
  """Returns HOST:PORT of this machine with a free port, for other machines.

  The host is the address of the interface of the default route, or loopback if
  there is none.
  """
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    try:
      # An address that RFC 5737 reserves; nothing is sent.
      link.connect(("192.0.2.1", 9))
      host = link.getsockname()[0]
    except OSError:
      host = "127.0.0.1"
  return f"{host}:{free_port()}"


def listen(address: tuple[str, int]) -> socket.socket:
  """Returns a socket that listens at the address other processes connect to."""
  host, port = address
  # A machine's name often means another address on it than on other machines.
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
  """Returns a connection to `address`; retries until the time `end`."""
  while True:
    try:
      return socket.create_connection(address, timeout=5)
    except OSError as error:
      if time.monotonic() > end:
        raise errors.UserError(
          f"Process 0 cannot be reached at {address[0]}:{address[1]}: "
          f"{error.strerror or error}. Start it, or correct --coordinator."
        ) from error
      time.sleep(0.2)
