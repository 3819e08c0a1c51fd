"""The HTTP interface of the HuggingFace Hub, on loopback, as far as we use it.

It keeps models in memory: a repository is a list of commits, each a dict of
files. Large files come by Git LFS (https://github.com/git-lfs/git-lfs/blob/main/
docs/api/batch.md), others within the commit. A test sets `faults` to have
requests fail, and reads `asked` to see what was asked for.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_of_a_test"
LARGE = 2000  # Bytes; larger files come by LFS.


class Hub(http.server.ThreadingHTTPServer):
  """The hub's state; `url` is its address.

  Attributes:
    account: what the token is of, as the hub describes it.
    repositories: "ORG/NAME" -> {"private": …, "commits": [{file: bytes}]}.
    stored: large files by sha256.
    asked: (method, path) of each request.
    faults: (method, part of a path) -> (status, message), or None for an answer
      that breaks off, or a function that is called.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.url = f"http://127.0.0.1:{self.server_port}"
    self.account = {
      "name": "me",
      "orgs": [{"name": "lab"}],
      "auth": {"accessToken": {"role": "write"}},
    }
    self.repositories = {}
    self.stored = {}
    self.asked = []
    self.faults = {}

  def handle_error(self, request, client_address):
    """Says nothing of connections that a test breaks off."""

  def files(self, name):
    """Returns the files of a repository's newest commit."""
    return self.repositories[name]["commits"][-1]

  def puts(self):
    """Returns how many large files were sent."""
    return sum(method == "PUT" for method, _ in self.asked)


def _blob_id(data):
  return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _commit_id(repository, index):
  seed = json.dumps([repository, index]).encode()
  return hashlib.sha1(seed).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: Hub

  def log_message(self, *_):
    """Keeps stderr clean."""

  def do_GET(self):
    self._serve("GET")

  def do_HEAD(self):
    self._serve("HEAD")

  def do_POST(self):
    self._serve("POST")

  def do_PUT(self):
    self._serve("PUT")

  def _serve(self, method):
    path = urllib.parse.urlsplit(self.path).path
    body = self._body()
    self.server.asked.append((method, path))
    for (verb, part), fault in list(self.server.faults.items()):
      if verb == method and part in path:
        if callable(fault):
          fault()
        elif fault is None:
          self.close_connection = True
          return
        else:
          self._refuse(*fault)
          return
    for verb, pattern, answer in _ROUTES:
      match = re.fullmatch(pattern, path)
      if match and method in verb.split():
        answer(self, body, **match.groupdict())
        return
    self._refuse(404, "no such page")

  def _body(self):
    if self.headers.get("Transfer-Encoding") == "chunked":
      parts = []
      while size := int(self.rfile.readline(), 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(parts)
    return self.rfile.read(int(self.headers.get("Content-Length") or 0))

  def _send(self, data, status=200, **headers):
    self.send_response(status)
    headers.setdefault("Content-Length", str(len(data)))
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _json(self, value, status=200, **headers):
    self._send(json.dumps(value).encode(), status, **headers)

  def _refuse(self, status, message, **headers):
    headers = {"X_Error_Message": message, **headers}
    self._json({"error": message}, status, **headers)

  def _is_known(self):
    if self.headers.get("Authorization") == f"Bearer {TOKEN}":
      return True
    self._refuse(401, "Invalid username or password.")
    return False

  def whoami(self, body):
    if self._is_known():
      self._json(self.server.account)

  def create(self, body):
    if not self._is_known():
      return
    asked = json.loads(body)
    org = asked["organization"]
    name = f"{org}/{asked['name']}"
    if name in self.server.repositories:
      self._json({"url": f"{self.server.url}/{name}", "error": "taken"}, 409)
    elif org not in ("me", "lab"):
      self._refuse(403, "You don't have the rights to create a model there.")
    else:
      private = asked.get("visibility") == "private" or asked.get("private")
      first = {".gitattributes": b"*.safetensors filter=lfs\n"}
      self.server.repositories[name] = {
        "private": bool(private),
        "commits": [first],
      }
      self._json({"url": f"{self.server.url}/{name}"})

  def _found(self, name):
    if name in self.server.repositories:
      return self.server.repositories[name]
    self._refuse(404, "Repository not found", X_Error_Code="RepoNotFound")
    return None

  def info(self, body, name, revision="main"):
    if (repository := self._found(name)) is None:
      return
    commits = repository["commits"]
    self._json(
      {
        "id": name,
        "modelId": name,
        "private": repository["private"],
        "sha": _commit_id(name, len(commits) - 1),
        "siblings": [{"rfilename": file} for file in commits[-1]],
        "tags": [],
        "downloads": 0,
        "likes": 0,
      }
    )

  def tree(self, body, name, revision):
    if self._found(name) is None:
      return
    entries = []
    for path, data in self.server.files(name).items():
      entry = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": _blob_id(data),
      }
      if len(data) > LARGE:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
      entries.append(entry)
    self._json(entries)

  def preupload(self, body, name, revision):
    if self._found(name) is None or not self._is_known():
      return
    if name.partition("/")[0] not in ("me", "lab"):
      self._refuse(403, "This model is not yours.")
      return
    present = self.server.files(name)
    answer = []
    for file in json.loads(body)["files"]:
      data = present.get(file["path"])
      large = file["size"] > LARGE
      oid = None
      if data is not None:
        oid = hashlib.sha256(data).hexdigest() if large else _blob_id(data)
      answer.append(
        {
          "path": file["path"],
          "uploadMode": "lfs" if large else "regular",
          "shouldIgnore": False,
          "oid": oid,
        }
      )
    self._json({"files": answer})

  def batch(self, body, name):
    objects = []
    for asked in json.loads(body)["objects"]:
      found = {"oid": asked["oid"], "size": asked["size"]}
      if asked["oid"] not in self.server.stored:
        href = f"{self.server.url}/lfs/{asked['oid']}"
        found["actions"] = {"upload": {"href": href}}
      objects.append(found)
    self._json({"transfer": "basic", "objects": objects})

  def store(self, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
      self._refuse(400, "not what was announced")
      return
    self.server.stored[oid] = body
    self._send(b"")

  def validate(self, body):
    content = json.loads(body)["content"]
    bad = not content.startswith("---\n")
    self._json({"errors": [], "warnings": []}, 400 if bad else 200)

  def commit(self, body, name, revision):
    if self._found(name) is None or not self._is_known():
      return
    commits = self.server.repositories[name]["commits"]
    files = dict(commits[-1])
    for line in body.splitlines():
      entry = json.loads(line)
      value = entry["value"]
      if entry["key"] == "file":
        assert value["encoding"] == "base64"
        files[value["path"]] = base64.b64decode(value["content"])
      elif entry["key"] == "lfsFile":
        files[value["path"]] = self.server.stored[value["oid"]]
      elif entry["key"] == "header":
        self.server.repositories[name]["message"] = value["summary"]
    commits.append(files)
    oid = _commit_id(name, len(commits) - 1)
    url = f"{self.server.url}/{name}/commit/{oid}"
    self._json({"commitUrl": url, "commitOid": oid})

  def resolve(self, body, name, revision, file):
    if self._found(name) is None:
      return
    files = self.server.files(name)
    file = urllib.parse.unquote(file)
    if file not in files:
      self._refuse(404, "Entry not found", X_Error_Code="EntryNotFound")
      return
    data = files[file]
    large = len(data) > LARGE
    etag = hashlib.sha256(data).hexdigest() if large else _blob_id(data)
    commits = self.server.repositories[name]["commits"]
    self._send(
      data,
      ETag=f'"{etag}"',
      X_Repo_Commit=_commit_id(name, len(commits) - 1),
      X_Linked_Size=str(len(data)),
      X_Linked_Etag=f'"{etag}"',
    )


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = (
  ("GET", "/api/whoami-v2", _Handler.whoami),
  ("POST", "/api/repos/create", _Handler.create),
  ("POST", "/api/validate-yaml", _Handler.validate),
  ("GET", f"/api/models/{_NAME}(/revision/(?P<revision>.+))?", _Handler.info),
  ("GET", f"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", _Handler.tree),
  (
    "POST",
    f"/api/models/{_NAME}/preupload/(?P<revision>.+)",
    _Handler.preupload,
  ),
  ("POST", f"/api/models/{_NAME}/commit/(?P<revision>.+)", _Handler.commit),
  ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
  ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.store),
  (
    "GET HEAD",
    f"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
    _Handler.resolve,
  ),
)


@contextlib.contextmanager
def running():
  """Yields a hub that answers until the end of the block."""
  with Hub() as hub:
    thread = threading.Thread(
      target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
      yield hub
    finally:
      hub.shutdown()
      thread.join()
