"""Runs the page until it is stopped."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax import errors, inference
from clip_jax.app import answering, page, searching, watching
from clip_jax.app import guard as guard_lib
from clip_jax.app import tabs as tabs_lib

_LOGGER = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")
PORT = 7860
_ENDING_SECONDS = 2
# So that Gradio tells nobody, fetches nothing and has one place for uploads.
_SETTINGS = {
  "GRADIO_ANALYTICS_ENABLED": "False",
  "GRADIO_RUN_HISTORY": "False",
  "GRADIO_SSR_MODE": "False",
  "GRADIO_MCP_SERVER": "False",
  "HF_HUB_DISABLE_TELEMETRY": "1",
  "DO_NOT_TRACK": "1",
}


def serve(
  load: Callable[[], inference.Clip],
  *,
  index: str | None = None,
  keys: str | None = None,
  runs: str | None = None,
  host: str = LOCAL[0],
  port: int = PORT,
  password: str = "",
  labels: str = "",
) -> str:
  """Shows a model on a page in the browser, until Ctrl-C or SIGTERM.

  Args:
    load: returns the model; called once the rest is found to be in order.
    index: that `clip-jax embed` made of this model, its directory; or a file of
      FAISS or usearch that was made of one.
    keys: of such a file, the directory; None for that of the same name.
    runs: a workdir, or a directory of several, to watch, also in a bucket.
    host: name or address to listen at; anybody who reaches it may ask.
    port: to listen at; 0 takes a free one.
    password: that visitors are asked for; "" for none.
    labels: in the field of labels at first; "" for a few examples.

  Returns:
    The address that the page had.

  Raises:
    UserError: Gradio is missing, the port is taken, or the model, the index
      or the runs cannot be used.
  """
  os.environ.update(_SETTINGS)
  with (
    _ended_by_sigterm(),
    tempfile.TemporaryDirectory(prefix="clip-jax-app-") as room,
    _listening(host, port) as listening,
  ):
    uploads = os.path.realpath(room)
    os.environ["GRADIO_TEMP_DIR"] = uploads  # Read when Gradio is imported.
    page.gradio()
    find = None if runs is None else watching.finder(runs)
    workdirs = None if find is None else find()
    engine = answering.Engine(load())
    opened = None
    if index is not None:
      opened = searching.open_index(index, engine, keys=keys)
    tabs = tabs_lib.Tabs(
      engine, uploads=uploads, index=opened, runs=workdirs, find=find
    )
    _LOGGER.info("Compiling the model for the page.")
    engine.warm_up()
    app = make_app(tabs, host=host, password=password, labels=labels)
    address = _address(host, listening)
    if host not in LOCAL and not password:
      _LOGGER.warning(
        "The page is open to everybody who reaches %s: give --password.", host
      )
    _LOGGER.info("The page is at %s (Ctrl-C ends it).", address)
    _run(app, listening)
  return address


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
  """Has SIGTERM end the page as Ctrl-C does, so that uploads are removed."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def interrupt(*_):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def make_app(
  tabs: tabs_lib.Tabs, *, host: str, password: str = "", labels: str = ""
) -> guard_lib.Guard:
  """Returns the page with its guard, an ASGI application.

  Args:
    tabs: what stands behind the page.
    host: what the server is bound to.
    password: as in `serve`.
    labels: as in `serve`.
  """

  async def thumbnail(row: int) -> tuple[str, bytes]:
    return await asyncio.to_thread(tabs.thumbnail, row)

  built = page.build(tabs, labels=labels) if labels else page.build(tabs)
  return guard_lib.Guard(
    app=built.app,
    events=built.events,
    uploads=tabs.uploads,
    thumbnail=thumbnail,
    host=host,
    password=password,
  )


def _listening(host: str, port: int) -> socket.socket:
  """Returns a socket that listens; before anything that takes long."""
  if not host:
    raise errors.UserError(
      "--host is empty; give a name or an address, such as 0.0.0.0 for every "
      "network of this machine."
    )
  kind = socket.AF_INET6 if ":" in host else socket.AF_INET
  with contextlib.ExitStack() as stack:
    found = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
    try:
      found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      found.bind((host, port))
      found.listen(128)
    except (OSError, ValueError, TypeError) as error:  # As no name can be.
      why = getattr(error, "strerror", None) or error
      raise errors.UserError(
        f"The page cannot listen at {host!r}, port {port}: {why}. Give another "
        "--port (0 takes a free one) or --host."
      ) from None
    stack.pop_all()
  return found


def _address(host: str, listening: socket.socket) -> str:
  port = listening.getsockname()[1]
  shown = f"[{host}]" if ":" in host else host
  return f"http://{shown}:{port}/"


def _run(app: Any, listening: socket.socket) -> None:
  import uvicorn  # pyright: ignore[reportMissingImports]

  server = uvicorn.Server(
    uvicorn.Config(
      app,
      log_level="error",
      access_log=False,
      server_header=False,
      timeout_graceful_shutdown=_ENDING_SECONDS,
      limit_concurrency=256,
      ws="none",
    )
  )
  with contextlib.suppress(KeyboardInterrupt):  # It has ended as it was told.
    server.run(sockets=[listening])
