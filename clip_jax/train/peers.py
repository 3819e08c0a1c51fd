"""The processes of one run watch each other: if one is gone, all end.

JAX notices after its heartbeat's timeout that a process is gone, and at once if
it is process 0; then it aborts the others with the stacks of its own code. Here
every process keeps a connection to process 0. A closed one, or one on which
nothing came for too long, ends all processes with one line. What JAX's service
and its clients tell each other passes through process 0's port too: that a
connection closes is known here first.
"""

import contextlib
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from clip_jax import errors

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: another process is gone, try again.
FAILED = 1  # Another process ended with an error of its own.

HEARTBEAT_SECONDS = 30
# A process that fails because another is gone learns so within this time.
_SETTLE_SECONDS = 1.0
_LONGEST_MESSAGE = 4096
_AGAIN = (
  "This process ends too. Start all of them again with the same commands: the "
  "run goes on from its last checkpoint."
)

Leave = Callable[[int, str], Any]


def _leave(code: int, message: str) -> NoReturn:
  """Ends the process at once: what would clean up waits for the others."""
  # Not through sys.stderr, which the main thread may be holding.
  os.write(2, f"Error: {message}\n".encode(errors="replace"))
  os._exit(code)


def _send(link: socket.socket, *message: Any) -> None:
  with contextlib.suppress(OSError):  # Whoever reads from it will notice.
    link.sendall(json.dumps(message).encode() + b"\n")


def _receive(link: socket.socket) -> list[Any]:
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
    if len(line) > _LONGEST_MESSAGE:
      raise ValueError("too long")
    line += byte
  message = json.loads(line)
  if not isinstance(message, list) or not message:
    raise ValueError("no list")
  return message


def _is_closed(link: socket.socket) -> bool:
  """Returns whether the other end of a connection is gone."""
  flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
  try:
    return not link.recv(1, flags)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _shut(link: socket.socket) -> None:
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
  time.sleep(_SETTLE_SECONDS)
  for end in (source, sink):
    _shut(end)
  source.close()


def _relay(one: socket.socket, other: socket.socket) -> None:
  for link in (one, other):
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  _start(_pump, one, other)
  _start(_pump, other, one)


def _start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
  thread = threading.Thread(target=function, args=arguments, daemon=True)
  thread.start()
  return thread


def _free_port() -> int:
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
  return f"{host}:{_free_port()}"


class Peers:
  """This process's connections to the others of a run; a context manager.

  Attributes:
    coordinator: the address that JAX is to take for its coordinator.
  """

  coordinator: str

  def __init__(
    self,
    *,
    process: int,
    processes: int,
    heartbeat_seconds: float,
    leave: Leave,
  ):
    """Keeps what the watch needs; see `connect`."""
    self.process = process
    self.processes = processes
    self._heartbeat_seconds = heartbeat_seconds
    self._leave = leave
    self._server: socket.socket  # What others, or JAX here, connect to.
    self._links: dict[int, socket.socket] = {}
    self._watches: list[threading.Thread] = []
    self._lock = threading.Lock()
    self._over = False

  def _accept(self) -> None:
    with contextlib.suppress(OSError):  # It is closed in the end.
      while True:
        link, _ = self._server.accept()
        _start(self._welcome, link)

  def _watch(self, process: int) -> None:
    """Reads what a process says until it says goodbye, or is gone."""
    link, seconds = self._links[process], self._heartbeat_seconds
    name = f"process {process} of {self.processes}"
    try:
      while True:
        match _receive(link):
          case ["bye"]:
            return
          case ["end", int(code), str(message)]:
            self._end(code, message)
    except TimeoutError:
      self._end(
        EXIT_CODE, f"Nothing came from {name} for {seconds:g} s. {_AGAIN}"
      )
    except (OSError, ValueError):
      self._end(
        EXIT_CODE, f"The connection to {name} is closed: it is gone. {_AGAIN}"
      )

  def _beat(self) -> None:
    while not self._over:
      for link in list(self._links.values()):
        _send(link, "here")
      time.sleep(min(self._heartbeat_seconds / 4, 5))

  def _end(self, code: int, message: str) -> None:
    """Ends this process, after it has told the others why."""
    with self._lock:
      if self._over:
        return
      self._over = True
    self._tell(code, message)
    self._leave(code, message)

  def _tell(self, code: int, message: str) -> None:
    for link in self._links.values():
      _send(link, "end", code, message[: _LONGEST_MESSAGE // 8])

  def _begin_watching(self) -> None:
    for link in self._links.values():
      link.settimeout(self._heartbeat_seconds)
    self._watches = [_start(self._watch, process) for process in self._links]
    _start(self._beat)

  def fail(self, error: BaseException) -> None:
    """Tells the others that this process ends with an error.

    If it does because another is gone, that ends it here.
    """
    if isinstance(error, Exception):
      time.sleep(_SETTLE_SECONDS)
    with self._lock:
      self._over = True
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
      reason = "it was interrupted."
    self._tell(
      FAILED,
      f"Process {self.process} of {self.processes} ended, and this one with "
      f"it: {reason}",
    )

  def close(self) -> None:
    """Says goodbye to the others, and waits until they have done so."""
    with self._lock:
      self._over = True
    for link in self._links.values():
      _send(link, "bye")
    for watch in self._watches:
      watch.join(self._heartbeat_seconds)
    self._drop()

  def _drop(self) -> None:
    """Lets go of every connection."""
    self._over = True
    for link in (*self._links.values(), self._server):
      _shut(link)
      link.close()


class _Host(Peers):
  """Process 0: it listens, and passes on what JAX's service is to hear."""

  def __init__(self, address: tuple[str, int], **options: Any):
    super().__init__(process=0, **options)
    self._server = _listen(address)
    self._arrived = threading.Condition()
    self.coordinator = f"127.0.0.1:{_free_port()}"
    _start(self._accept)

  def _welcome(self, link: socket.socket) -> None:
    link.settimeout(self._heartbeat_seconds)
    try:
      match _receive(link):
        case ["relay"]:
          host, _, port = self.coordinator.rpartition(":")
          end = time.monotonic() + self._heartbeat_seconds
          _relay(link, _connect((host, int(port)), end))
          return
        case ["watch", int(process), int(processes)]:
          if refused := self._refuse(process, processes):
            _send(link, "no", refused)
          else:
            with self._arrived:
              self._links[process] = link
              self._arrived.notify_all()
            return
    except (OSError, ValueError):
      pass  # Somebody else's, or it is gone: it is told by what is missing.
    link.close()

  def _refuse(self, process: int, processes: int) -> str | None:
    if processes != self.processes:
      return f"process 0 was started with --processes {self.processes}"
    known = self._links.get(process)
    if not 0 < process < processes or (known and not _is_closed(known)):
      return f"there is another process with --process-id {process}"
    return None

  def wait(self, seconds: float) -> None:
    """Returns once all processes are here.

    Raises:
      UserError: some did not come in time.
    """
    with self._arrived:
      everybody = self._arrived.wait_for(
        lambda: len(self._links) == self.processes - 1, seconds
      )
    missing = sorted(set(range(1, self.processes)) - set(self._links))
    if not everybody:
      self._drop()
      raise errors.UserError(
        f"Of {self.processes} processes these did not come within "
        f"{seconds:g} s: {', '.join(map(str, missing[:10]))}. Start them, or "
        "see why they cannot reach this one."
      )
    for link in self._links.values():
      _send(link, "go")
    self._begin_watching()


class _Guest(Peers):
  """Any other process: it calls process 0, for itself and for JAX."""

  def __init__(self, address: tuple[str, int], **options: Any):
    super().__init__(**options)
    self._address = address

  def wait(self, seconds: float) -> None:
    """Returns once process 0 says that all processes are here.

    Raises:
      UserError: it cannot be reached, or refuses this process.
    """
    end = time.monotonic() + seconds
    link = _connect(self._address, end)
    _send(link, "watch", self.process, self.processes)
    link.settimeout(max(end - time.monotonic(), 1))
    try:
      answer = _receive(link)
    except (OSError, ValueError) as error:
      link.close()
      raise errors.UserError(
        "Process 0 did not start the run: it is gone, or some other process "
        "did not come. Start all of them again."
      ) from error
    if answer != ["go"]:
      link.close()
      raise errors.UserError(
        f"Process 0 refuses process {self.process} of {self.processes}: "
        f"{answer[-1]}."
      )
    self._links[0] = link
    self._server = socket.create_server(("127.0.0.1", 0))
    self.coordinator = f"127.0.0.1:{self._server.getsockname()[1]}"
    _start(self._accept)
    self._begin_watching()

  def _welcome(self, link: socket.socket) -> None:
    try:
      end = time.monotonic() + self._heartbeat_seconds
      remote = _connect(self._address, end)
    except errors.UserError:  # The watch sees it too.
      link.close()
      return
    _send(remote, "relay")
    _relay(link, remote)


def _listen(address: tuple[str, int]) -> socket.socket:
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


def _connect(address: tuple[str, int], end: float) -> socket.socket:
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


def connect(
  address: str,
  *,
  process: int,
  processes: int,
  join_seconds: float,
  heartbeat_seconds: float = HEARTBEAT_SECONDS,
  leave: Leave = _leave,
) -> Peers:
  """Returns once all processes of a run are connected and watched.

  Args:
    address: HOST:PORT of process 0.
    process: number of this one, from 0.
    processes: how many there are.
    join_seconds: how long to wait for the others.
    heartbeat_seconds: a process that is silent for longer counts as gone.
    leave: ends this process with an exit code, having said why.

  Raises:
    UserError: the others cannot be reached, or do not come.
  """
  host, _, port = address.rpartition(":")
  where = host.strip("[]"), int(port)
  options = {
    "processes": processes,
    "heartbeat_seconds": heartbeat_seconds,
    "leave": leave,
  }
  if process == 0:
    peers = _Host(where, **options)
  else:
    peers = _Guest(where, process=process, **options)
  peers.wait(join_seconds)
  return peers
