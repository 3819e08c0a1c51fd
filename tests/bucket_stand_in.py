"""A stand-in for buckets on loopback: S3, and Cloud Storage's JSON API.

It holds objects in memory, serves both on one port, and fails where it is told
to, so that tests need no network and no account.
"""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import itertools
import json
import pathlib
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any
from xml.sax import saxutils

from clip_jax.buckets import attempts

SCHEMES = ("gs", "s3")
FAULTS = ("500", "503", "429", "cut", "reset")  # What may pass.
STALL_SECONDS = 60.0  # Longer than any client here waits.
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_STATUS = {"500": 500, "503": 503, "429": 429}
_CODES = {
  403: "AccessDenied",
  404: "NoSuchKey",
  429: "SlowDown",
  500: "InternalError",
  503: "SlowDown",
}


@dataclasses.dataclass(frozen=True)
class Object:
  """An object, and which of the writes in the store made it."""

  data: bytes
  generation: int
  written: datetime.datetime

  @property
  def etag(self) -> str:
    """The digest that S3 has for it."""
    return hashlib.md5(self.data, usedforsecurity=False).hexdigest()


class Store:
  """What the server holds, and what it is to fail with.

  Attributes:
    objects: by bucket and name.
    faults: what happens to the next requests, one each: "500", "503", "429",
      "stall" (no answer), "cut" (half of the answer), "reset" or "" (none).
    faulty: what the method and path of a request hold to meet one of them.
    happened: the faults that requests met.
    refuse: a status that all requests get, or None.
    requests: method and path of each request.
    seconds: that pass before each answer.
  """

  def __init__(self):
    self.objects: dict[str, dict[str, Object]] = {}
    self.faults: collections.deque[str] = collections.deque()
    self.faulty = ""
    self.happened: list[str] = []
    self.refuse: int | None = None
    self.requests: list[str] = []
    self.seconds = 0.0
    self.uploads: dict[str, tuple[str, str, dict[int, bytes]]] = {}
    self.numbers = itertools.count(1)
    self.lock = threading.Lock()
    self.closing = threading.Event()
    self.address = ""

  @property
  def environment(self) -> dict[str, str]:
    """Variables of the environment that lead clients here."""
    return {
      "STORAGE_EMULATOR_HOST": self.address,
      "TENSORSTORE_GCS_HTTP_URL": self.address,
      "AWS_ENDPOINT_URL": self.address,
      "AWS_ACCESS_KEY_ID": "somebody",
      "AWS_SECRET_ACCESS_KEY": "something",
      "AWS_EC2_METADATA_DISABLED": "true",
    }

  def upload(self, bucket: str, root: pathlib.Path) -> None:
    """Writes all files below a folder of the disk."""
    self.objects.setdefault(bucket, {})
    for path in sorted(root.rglob("*")):
      if path.is_file():
        name = path.relative_to(root).as_posix()
        self.put(bucket, name, path.read_bytes())

  def put(self, bucket: str, name: str, data: bytes) -> Object:
    """Writes an object, or replaces one."""
    now = datetime.datetime.now(datetime.UTC)
    made = Object(data, next(self.numbers), now)
    self.objects.setdefault(bucket, {})[name] = made
    return made

  def listed(
    self, bucket: str, prefix: str, delimiter: str
  ) -> tuple[dict[str, Object], list[str]]:
    """Returns the objects below a prefix, and the folders there."""
    found, folders = {}, set()
    for name, each in sorted(self.objects[bucket].items()):
      if name.startswith(prefix):
        head, mark, _ = name[len(prefix) :].partition(delimiter or "\0")
        if mark:
          folders.add(prefix + head + mark)
        else:
          found[name] = each
    return found, sorted(folders)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True
  wbufsize = 2**16
  store: Store

  def log_message(self, *_) -> None:  # pyright: ignore
    pass

  def _serve(self) -> None:
    parts = urllib.parse.urlsplit(self.path)
    self.query = dict(
      urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    )
    self.body = self._read_body()
    path = parts.path
    self.is_json = (
      re.match(r"/(upload/|download/)?storage/v1/", path) is not None
    )
    self.fault = ""
    with self.store.lock:
      asked = f"{self.command} {self.path}"
      self.store.requests.append(asked)
      if self.store.faults and self.store.faulty in asked:
        self.fault = self.store.faults.popleft()
        if self.fault:
          self.store.happened.append(self.fault)
    time.sleep(self.store.seconds)
    if self.store.closing.is_set():  # Of a connection that was kept open.
      self.close_connection = True
    elif self.fault == "stall":
      self.store.closing.wait(STALL_SECONDS)
      self.close_connection = True
    elif self.fault == "reset":
      linger = struct.pack("ii", 1, 0)  # The system then sends a reset.
      self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
      self.connection.close()
      self.close_connection = True
    elif status := _STATUS.get(self.fault, self.store.refuse):
      self._fail(status)
    elif self.is_json:
      self._json_api(path)
    else:
      self._s3(urllib.parse.unquote(path).lstrip("/"))

  def handle_expect_100(self) -> bool:
    self.send_response_only(100)
    self.end_headers()
    self.wfile.flush()  # Else the client waits for a second.
    return True

  do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

  def _read_body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
      pieces = []
      while size := int(self.rfile.readline().split(b";")[0], 16):
        pieces.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      data = b"".join(pieces)
    else:
      data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if "aws-chunked" in self.headers.get("Content-Encoding", ""):
      data = _unchunked(data)
    return data

  def _send(self, status: int, data: bytes = b"", **headers: str) -> None:
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
      self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command == "HEAD":
      return
    if self.fault == "cut" and data:
      self.wfile.write(data[: len(data) // 2])
      self.wfile.flush()
      self.connection.shutdown(socket.SHUT_RDWR)
      self.close_connection = True
    else:
      self.wfile.write(data)

  def _fail(self, status: int) -> None:
    if self.is_json:
      error = {"code": status, "message": _CODES[status], "errors": []}
      self._send_json({"error": error}, status=status)
    else:
      self._send(
        status,
        f"<Error><Code>{_CODES[status]}</Code><Message>no</Message></Error>".encode(),
        Content_Type="application/xml",
      )

  def _send_json(self, value: object, *, status: int = 200) -> None:
    data = json.dumps(value).encode()
    self._send(status, data, Content_Type="application/json")

  def _send_object(self, found: Object) -> None:
    headers = {
      "ETag": f'"{found.etag}"',
      "Last_Modified": found.written.strftime("%a, %d %b %Y %H:%M:%S GMT"),
      "Content_Type": "application/octet-stream",
      "x_goog_generation": str(found.generation),
    }
    match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    total = len(found.data)
    if self.command == "HEAD":
      self._send(200, Content_Length=str(total), **headers)
    elif match is None:
      self._send(200, found.data, **headers)
    elif int(match[1]) >= total:
      self._send(416, Content_Range=f"bytes */{total}")
    else:
      first, last = int(match[1]), min(int(match[2] or total), total - 1)
      headers["Content_Range"] = f"bytes {first}-{last}/{total}"
      self._send(206, found.data[first : last + 1], **headers)

  def _json_api(self, path: str) -> None:
    store, query = self.store, self.query
    match = re.fullmatch(
      r"/(?:upload/|download/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path
    )
    if "upload_id" in query and self.command == "PUT":
      self._resume(query["upload_id"])
      return
    bucket = urllib.parse.unquote(match[1])
    name = urllib.parse.unquote(match[2]) if match[2] else None
    if bucket not in store.objects:
      self._fail(404)
    elif path.startswith("/upload/"):
      self._upload(bucket)
    elif name is not None:
      found = store.objects[bucket].get(name)
      if found is None:
        self._fail(404)
      elif self.command == "DELETE":
        del store.objects[bucket][name]
        self._send(204)
      elif query.get("alt") == "media":
        self._send_object(found)
      else:
        self._send_json(_described(bucket, name, found))
    elif path.endswith("/o"):
      found, folders = store.listed(
        bucket, query.get("prefix", ""), query.get("delimiter", "")
      )
      items = [_described(bucket, name, each) for name, each in found.items()]
      self._send_json({"items": items, "prefixes": folders})
    else:
      self._send_json({"kind": "storage#bucket", "name": bucket, "id": bucket})

  def _upload(self, bucket: str) -> None:
    kind, query = self.query["uploadType"], self.query
    if kind == "resumable":
      name = query.get("name") or json.loads(self.body)["name"]
      number = f"u{next(self.store.numbers)}"
      self.store.uploads[number] = (bucket, name, {})
      place = f"{self.store.address}/upload/storage/v1/b/{bucket}/o"
      self._send(200, Location=f"{place}?upload_id={number}")
      return
    data, name = self.body, query.get("name")
    if kind == "multipart":
      mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
      head, content = data.split(f"--{mark}".encode())[1:3]
      described = json.loads(head.split(b"\r\n\r\n", 1)[1])
      name = described.get("name", name)
      data = content.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
    made = self.store.put(bucket, name, data)
    self._send_json(_described(bucket, name, made))

  def _resume(self, number: str) -> None:
    bucket, name, pieces = self.store.uploads[number]
    match = re.match(
      r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"]
    )
    if match[1] is not None:
      pieces[int(match[1])] = self.body
    data = b"".join(pieces[start] for start in sorted(pieces))
    if match[3] != "*" and len(data) == int(match[3]):
      made = self.store.put(bucket, name, data)
      self._send_json(_described(bucket, name, made))
    elif data:
      self._send(308, Range=f"bytes=0-{len(data) - 1}")
    else:
      self._send(308)

  def _s3(self, path: str) -> None:
    store, query = self.store, self.query
    bucket, _, name = path.partition("/")
    if bucket not in store.objects:
      self._fail(404)
    elif not name and self.command == "HEAD":
      self._send(200)
    elif not name and "delete" in query:
      for each in re.findall(rb"<Key>(.*?)</Key>", self.body):
        store.objects[bucket].pop(saxutils.unescape(each.decode()), None)
      self._send_xml(f"<DeleteResult {_NAMESPACE}></DeleteResult>")
    elif not name:
      self._send_xml(self._s3_list(bucket))
    elif self.command == "POST" and "uploads" in query:
      number = f"u{next(store.numbers)}"
      store.uploads[number] = (bucket, name, {})
      self._send_xml(
        f"<InitiateMultipartUploadResult {_NAMESPACE}><UploadId>{number}"
        "</UploadId></InitiateMultipartUploadResult>"
      )
    elif self.command == "POST" and "uploadId" in query:
      pieces = store.uploads[query["uploadId"]][2]
      data = b"".join(pieces[part] for part in sorted(pieces))
      made = store.put(bucket, name, data)
      self._send_xml(
        f"<CompleteMultipartUploadResult {_NAMESPACE}><ETag>{made.etag}"
        "</ETag></CompleteMultipartUploadResult>"
      )
    elif self.command == "PUT" and "partNumber" in query:
      part = int(query["partNumber"])
      store.uploads[query["uploadId"]][2][part] = self.body
      self._send(200, ETag=f'"part{part}"')
    elif self.command == "PUT":
      self._send(200, ETag=f'"{store.put(bucket, name, self.body).etag}"')
    elif self.command == "DELETE":
      store.objects[bucket].pop(name, None)
      self._send(204)
    elif (found := store.objects[bucket].get(name)) is None:
      self._fail(404)
    else:
      self._send_object(found)

  def _send_xml(self, text: str) -> None:
    self._send(200, text.encode(), Content_Type="application/xml")

  def _s3_list(self, bucket: str) -> str:
    prefix = self.query.get("prefix", "")
    found, folders = self.store.listed(
      bucket, prefix, self.query.get("delimiter", "")
    )
    contents = "".join(
      f"<Contents><Key>{saxutils.escape(name)}</Key>"
      f"<Size>{len(each.data)}</Size><ETag>{each.etag}</ETag><LastModified>"
      f"{each.written:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
      for name, each in found.items()
    )
    common = "".join(
      f"<CommonPrefixes><Prefix>{saxutils.escape(folder)}</Prefix>"
      "</CommonPrefixes>"
      for folder in folders
    )
    count = len(found) + len(folders)
    return (
      f"<ListBucketResult {_NAMESPACE}><Name>{bucket}</Name>"
      f"<KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
      f"<Prefix>{saxutils.escape(prefix)}</Prefix>{contents}{common}"
      "</ListBucketResult>"
    )


def _unchunked(data: bytes) -> bytes:
  """Returns what stands in chunks, each behind a line with its size."""
  pieces, position = [], 0
  while True:
    end = data.index(b"\r\n", position)
    size = int(data[position:end].split(b";")[0], 16)
    if not size:
      return b"".join(pieces)
    pieces.append(data[end + 2 : end + 2 + size])
    position = end + 2 + size + 2


def _described(bucket: str, name: str, found: Object) -> dict[str, object]:
  written = found.written.isoformat().replace("+00:00", "Z")
  return {
    "kind": "storage#object",
    "bucket": bucket,
    "name": name,
    "id": f"{bucket}/{name}/{found.generation}",
    "generation": str(found.generation),
    "metageneration": "1",
    "size": str(len(found.data)),
    "etag": found.etag,
    "updated": written,
    "timeCreated": written,
    "contentType": "application/octet-stream",
  }


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128  # With few, some connections take a second.

  def handle_error(self, request, client_address) -> None:
    pass  # A client that hung up; what goes wrong shows at the client.


@contextlib.contextmanager
def reached(monkeypatch: Any, cache: pathlib.Path) -> Iterator[Store]:
  """Serves a store that both schemes lead to, with the bucket data-1.

  Attempts follow each other at once.

  Args:
    monkeypatch: of pytest.
    cache: the user's cache folder meanwhile.
  """
  monkeypatch.setattr(attempts, "FIRST_WAIT_SECONDS", 0.001)
  monkeypatch.setattr(attempts, "LONGEST_WAIT_SECONDS", 0.01)
  monkeypatch.setattr(attempts, "_answered", set())
  monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
  with serve() as store:
    store.objects["data-1"] = {}
    for name, value in store.environment.items():
      monkeypatch.setenv(name, value)
    yield store


@contextlib.contextmanager
def serve() -> Iterator[Store]:
  """Serves a store on a port of loopback, until the end of the block."""
  store = Store()
  handler = type("Handler", (_Handler,), {"store": store})
  with _Server(("127.0.0.1", 0), handler) as server:
    store.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
      yield store
    finally:
      store.closing.set()
      server.shutdown()
      thread.join()
