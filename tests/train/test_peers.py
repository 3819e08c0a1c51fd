"""Processes of one run notice that another is gone, and end together."""

import contextlib
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from clip_jax import errors
from clip_jax.train import links, peers

HEARTBEAT = 1.0


def free_address():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{listener.getsockname()[1]}"


def connect(process, *, address, processes, ends, join_seconds=20):
  return peers.connect(
    address,
    process=process,
    processes=processes,
    join_seconds=join_seconds,
    heartbeat_seconds=HEARTBEAT,
    leave=lambda code, message: ends.put((process, code, message)),
  )


def connect_all(processes):
  """Connects threads of this process as if they were processes."""
  address, ends = free_address(), queue.Queue()
  found = {}

  def run(process):
    found[process] = connect(
      process, address=address, processes=processes, ends=ends
    )

  threads = [
    threading.Thread(target=run, args=(process,))
    for process in reversed(range(processes))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [found[process] for process in range(processes)], ends


def vanish(peer):
  """Closes the connections of a peer as the system does for a dead process."""
  peer._drop()


def fall_silent(peer):
  peer._over = True


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch):
  made = []
  begin = peers.Peers.__init__

  def note(self, **options):
    made.append(self)
    begin(self, **options)

  monkeypatch.setattr(peers.Peers, "__init__", note)
  yield
  for peer in made:
    if hasattr(peer, "_server"):
      vanish(peer)


def wait_for(ends, count):
  return {
    process: (code, message)
    for process, code, message in (ends.get(timeout=20) for _ in range(count))
  }


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_all_end_at_once_when_one_is_gone(gone):
  all_of_them, ends = connect_all(3)
  started = time.monotonic()
  vanish(all_of_them[gone])
  ended = wait_for(ends, 2)
  assert time.monotonic() - started < HEARTBEAT
  assert ended.keys() == {0, 1, 2} - {gone}
  for code, message in ended.values():
    assert code == peers.EXIT_CODE
    assert f"process {gone} of 3 is closed" in message
    assert "\n" not in message and "from its last checkpoint" in message


@pytest.mark.parametrize("silent", [0, 1])
def test_all_end_when_one_is_silent_for_longer_than_its_heartbeat(silent):
  both, ends = connect_all(2)
  started = time.monotonic()
  time.sleep(1.5 * HEARTBEAT)  # Who has nothing to say is heard all the same.
  assert ends.empty()
  fall_silent(both[silent])
  ((_, (code, message)),) = wait_for(ends, 1).items()
  assert time.monotonic() - started < 2.5 * HEARTBEAT + 2
  assert code == peers.EXIT_CODE
  assert message.startswith(f"Nothing came from process {silent} of 2 for 1 s.")


def test_an_error_of_one_is_told_to_all():
  all_of_them, ends = connect_all(3)
  all_of_them[1].fail(errors.UserError("No data.\nMore."))
  ended = wait_for(ends, 2)
  assert {code for code, _ in ended.values()} == {peers.FAILED}
  for _, message in ended.values():
    assert message == "Process 1 of 3 ended, and this one with it: No data."


def test_those_that_are_done_part_in_peace():
  all_of_them, ends = connect_all(3)
  threads = [threading.Thread(target=peer.close) for peer in all_of_them]
  for thread in threads:
    thread.start()
    time.sleep(0.1)
  for thread in threads:
    thread.join()
  assert ends.empty()


@pytest.mark.parametrize("asked", [(0,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("in_step", [True, False])
def test_those_that_are_asked_to_stop_do_so_at_one_point(asked, in_step):
  all_of_them, ends = connect_all(3)
  barrier, stopped = threading.Barrier(3), {}
  rng = random.Random(len(asked))
  waits = [[rng.uniform(0, 0.004) for _ in range(500)] for _ in all_of_them]

  def run(process):
    for point in range(1, 500):
      time.sleep(waits[process][point])
      if in_step:  # As a collective keeps them.
        barrier.wait(20)
      if process in asked and point == 20 + process:
        all_of_them[process].stop_asked.set()
      if all_of_them[process].poll(point):
        stopped[process] = point
        return

  threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(stopped) == 3 and len(set(stopped.values())) == 1
  # Soon after the first was asked, and not before.
  assert stopped[0] > 20 + min(asked)
  assert stopped[0] < 60 or not in_step
  assert ends.empty()


def test_a_process_that_waits_for_the_point_lets_others_threads_work():
  """JAX's own service waits with Python's lock, which our relays need."""
  both, _ = connect_all(2)
  both[0]._hold()
  waiting = threading.Thread(target=both[0].poll, args=(1,))
  waiting.start()
  assert not both[1].poll(1)
  waiting.join(0.2)
  assert waiting.is_alive()
  both[0]._stop_at(2)
  waiting.join(20)
  assert not waiting.is_alive() and both[0].poll(2)


def test_what_jax_says_passes_through_unchanged():
  both, _ = connect_all(2)
  host, guest = (peer.coordinator.rpartition(":") for peer in both)
  said = bytes(range(256)) * 4000
  with (
    socket.create_server((host[0], int(host[2]))) as service,
    socket.create_connection((guest[0], int(guest[2]))) as client,
  ):
    answering, _ = service.accept()
    with answering:
      for one, other in ((client, answering), (answering, client)):
        sender = threading.Thread(target=one.sendall, args=(said,))
        sender.start()
        got = b""
        while len(got) < len(said):
          got += other.recv(1 << 16)
        sender.join()
        assert got == said


@pytest.mark.parametrize(
  "process, processes, message",
  [
    (1, 3, "was started with --processes 2"),
    (2, 2, "another process with --process-id 2"),
    (0, 2, "cannot listen"),
  ],
)
def test_a_process_that_does_not_belong_is_refused(process, processes, message):
  address, ends = free_address(), queue.Queue()
  waiting = []

  def wait():
    with pytest.raises(
      errors.UserError, match=r"these did not come .* 1\. Start"
    ):
      connect(0, address=address, processes=2, ends=ends, join_seconds=2)
    waiting.append("missed")

  thread = threading.Thread(target=wait)
  thread.start()
  time.sleep(0.2)
  with pytest.raises(errors.UserError, match=message):
    connect(
      process, address=address, processes=processes, ends=ends, join_seconds=2
    )
  thread.join()
  assert waiting == ["missed"]


def test_a_host_that_cannot_be_reached_is_named():
  address = free_address()
  with pytest.raises(errors.UserError, match=f"cannot be reached at {address}"):
    connect(1, address=address, processes=2, ends=None, join_seconds=0.3)


def test_strangers_do_no_harm():
  both, ends = connect_all(2)
  address = both[1]._address
  for line in (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff\n",
    b"[" * 100_000,
    b'["x"]\n',
  ):
    with socket.create_connection(address) as stranger:
      stranger.sendall(line)
      stranger.settimeout(5)
      with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(100) == b""
  time.sleep(1.2 * HEARTBEAT)
  assert ends.empty()


def test_an_error_is_not_said_beside_the_reason_why_a_process_is_ended(
  monkeypatch,
):
  waits = []
  clock = types.SimpleNamespace(sleep=waits.append)
  monkeypatch.setattr(peers, "time", clock)
  for is_being_ended in (False, True):
    waits.clear()
    own = peers.Peers(
      process=0, processes=2, heartbeat_seconds=1, leave=lambda *_: None
    )
    own._over = is_being_ended
    own.fail(errors.UserError("The same on both."))
    # Time for the thread that has told why to end the process.
    assert waits == [links.SETTLE_SECONDS] * (1 + is_being_ended)


_FOUND = """
import argparse, time
from clip_jax.cli.commands import joining
flags = argparse.Namespace(coordinator=None, distributed=True, heartbeat=10)
with joining.joined_processes(flags):
  print("joined", flush=True)
  while True:
    joining._meet()
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_processes_that_jax_has_found_end_with_process_0():
  variables = {
    "SLURM_JOB_ID": str(random.SystemRandom().randrange(4096)),
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
  }
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", _FOUND],
      env={**os.environ, **variables, "SLURM_PROCID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    for process in pair:
      while "joined" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()  # It printed what gloo says.
    pair[0].kill()
    started = time.monotonic()
    said = pair[1].communicate(timeout=60)[1]
    assert time.monotonic() - started < 10 + 2
    assert pair[1].returncode == peers.EXIT_CODE
    # gRPC's threads may write after it.
    assert said.count("Error: The connection to process 0") == 1
    assert "Traceback" not in said and "***" not in said
  finally:
    for process in pair:
      process.kill()
      process.communicate()
