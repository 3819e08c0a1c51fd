"""The processes of one run watch each other: if one ends early, all end.

JAX notices a lost process only after its heartbeat's timeout, or at once if it
is process 0; it then aborts the others with stack traces of its own code. Here
every process keeps a connection to process 0. If one is closed, or silent for
too long, all processes end with a message of one line. The traffic between
JAX's service and its clients passes through process 0's port as well, so that
this module learns of a closed connection before JAX does.

They also agree here on where to stop. JAX's own service for it waits for its
messages while it holds Python's global lock, and threads of Python relay them.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from clip_jax import errors, names
from clip_jax.train import links

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: another process is lost; try again.
FAILED = 1  # Another process ended with an error of its own.

_AGAIN = (
  "This process ends too. Start all of them again with the same commands: a "
  "training goes on from its last checkpoint, a suite after its last set, an "
  "index after its last batches."
)

Leave = Callable[[int, str], Any]


def _leave(code: int, message: str) -> NoReturn:
  """Ends the process at once, because cleaning up would wait for the others."""
  # Not through sys.stderr, which the main thread may have locked.
  os.write(2, f"Error: {message}\n".encode(errors="replace"))
  os._exit(code)


class Peers:
  """This process's connections to the others of a run; a context manager.

  Attributes:
    coordinator: the address that JAX is given as that of its coordinator.
    stop_asked: an event; where it is set, all processes stop at one point.
  """

  coordinator: str
  stop_asked: threading.Event

  def __init__(
    self,
    *,
    process: int,
    processes: int,
    heartbeat_seconds: float,
    leave: Leave,
  ):
    """Stores the arguments of `connect`."""
    self.process = process
    self.processes = processes
    self._heartbeat_seconds = heartbeat_seconds
    self._leave = leave
    self._server: socket.socket  # Others, or JAX here, connect to it.
    self._links: dict[int, socket.socket] = {}
    self._watches: list[threading.Thread] = []
    self._lock = threading.Lock()
    self._over = False
    self.stop_asked = threading.Event()
    self._stopping = threading.Condition()
    self._passed = 0  # Points, of this process.
    self._is_held = False  # No point is passed until all know the last one.
    self._last: int | None = None  # The point at which all stop.
    self._passed_by: dict[int, int] = {}  # Points by process, of process 0.

  def _accept(self) -> None:
    with contextlib.suppress(OSError):  # It is closed in the end.
      while True:
        link, _ = self._server.accept()
        links.start(self._welcome, link)

  def _welcome(self, link: socket.socket) -> None:
    raise NotImplementedError

  def _watch(self, process: int) -> None:
    """Reads the messages of a process until it says goodbye or is lost."""
    link, seconds = self._links[process], self._heartbeat_seconds
    name = f"process {process} of {self.processes}"
    try:
      while True:
        match links.receive(link):
          case ["bye"]:
            return
          case ["end", int(code), str(message)]:
            self._end(code, message)
          case ["stop"]:
            self._begin_to_stop()
          case ["where"]:
            self._hold()
            links.send(link, "at", self._passed)
          case ["at", int(passed)]:
            self._note_passed(process, passed)
          case ["last", int(point)]:
            self._stop_at(point)
    except TimeoutError:
      self._end(
        EXIT_CODE, f"Nothing came from {name} for {seconds:g} s. {_AGAIN}"
      )
    except (OSError, ValueError):
      self._end(
        EXIT_CODE, f"The connection to {name} is closed: it is gone. {_AGAIN}"
      )

  def poll(self, point: int) -> bool:
    """Returns whether all processes stop at this point.

    Args:
      point: its number; all processes pass the same ones in order.
    """
    with self._stopping:
      self._passed = point
      self._stopping.wait_for(
        lambda: not self._is_held or self._last is not None
      )
      return self._last is not None and point >= self._last

  def _await_stop(self) -> None:
    self.stop_asked.wait()
    self._begin_to_stop()

  def _begin_to_stop(self) -> None:
    """Asks process 0 to stop all; on process 0, asks where each is."""
    raise NotImplementedError

  def _hold(self) -> None:
    with self._stopping:
      self._is_held = True

  def _note_passed(self, process: int, passed: int) -> None:
    """Notes where a process is; tells all when the last one has said it."""
    with self._stopping:
      self._passed_by[process] = passed
      if len(self._passed_by) < self.processes:
        return
      last = max(self._passed_by.values()) + 1
    for link in self._links.values():
      links.send(link, "last", last)
    self._stop_at(last)

  def _stop_at(self, point: int) -> None:
    with self._stopping:
      self._last = point
      self._stopping.notify_all()

  def _beat(self) -> None:
    while not self._over:
      for link in list(self._links.values()):
        links.send(link, "here")
      time.sleep(min(self._heartbeat_seconds / 4, 5))

  def _end(self, code: int, message: str) -> None:
    """Tells the others why, and ends this process."""
    with self._lock:
      if self._over:
        return
      self._over = True
    self._tell(code, message)
    self._leave(code, message)

  def _tell(self, code: int, message: str) -> None:
    for link in self._links.values():
      links.send(link, "end", code, message[: links.LONGEST_MESSAGE // 8])

  def _begin_watching(self) -> None:
    for link in self._links.values():
      link.settimeout(self._heartbeat_seconds)
    self._watches = [
      links.start(self._watch, process) for process in self._links
    ]
    links.start(self._beat)
    links.start(self._await_stop)

  def fail(self, error: BaseException) -> None:
    """Tells the others that this process ends with an error.

    If the reason for the error is a lost process, this call ends the process.
    """
    if isinstance(error, Exception):
      time.sleep(links.SETTLE_SECONDS)
    with self._lock:
      leaving, self._over = self._over, True
    if leaving:  # Another thread is ending this process, and says why.
      time.sleep(links.SETTLE_SECONDS)
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
      links.send(link, "bye")
    for watch in self._watches:
      watch.join(self._heartbeat_seconds)
    self._drop()

  def _drop(self) -> None:
    """Closes every connection."""
    self._over = True
    for link in (*self._links.values(), self._server):
      links.shut(link)
      link.close()


class _Host(Peers):
  """Process 0: it listens, and relays connections to JAX's service."""

  def __init__(self, address: tuple[str, int], **options: Any):
    super().__init__(process=0, **options)
    self._server = links.listen(address)
    self._arrived = threading.Condition()
    self.coordinator = f"127.0.0.1:{links.free_port()}"
    links.start(self._accept)

  def _welcome(self, link: socket.socket) -> None:
    link.settimeout(self._heartbeat_seconds)
    try:
      match links.receive(link):
        case ["relay"]:
          host, _, port = self.coordinator.rpartition(":")
          end = time.monotonic() + self._heartbeat_seconds
          links.relay(link, links.connect((host, int(port)), end))
          return
        case ["watch", int(process), int(processes)]:
          if refused := self._refuse(process, processes):
            links.send(link, "no", refused)
          else:
            with self._arrived:
              self._links[process] = link
              self._arrived.notify_all()
            return
    except (OSError, ValueError):
      pass  # Not of this run, or lost: `wait` tells which are missing.
    link.close()

  def _refuse(self, process: int, processes: int) -> str | None:
    if processes != self.processes:
      return f"process 0 was started with --processes {self.processes}"
    known = self._links.get(process)
    if not 0 < process < processes or (known and not links.is_closed(known)):
      return f"there is another process with --process-id {process}"
    return None

  def _begin_to_stop(self) -> None:
    with self._stopping:
      if self._is_held:
        return
      self._is_held = True
    for link in self._links.values():
      links.send(link, "where")
    self._note_passed(0, self._passed)

  def wait(self, seconds: float) -> None:
    """Waits until all processes are connected.

    Raises:
      UserError: some did not connect in time.
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
        "find out why they cannot reach this one."
      )
    for link in self._links.values():
      links.send(link, "go")
    self._begin_watching()


class _Guest(Peers):
  """Any other process: it connects to process 0, for itself and for JAX."""

  def __init__(self, address: tuple[str, int], **options: Any):
    super().__init__(**options)
    self._address = address

  def _begin_to_stop(self) -> None:
    links.send(self._links[0], "stop")

  def wait(self, seconds: float) -> None:
    """Waits until process 0 says that all processes are connected.

    Raises:
      UserError: it cannot be reached, or refuses this process.
    """
    end = time.monotonic() + seconds
    link = links.connect(self._address, end)
    links.send(link, "watch", self.process, self.processes)
    link.settimeout(max(end - time.monotonic(), 1))
    try:
      answer = links.receive(link)
    except (OSError, ValueError) as error:
      link.close()
      raise errors.UserError(
        "Process 0 did not start the run: it has ended, or some other process "
        "did not connect. Start all of them again."
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
    links.start(self._accept)
    self._begin_watching()

  def _welcome(self, link: socket.socket) -> None:
    try:
      end = time.monotonic() + self._heartbeat_seconds
      remote = links.connect(self._address, end)
    except errors.UserError:  # `_watch` sees it, too.
      link.close()
      return
    links.send(remote, "relay")
    links.relay(link, remote)


def connect(
  address: str,
  *,
  process: int,
  processes: int,
  join_seconds: float,
  heartbeat_seconds: float = names.HEARTBEAT_SECONDS,
  leave: Leave = _leave,
) -> Peers:
  """Waits until all processes of a run are connected, and watches them.

  Args:
    address: HOST:PORT of process 0.
    process: the number of this process, from 0.
    processes: the number of processes.
    join_seconds: how long to wait for the others.
    heartbeat_seconds: a process that is silent for longer counts as lost.
    leave: a function that prints a message and ends this process with an exit
      code.

  Raises:
    UserError: the others cannot be reached, or do not connect.
  """
  host, _, port = address.rpartition(":")
  host_and_port = host.strip("[]"), int(port)
  options = {
    "processes": processes,
    "heartbeat_seconds": heartbeat_seconds,
    "leave": leave,
  }
  if process == 0:
    peers = _Host(host_and_port, **options)
  else:
    peers = _Guest(host_and_port, process=process, **options)
  peers.wait(join_seconds)
  return peers
