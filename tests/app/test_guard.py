"""What the guard lets through, asked as a server would ask it."""

import asyncio
import base64
import json

import pytest

from clip_jax import errors
from clip_jax.app import guard, host_names, limits

UPLOADS = "/tmp/room"
FILE = f"{UPLOADS}/{'0a' * 32}/cat.png"
PICTURE = {"path": FILE, "meta": {"_type": "gradio.FileData"}}
EVENTS = {2: ("picture", "text", "number", "nothing"), 9: ("pictures",)}


class Server:
  """Asks a guard, whose page answers with what it has read."""

  def __init__(
    self, *, host="127.0.0.1", password="", reads=True, uploads=UPLOADS
  ):
    self.asked = []
    self.reads = reads
    self.guard = guard.Guard(
      app=self.page,
      uploads=uploads,
      thumbnail=self.thumbnail,
      events=EVENTS,
      host=host,
      password=password,
    )

  async def thumbnail(self, row):
    if row > 8:
      raise errors.UserError("no row")
    return "image/png", b"\x89PNG%d" % row

  async def page(self, scope, receive, send):
    self.asked.append(scope["path"])
    body, more = b"", self.reads
    while more:
      message = await receive()
      if message["type"] == "http.disconnect":
        raise RuntimeError("The client has gone.")
      body += message["body"]
      more = message["more_body"]
    headers = [(b"content-type", b"text/html"), (b"x-from", b"page")]
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})

  def ask(self, path, *, method="GET", body=b"", chunks=1, **headers):
    """Returns status, headers and body of the answer."""
    size = max(1, -(-len(body) // chunks))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [
      {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
      for i, part in enumerate(parts)
    ]
    sent = []

    async def receive():
      return messages.pop(0)

    async def send(message):
      sent.append(message)

    headers = {"host": "127.0.0.1:7860", **headers}
    scope = {
      "type": "http",
      "method": method,
      "path": path,
      "headers": [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in headers.items()
        if value is not None
      ],
    }
    asyncio.run(self.guard(scope, receive, send))
    start, *parts = sent
    assert start["type"] == "http.response.start" and parts
    assert {part["type"] for part in parts} == {"http.response.body"}
    assert not parts[-1].get("more_body")  # The answer is whole.
    found = {k.decode(): v.decode() for k, v in start["headers"]}
    return start["status"], found, b"".join(part["body"] for part in parts)


@pytest.mark.parametrize(
  "path",
  [
    *(
      "/",
      "/theme.css",
      "/favicon.ico",
      "/assets/index-B1.js",
      "/static/a/b.svg",
    ),
    *("/gradio_api/queue/data",),
    *("/gradio_api/heartbeat/abc",),
    *(f"/gradio_api/file={FILE}", f"/gradio_api/file={FILE}\u202egnp.jpg"),
    *(
      "/gradio_api/upload_progress",
      "/gradio_api/startup-events",
    ),
  ],
)
def test_what_the_page_needs_passes(path):
  server = Server()
  status, headers, _ = server.ask(path)
  assert (status, server.asked) == (200, [path])
  assert headers["x-from"] == "page"
  assert headers["x-content-type-options"] == "nosniff"
  policy = headers["content-security-policy"]
  assert ("sandbox" in policy) == ("file=" in path)
  assert "default-src 'self'" in policy or "sandbox" in policy


@pytest.mark.parametrize(
  "path",
  [
    *(
      "/gradio_api/file=/etc/passwd",
      "/gradio_api/file=http://127.0.0.1/x",
    ),
    *(
      "/gradio_api/file=https://example.com/x.png",
      "/file=/etc/passwd",
    ),
    *(
      f"/gradio_api/file={UPLOADS}/cat.png",
      f"/gradio_api/file={UPLOADS}",
    ),
    *(f"/gradio_api/file={FILE}/../../../etc/passwd",),
    *(f"/gradio_api/file={UPLOADS}/{'0a' * 32}/../x",),
    *(
      f"/gradio_api/file={UPLOADS}/{'0a' * 32}/a/b",
      f"/gradio_api/file=.{FILE}",
    ),
    *(f"/gradio_api/file={UPLOADS}x/{'0a' * 32}/cat.png",),
    *(f"/gradio_api/file={UPLOADS}/{'0A' * 32}/cat.png",),
    *(
      f"/gradio_api/file={FILE}\x00.png",
      f"/gradio_api/file={FILE}\n",
    ),
    *(
      "/gradio_api/proxy=http://x/",
      "/gradio_api/info",
      "/gradio_api/api/x",
    ),
    *(
      "/gradio_api/run/x",
      "/gradio_api/call/x",
      "/gradio_api/stream/a/b/1/x",
    ),
    *(
      "/monitoring",
      "/monitoring/summary",
      "/assets/" + "x" * 256,
      "/config",
      "/login",
      "/docs",
    ),
    *(
      "/gradio_api/vibe-code",
      "/gradio_api/mcp/sse",
      "/gradio_api/runs",
    ),
    *(
      "/gradio_api/custom_component/1/client/x/y",
      "/openapi.json",
      "/runs",
    ),
    *(
      "/assets/../../etc/passwd",
      "/assets/..\\..\\x",
      "/static//etc/passwd",
    ),
    *(
      "/assets/./x",
      "//etc/passwd",
      "/\u202e",
      "/\udcff",
      "/gradio_api/heartbeat/a/b",
    ),
    *("/pictures/",),
    *("/pictures/-1",),
    *("/pictures/1/2",),
    *("/pictures/9",),
    *("/pictures/1.5",),
    *(
      "/pictures/٣",
      "/pictures/0x1",
      "/pictures/" + "9" * 40,
      "/pictures/../x",
    ),
  ],
)
def test_everything_else_is_not_there(path):
  server = Server()
  status, headers, body = server.ask(path)
  assert (status, server.asked) == (404, [])
  assert headers["content-type"] == "text/plain; charset=utf-8"
  assert len(body) < 100


def test_pictures_are_served_by_the_number_of_their_row():
  server = Server()
  status, headers, body = server.ask("/pictures/7")
  assert (status, body, server.asked) == (200, b"\x89PNG7", [])
  assert headers["content-type"] == "image/png"
  assert "sandbox" in headers["content-security-policy"]
  status, headers, body = server.ask("/pictures/0007", method="HEAD")
  assert (status, body, headers["content-length"]) == (200, b"", "5")


@pytest.mark.parametrize(
  "method, path, status",
  [
    ("POST", "/gradio_api/call/x", 404),
    ("POST", "/gradio_api/run/predict", 404),
    ("POST", "/gradio_api/component_server", 404),
    ("POST", "/login", 404),
    ("POST", "/pictures/1", 405),
    ("PUT", "/gradio_api/upload", 405),
    ("DELETE", "/", 405),
    ("OPTIONS", "/gradio_api/queue/join", 405),
    ("TRACE", "/", 405),
    ("GET", "/gradio_api/upload", 404),
  ],
)
def test_other_methods_and_routes_are_refused(method, path, status):
  server = Server()
  assert server.ask(path, method=method)[0] == status
  assert not server.asked


def join(server, value, **options):
  body = value if isinstance(value, bytes) else json.dumps(value).encode()
  return server.ask(
    "/gradio_api/queue/join", method="POST", body=body, **options
  )


def request(**changes):
  """What the page sends."""
  data = [PICTURE, "a/b", 3, None]
  more = {"session_hash": "k3-_x", "trigger_id": 7, "fn_index": 2}
  return {"data": data, **more, **changes}


def test_requests_are_written_anew_and_name_uploads_only():
  good = request()
  told = {**PICTURE, "url": "http://x", "size": "no", "orig_name": 5}
  odd = {**good, "data": [told, *good["data"][1:3], {"a": 1}], "more": [1]}
  for chunks in (1, 5):
    for given in (good, odd):
      status, _, body = join(Server(), given, chunks=chunks)
      assert (status, json.loads(body)) == (200, good)
  for path in ("/etc/passwd", "http://x/y.png", FILE + "/..", "", "x.png"):
    for bad in (
      request(data=[{"path": path}, "", 1, None]),
      request(data=[[[{"path": path}]]], fn_index=9),
      {"data": [[{"a": {"path": path}}]]},
      {"path": path},
    ):
      server = Server()
      assert join(server, bad)[0] == 404
      assert not server.asked


WRONG = (5, -1.5, True, [], {}, "", "x", [[]], {"a": 1}, 10**30, [PICTURE])


@pytest.mark.parametrize(
  "changes, told",
  [
    *(({"fn_index": x}, "fn_index is none") for x in (*WRONG, None, 2.0, -1)),
    *(({"session_hash": x}, "session_hash is no") for x in (None, 5, "", "ü")),
    *(({"trigger_id": x}, "trigger_id is no") for x in ("7", True, 10**30)),
    *(({"data": x}, "data is no list of 4") for x in (None, "abcd", [], [1])),
    *(
      ({"data": [x, "a", 3, None]}, r"data[0] is no picture")
      for x in (*WRONG, {"path_": FILE})
    ),
    *(
      ({"data": [None, x, 3, None]}, "data[1] is no text")
      for x in WRONG
      if not isinstance(x, str)
    ),
    *(
      ({"data": [None, "a", x, None]}, "data[2] is no number")
      for x in ("3", True, [3], 1e300, -(10**30))
    ),
    *(
      ({"data": [x], "fn_index": 9}, "data[0] is no ")
      for x in (5, "x", PICTURE, [5], [[]], [None])
    ),
  ],
)
def test_what_the_page_would_not_send_is_refused_with_its_place(changes, told):
  server = Server()
  status, _, body = join(server, request(**changes))
  assert (status, server.asked) == (400, [])
  assert told in body.decode()


def test_sessions_are_ended_by_their_names():
  def ask(route, **value):
    body = json.dumps(value).encode()
    path = f"/gradio_api/{route}"
    return Server().ask(path, method="POST", body=body)

  status, _, body = ask("reset", event_id="abc", more=1)
  assert (status, json.loads(body)) == (200, {"event_id": "abc"})
  event = {"session_hash": "s", "fn_index": 2, "event_id": "abc"}
  status, _, body = ask("cancel", **event)
  assert (status, json.loads(body)) == (200, event)
  assert ask("reset", event_id=5)[0] == 400
  for field in event:
    assert ask("cancel", **{**event, field: [1]})[0] == 400


@pytest.mark.parametrize(
  "body",
  [
    *(b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"\\ud800": 1}'),
    *(
      b"",
      b"{",
      b"[]",
      b"null",
      b'"a"',
      b"\xff",
      b'{"a":' + b"[" * 10**5,
    ),
    *(
      b'{"data": [{"path": 5}]}',
      b'{"data": [{"path": null}]}',
    ),
    *(b'{"data":' + b"[" * 30 + b"]" * 30 + b"}",),
  ],
)
def test_what_is_no_request_of_the_page_is_refused(body):
  server = Server()
  assert join(server, body)[0] == 400
  assert not server.asked


def test_bodies_have_limits_whether_they_tell_their_length_or_not(monkeypatch):
  monkeypatch.setattr(limits, "REQUEST_BYTES", 100)
  monkeypatch.setattr(limits, "JSON_BYTES", 50)
  large = b"x" * 101
  upload = {"path": "/gradio_api/upload", "method": "POST"}
  server = Server()
  assert server.ask(**upload, body=large[:100], chunks=3)[0] == 200
  assert server.ask(**upload, body=large, content_length="101")[0] == 413
  assert len(server.asked) == 1
  # The page has begun to read, and is told that the sender has gone.
  assert server.ask(**upload, body=large, chunks=3)[0] == 413
  assert join(Server(), {"a": "x" * 60})[0] == 413
  for length in ("-1", "1e3", "x", "9" * 50, "9" * 5000, "²"):
    answer = server.ask(**upload, content_length=length)
    assert answer[0] == 413, length


def test_uploads_have_a_limit_together(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, "UPLOADS_BYTES", 1000)
  monkeypatch.setattr(limits, "LEAST_BYTES", 100)
  upload = {"path": "/gradio_api/upload", "method": "POST"}
  server = Server(uploads=str(tmp_path))
  for room, size in (("a", 500), ("b", 3)):  # Which count as 600.
    (tmp_path / room).mkdir()
    (tmp_path / room / "x.png").write_bytes(bytes(size))
  for size, status in ((400, 200), (401, 507), (400, 200)):
    answer = server.ask(**upload, body=b"x" * size, content_length=str(size))
    assert answer[0] == status
  assert b"in an hour" in server.ask(**upload, body=b"x")[2]  # Of any length.
  other = request(data=[None, "", 1, None])
  assert join(server, other)[0] == 200  # All else goes on.
  server.guard._coming.append(300)  # Another's, on its way.
  assert server.ask(**upload, content_length="101")[0] == 507
  assert server.guard._coming == [300]
  (tmp_path / "a" / "x.png").unlink()
  assert server.ask(**upload, body=b"x", content_length="101")[0] == 200
  assert server.guard._coming == [300]


def failing(error, *, first=500, cause=None):
  """Returns a page that answers, and then raises, as Starlette's do.

  An answer that has begun well is not whole by then.
  """

  async def page(scope, receive, send):
    start = {"type": "http.response.start", "status": first, "headers": []}
    await send(start)
    body = {"type": "http.response.body", "body": b"Internal"}
    await send({**body, "more_body": first == 200})
    raise error from cause

  return page


def ask_failing(page, *args, **options):
  server = Server()
  object.__setattr__(server.guard, "app", page)
  return server.ask(*args, **options)


def test_an_upload_that_cannot_be_read_is_refused(caplog):
  """Gradio's parser raises what it meets first, as AttributeError."""
  caplog.set_level("INFO")
  upload = {"path": "/gradio_api/upload", "method": "POST", "body": b"x"}
  status, _, body = ask_failing(failing(AttributeError("filename")), **upload)
  assert (status, body) == (400, b"This is no upload of the page.")
  full = OSError(28, "No space left on device")
  assert ask_failing(failing(full), **upload)[0] == 507
  assert "No space left" in caplog.text and "Traceback" not in caplog.text


def test_a_session_that_ended_is_no_error_of_the_page():
  class NotFound(Exception):
    status_code = 404

  error = RuntimeError("The response has already started.")
  page = failing(error, first=200, cause=NotFound())
  assert ask_failing(page, "/gradio_api/queue/data")[0] == 200
  with pytest.raises(RuntimeError):
    ask_failing(failing(error, first=200), "/gradio_api/queue/data")


def test_errors_of_the_page_are_not_swallowed():
  error = failing(ZeroDivisionError())
  with pytest.raises(ZeroDivisionError):
    ask_failing(error, "/")
  with pytest.raises(ZeroDivisionError):
    body = json.dumps(request()).encode()
    where = "/gradio_api/queue/join"
    ask_failing(error, where, method="POST", body=body)


@pytest.mark.parametrize(
  "host, asked, status",
  [
    ("127.0.0.1", "127.0.0.1:7860", 200),
    ("127.0.0.1", "localhost", 200),
    ("127.0.0.1", "LOCALHOST:80", 200),
    ("::1", "[::1]:7860", 200),
    ("127.0.0.1", "evil.example:7860", 421),
    ("127.0.0.1", "127.0.0.1.evil.example", 421),
    ("127.0.0.1", None, 421),
    ("127.0.0.1", "", 421),
    ("10.0.0.5", "10.0.0.5:80", 200),
    ("10.0.0.5", "evil.example", 421),
    ("MyBox", "mybox:7860", 200),
    ("MyBox", "MYBOX", 200),
    ("MyBox", "evil.example", 421),
    *(
      (everywhere, asked, status)
      for everywhere in ("0.0.0.0", "::")
      for asked, status in (
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("10.0.0.5.evil.example", 421),
        ("", 421),
        (None, 421),
        ("10.0.0.5:7860", 200),
        ("[fe80::1]:7860", 200),
        ("localhost", 200),
        ("Box:7860", 200),
        ("box.lab.example", 200),
      )
    ),
  ],
)
def test_other_names_of_the_server_are_refused(
  host, asked, status, monkeypatch
):
  host_names._names_of_machine.cache_clear()
  monkeypatch.setattr(host_names.socket, "gethostname", lambda: "box")
  monkeypatch.setattr(host_names.socket, "getfqdn", lambda: "Box.lab.example")
  assert Server(host=host).ask("/", host=asked)[0] == status
  host_names._names_of_machine.cache_clear()


@pytest.mark.parametrize(
  "origin, status",
  [
    (None, 200),
    ("http://127.0.0.1:7860", 200),
    ("http://127.0.0.1:80", 403),
    ("http://evil.example", 403),
    ("null", 403),
  ],
)
def test_other_pages_may_not_ask(origin, status):
  assert join(Server(), request(), origin=origin)[0] == status


def test_a_password_is_asked_for_everywhere():
  server = Server(password="pässword", host="0.0.0.0")

  def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()

  for path in ("/", "/pictures/1", "/etc"):
    status, headers, _ = server.ask(path)
    assert status == 401
    assert headers["www-authenticate"].startswith("Basic realm=")
  wrong = [basic("me:"), basic("me:passwor"), basic("pässword"), "Basic !"]
  wrong += ["Bearer x", basic("pässword:me"), "Basic", basic("me:pässword ")]
  for given in wrong:
    assert server.ask("/", authorization=given)[0] == 401
  assert not server.asked
  right = basic("anybody:pässword")
  assert server.ask("/", authorization=right)[0] == 200
  assert server.ask("/pictures/1", authorization=right)[0] == 200
  # It stands for the check of the name.
  answer = server.ask("/", authorization=right, host="tunnel.example")
  assert answer[0] == 200


def test_a_password_of_other_bytes_than_utf8_is_one():
  server = Server(password="p\udcff")
  for given, status in ((b"me:p\xff", 200), (b"me:p", 401)):
    coded = "Basic " + base64.b64encode(given).decode()
    assert server.ask("/", authorization=coded)[0] == status


def test_web_sockets_are_closed_and_the_start_passes():
  server, sent = Server(reads=False), []

  async def send(message):
    sent.append(message)

  asyncio.run(server.guard({"type": "websocket"}, None, send))
  assert sent == [{"type": "websocket.close", "code": 1008}]
  asyncio.run(server.guard({"type": "lifespan", "path": "x"}, None, send))
  assert server.asked == ["x"]
