"""The page as people meet it: a server, HTTP clients and a browser.

`pytest -n 0 -m app tests/app` runs these. They need the extra `app`, playwright
and a Chromium, whose path may stand in CLIP_JAX_CHROMIUM.
"""

import concurrent.futures
import functools
import http.server
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import threading
import time
import urllib.parse

import jax
import numpy as np
import pytest

import model_kinds
from clip_jax import loading, search
from clip_jax.app import answering, limits, page, server, tabs, watching
from clip_jax.data import sources

pytestmark = [pytest.mark.app, pytest.mark.filterwarnings("ignore")]

_LOGGER = logging.getLogger(__name__)
CHROMIUM = os.environ.get("CLIP_JAX_CHROMIUM") or shutil.which("chromium")
SECRET = "top-secret-9f1c"
COMPILED = "/jax/core/compile/backend_compile_duration"
# The events of the page, in the order in which it makes them.
CLASSIFY, SEARCH, COMPARE, HEAT, WATCH = 0, 4, 8, 9, 11


@pytest.fixture(scope="module")
def compiled():
  """Grows by each program that is compiled."""
  seen = []

  def note(name, *_, **__):
    if name == COMPILED:
      seen.append(name)

  jax.monitoring.register_event_duration_secs_listener(note)
  return seen


class Page:
  """A page on loopback, and how programs ask it."""

  def __init__(self, address, room):
    self.address = address
    self.room = room

  def client(self, **options):
    import httpx

    return httpx.Client(
      base_url=self.address, timeout=60, trust_env=False, **options
    )

  def upload(self, client, data, name="a.png"):
    """Returns the answer to an upload, and what the page calls the file."""
    answer = client.post(
      "/gradio_api/upload", files={"files": (name, data, "image/png")}
    )
    path = answer.json()[0] if answer.status_code == 200 else None
    return answer, {"path": path, "meta": {"_type": "gradio.FileData"}}

  def call(self, client, number, data):
    """Returns the status of a request and the values that it ended in."""
    session = secrets.token_hex(6)
    body = {"data": data, "fn_index": number, "session_hash": session}
    answer = client.post(
      "/gradio_api/queue/join",
      content=json.dumps(body),  # Lone surrogates and all.
      headers={"content-type": "application/json"},
    )
    if answer.status_code != 200:
      return answer.status_code, answer.text
    with client.stream(
      "GET", "/gradio_api/queue/data", params={"session_hash": session}
    ) as stream:
      for line in stream.iter_lines():
        if line.startswith("data:"):
          message = json.loads(line[5:])
          if message["msg"] == "process_completed":
            done = message["output"].get("data", message["output"])
            return (200 if message["success"] else 500), done
          if message["msg"] in ("close_stream", "unexpected_error"):
            return 500, message
    return 500, "The stream has ended."


@pytest.fixture(scope="module")
def served(tmp_path_factory, folder, hostile, make_image, compiled):
  """A page with a model of random numbers, an index and a run."""
  pytest.importorskip("gradio")
  room = tmp_path_factory.mktemp("page")
  clip = loading.load(model_kinds.clip_directory(room / "model"))
  source = sources.open_source(folder)
  builder = search.Builder(
    room / "index", model="m", fingerprint=clip.fingerprint
  )
  with builder:
    for i in range(12):
      if i not in (2, 3, 9):
        pixels = clip.preprocess(source[i].image)[None]
        captions = (hostile[i], f"caption {i}")
        entries = [search.Entry(source[i].key, captions)]
        builder.add(clip.embed_images(pixels), entries)
    builder.facts["data"] = folder
  run = room / "runs" / "a run"
  run.mkdir(parents=True)
  lines = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
  (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (room / "secret.txt").write_text(SECRET)
  (room / "secret.png").write_bytes(make_image(77))
  uploads = room / "uploads"
  uploads.mkdir()
  os.environ.update(server._SETTINGS, GRADIO_TEMP_DIR=str(uploads))
  engine = answering.Engine(clip)
  engine.warm_up()
  made = tabs.Tabs(
    engine,
    uploads=str(uploads),
    index=search.Index(room / "index"),
    runs=watching.find(room / "runs"),
    find=functools.partial(watching.find, room / "runs"),
  )
  app = server.make_app(made, host="127.0.0.1", labels="cat,dog")
  import uvicorn

  listening = server._listening("127.0.0.1", 0)
  running = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
  thread = threading.Thread(
    target=running.run, kwargs={"sockets": [listening]}, daemon=True
  )
  thread.start()
  while not running.started:
    time.sleep(0.05)
  yield Page(server._address("127.0.0.1", listening), room)
  running.should_exit = True
  thread.join(20)


@pytest.fixture(scope="module")
def canary():
  """A server that nobody may ask."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_response(200)
      self.end_headers()
      self.wfile.write(SECRET.encode())

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
      pass

  running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=running.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{running.server_port}", asked
  running.shutdown()
  running.server_close()


def test_eight_clients_get_answers_and_nothing_is_compiled(
  served, make_image, compiled
):
  before = len(compiled)
  assert before  # It was, for the warm-up.
  seconds = {CLASSIFY: [], SEARCH: []}

  def work(number):
    rng = np.random.default_rng(number)
    with served.client() as client:
      for i in range(25):
        labels = [f"label {x}" for x in rng.integers(0, 500, 1 + i)]
        templates = "\n".join(f"{x} {{}}" for x in range(1 + i % 7))
        start = time.perf_counter()
        image = make_image(100 * number + i, size=(8 + i, 300 - i))
        answer, file = served.upload(client, image, f"{i}.png")
        assert answer.status_code == 200
        typed = [file, "\n".join(labels), templates]
        status, done = served.call(client, CLASSIFY, typed)
        assert status == 200 and 'class="fill"' in done[0], done
        seconds[CLASSIFY].append(time.perf_counter() - start)
        start = time.perf_counter()
        typed = " ".join(["word"] * (1 + i))
        query = [f"{typed} {number}", file if i % 5 == 0 else None, 1 + i % 12]
        status, done = served.call(client, SEARCH, query)
        assert status == 200 and 'class="card"' in done[0], done
        seconds[SEARCH].append(time.perf_counter() - start)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(8)))
  assert len(compiled) == before
  for name, number in (("classify", CLASSIFY), ("search", SEARCH)):
    assert len(seconds[number]) == 200
    p50, p95 = np.percentile(seconds[number], [50, 95])
    print(f"{name}: p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms")


def paths_to(room, url):
  """Returns what might lead to a file that is no upload, or to an address."""
  text, image = f"{room}/secret.txt", f"{room}/secret.png"
  inside = f"{room}/uploads/{'0a' * 32}"
  return [
    *(text, image, f"file://{text}", f"{room}/uploads/../secret.txt"),
    *(f"{inside}/../../../secret.txt", f"{inside}/..", f"{inside}/x/../y"),
    *("/etc/passwd", "../../../etc/passwd", "~/.ssh/id_rsa"),
    "/proc/self/environ",
    *("/dev/zero", "/dev/stdin", "", ".", "/", "\x00", f"{text}\x00.png"),
    *(url, f"{url}/x.png", f"{url}@127.0.0.1", "http://169.254.169.254/latest"),
    *("https://example.com/x.png", "ftp://x/y", "data:image/png;base64,AAAA"),
    *("\\\\host\\share\\x", "C:\\x.png", f"{room}/index/meta.json", "x" * 5000),
  ]  # fmt: skip


def test_nothing_is_served_that_is_not_in_the_index(
  served, canary, make_image, hostile, caplog, capfd
):
  import httpx

  url, asked = canary
  room, tried = served.room, 0
  secret_image = (room / "secret.png").read_bytes()

  def check(status, body, *, may_be_200=False):
    nonlocal tried
    tried += 1
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert SECRET.encode() not in data and secret_image not in data
    assert b"root:" not in data and b"Traceback" not in data
    assert status != 200 or may_be_200, data[:300]

  with served.client() as client:
    _, good = served.upload(client, make_image(0))
    for path in paths_to(room, url):
      quoted = urllib.parse.quote(path)
      for route in (
        f"/gradio_api/file={path}",
        f"/gradio_api/file={quoted.replace('.', '%2e').replace('/', '%2f')}",
        f"/gradio_api/proxy={quoted}",
        f"/assets/{quoted}",
        f"/pictures/{quoted}",
      ):
        try:
          answer = client.get(route)
        except httpx.InvalidURL:  # Which no client can ask for.
          continue
        if answer.url.path != "/":
          check(answer.status_code, answer.content)
      file = {"path": path, "meta": {"_type": "gradio.FileData"}}
      for number, data in (
        (CLASSIFY, [file, "a,b", "a {}"]),
        (SEARCH, ["a", {**file, "url": url}, 3]),
        (COMPARE, [[file], "a"]),
        (HEAT, [[good, file], "a"]),
      ):
        status, done = served.call(client, number, data)
        check(status, done)
    wrong = [None, 5, -1.5, True, [], {}, "", "x" * 100_000, [[]], {"a": 1}]
    for value in [*wrong, *hostile]:
      for number, data in (
        (CLASSIFY, [good, value, "a {}"]),
        (CLASSIFY, [good, "a,b", value]),
        (CLASSIFY, [value, "a,b", "{}"]),
        (SEARCH, [value, None, 3]),
        (SEARCH, ["a", None, value]),
        (COMPARE, [value, "a"]),
        (HEAT, [[good], value]),
        (WATCH, [value, value]),
        (value, ["a", None, 3]),
      ):
        text = json.dumps([number, data])
        status, done = served.call(client, number, data)
        check(status, done, may_be_200=True)
        shown = json.dumps(done)
        for bad in ("<script", "<svg", "onerror=alert(1)>", "<style"):
          if isinstance(done, list):
            assert bad not in shown, text[:200]
    for row in (9, -1, 10**30, "x", "1e3", "01" * 9):
      answer = client.get(f"/pictures/{row}")
      check(answer.status_code, answer.content)
    pictures = [client.get(f"/pictures/{row}") for row in range(9)]
    assert [answer.status_code for answer in pictures] == [200] * 9
    status, done = served.call(client, SEARCH, ["still here", None, 3])
    assert status == 200 and 'class="card"' in done[0]
    form = "multipart/form-data; boundary="
    named = b'--a\r\ncontent-disposition: form-data; name="files"\r\n\r\nb'
    named += b"\r\n--a--"
    for kind, body in ((form + "a", named), (form + "a" * 999, b"--a")):
      headers = {"content-type": kind}
      answer = client.post("/gradio_api/upload", content=body, headers=headers)
      assert answer.status_code == 400
    params = {"session_hash": "ended"}
    answer = client.get("/gradio_api/queue/data", params=params)
    assert "session_not_found" in answer.text
  assert not asked
  assert tried >= 150
  assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
  assert not [record for record in caplog.records if record.exc_info]
  print(f"{tried} hostile inputs")


def test_other_names_routes_and_sizes_are_refused(served, make_image):
  with served.client() as client:
    for name in ("evil.example", ""):
      assert client.get("/", headers={"host": name}).status_code == 421
    assert client.get("/", headers={"origin": "http://x"}).status_code == 403
    for route in ("info", "openapi.json", "api/x", "runs", "vibe-code"):
      assert client.get(f"/gradio_api/{route}").status_code == 404
    assert client.get("/monitoring/summary").status_code == 404
    for size in (limits.UPLOAD_BYTES + 1, limits.REQUEST_BYTES + 1):
      answer, _ = served.upload(client, b"x" * size)
      assert answer.status_code == 413
    body = {"data": ["x" * 2**20]}
    answer = client.post("/gradio_api/queue/join", json=body)
    assert answer.status_code == 413
    for name in ("../../x.png", "/etc/x.png", "\x00.png", "a" * 300, "<b>.png"):
      answer, file = served.upload(client, make_image(1), name)
      assert answer.status_code in (200, 400, 500)
      if file["path"]:
        inside = pathlib.Path(file["path"]).resolve()
        assert inside.is_relative_to(served.room / "uploads")
    # A picture by name, a page by content: never shown as a page.
    answer, file = served.upload(client, b"<script>1</script>", "x.html")
    got = client.get(f"/gradio_api/file={file['path']}")
    assert "sandbox" in got.headers["content-security-policy"]
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def browser():
  sync_api = pytest.importorskip("playwright.sync_api")
  if not CHROMIUM:
    pytest.skip("There is no Chromium.")
  with sync_api.sync_playwright() as playwright:
    launched = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield launched
    launched.close()


@pytest.fixture(params=[1200, 390])
def tab(request, browser, served):
  """The page in a wide and in a narrow window; nothing but it is asked for.

  What its events ask for is never refused.
  """
  shown = browser.new_page(viewport={"width": request.param, "height": 800})
  outside, alarms, refused = [], [], []
  shown.on(
    "request",
    lambda asked: (
      None
      if asked.url.startswith((served.address, "data:", "blob:"))
      else outside.append(asked.url)
    ),
  )
  shown.on(
    "response",
    lambda answer: (
      refused.append((answer.status, answer.url, answer.request.post_data))
      if answer.status >= 400 and "/queue/" in answer.url
      else None
    ),
  )
  shown.on("dialog", lambda dialog: (alarms.append(1), dialog.dismiss()))
  shown.on("pageerror", lambda error: alarms.append(str(error)))
  shown.goto(served.address)
  shown.get_by_role("button", name="Classify").wait_for()
  yield shown
  folder = os.environ.get("CLIP_JAX_SCREENSHOTS")
  if folder:
    name = re.sub(r"\W+", "_", request.node.name)
    shown.screenshot(path=f"{folder}/{name}.png", full_page=True)
  width = shown.evaluate("document.documentElement.scrollWidth")
  assert width <= request.param  # Nothing sticks out.
  shown.close()
  assert not outside and not alarms and not refused


def put(tab, *files):
  """Puts files into the place for pictures of the tab that is open."""
  tab.locator("input[type=file]").locator("visible=true").or_(
    tab.locator("[role=tabpanel]:visible input[type=file]")
  ).first.set_input_files(list(map(str, files)))


def test_a_picture_is_classified(tab, tmp_path, make_image):
  name = tmp_path / "<img src=x onerror=alert(1)>\u202egnp.png"
  name.write_bytes(make_image(3, size=(60, 80)))
  tab.get_by_label("Labels").fill("cat\n<script>alert(1)</script>\nab\u202ecd")
  put(tab, name)
  tab.locator(".bar").first.wait_for()
  tab.wait_for_function(
    "document.querySelector('.cj-picture img').naturalWidth == 80"
  )
  tab.get_by_role("button", name="Classify").click()
  tab.get_by_text("<script>alert(1)</script>", exact=True).wait_for()
  assert tab.locator(".bar").count() == 3
  assert "abcd" in tab.inner_text(".cj:has(.bar)")
  tab.get_by_label("Templates").fill("a {}\nthe {}\n{} <b>")
  tab.get_by_role("button", name="Classify").click()
  tab.get_by_text("9 texts compared").wait_for()


def test_wrong_pictures_are_told(tab, tmp_path, make_image):
  broken = tmp_path / "broken.png"
  broken.write_bytes(make_image(3)[:300])
  put(tab, broken)
  tab.get_by_text("broken.png: ").wait_for()
  large = tmp_path / "<img src=x onerror=alert(1)>.png"
  large.write_bytes(make_image(3) + b"\0" * limits.UPLOAD_BYTES)
  tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
  put(tab, large)
  told = re.compile("exceeds|too large|maximum", re.I)
  tab.get_by_text(told).first.wait_for()


def test_texts_and_pictures_find_pictures(tab, tmp_path, make_image, hostile):
  tab.get_by_role("tab", name="Search").click()
  tab.get_by_label("Text", exact=True).fill("a cat")
  tab.get_by_role("button", name="Search").click()
  tab.locator(".card").first.wait_for()
  assert tab.locator(".card").count() == 9
  shown = tab.inner_text(".grid")
  for text in (hostile[0], hostile[1], hostile[7], hostile[8]):
    assert text in shown
  tab.wait_for_function(
    "[...document.querySelectorAll('.card img')].slice(0, 2)"
    ".every(image => image.complete && image.naturalWidth > 0)"
  )
  picture = tmp_path / "x.png"
  picture.write_bytes(make_image(7))
  put(tab, picture)
  tab.wait_for_function(
    "document.querySelector('.card').innerText.includes('caption 7')"
  )


def test_fields_are_emptied_moved_and_filled_again(tab, tmp_path, make_image):
  picture = tmp_path / "x.png"
  picture.write_bytes(make_image(7))
  tab.get_by_role("button", name="Classify").click()
  tab.get_by_text("Add a picture").wait_for()
  put(tab, picture)
  tab.locator(".bar").first.wait_for()
  for label in ("Labels", "Templates"):
    written = tab.get_by_label(label).input_value()
    tab.get_by_label(label).fill("")
    tab.get_by_role("button", name="Classify").click()
    tab.get_by_text(f"Write at least one of the {label.lower()}").wait_for()
    tab.get_by_label(label).fill(written)
    tab.get_by_role("button", name="Classify").click()
    tab.locator(".bar").first.wait_for()
  tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
  tab.get_by_text("Add a picture").wait_for()
  tab.get_by_role("tab", name="Search").click()
  tab.get_by_label("Text", exact=True).fill("a cat")
  tab.get_by_label("Text", exact=True).press("Enter")
  tab.locator(".card").nth(8).wait_for()
  slider = tab.locator("[role=tabpanel]:visible input[type=range]")
  slider.focus()
  slider.press("Home")
  slider.dispatch_event("pointerup")
  tab.wait_for_function("document.querySelectorAll('.card').length == 1")
  number = tab.locator("[role=tabpanel]:visible input[type=number]")
  number.fill("")
  tab.get_by_role("button", name="Search").click()
  number.fill("4")
  number.blur()
  tab.get_by_role("button", name="Search").click()
  tab.wait_for_function("document.querySelectorAll('.card').length == 4")
  tab.get_by_role("tab", name="Compare").click()
  tab.get_by_role("button", name="Compare").click()
  tab.get_by_role("button", name="Draw heat maps").click()
  tab.get_by_text("Add at least one picture").nth(1).wait_for()


def test_pictures_and_texts_are_compared(tab, tmp_path, make_image):
  tab.get_by_role("tab", name="Compare").click()
  files = [tmp_path / f"{name}.png" for name in ("a", "<b>b", "w" * 90)]
  for i, file in enumerate(files):
    file.write_bytes(make_image(i, size=(200, 150)))
  put(tab, *files)
  tab.get_by_text("a.png").first.wait_for()
  texts = "a cat\n<img src=x onerror=alert(1)>\n" + "w" * 200
  tab.get_by_label("Texts, one a line").fill(texts)
  tab.get_by_role("button", name="Compare").click()
  tab.locator(".cj td").first.wait_for()
  assert tab.locator(".cj td").count() == 9
  tab.get_by_label("Text for a heat map").fill("<b>a cat</b>")
  tab.get_by_role("button", name="Draw heat maps").click()
  tab.get_by_text("2 by 2 patches").first.wait_for()
  assert tab.locator(".card").count() == 3


def test_a_run_is_watched_live(tab, served):
  tab.get_by_role("tab", name="Runs").click()
  tab.get_by_text("step 8").wait_for()
  tab.locator("img.wide").first.wait_for()
  metrics = served.room / "runs" / "a run" / "metrics.jsonl"
  whole = metrics.read_text()
  metrics.write_text(whole + '\n{"step": 9, "loss": 0.05}\n')
  tab.get_by_text("step 9").wait_for(timeout=15_000)
  metrics.write_text(whole)


def test_a_run_that_begins_later_appears(tab, served, monkeypatch):
  monkeypatch.setattr(tabs, "_SECONDS", 0.0)
  tab.get_by_role("tab", name="Runs").click()
  tab.get_by_text("step 8").wait_for()
  later = served.room / "runs" / "later"
  later.mkdir()
  try:
    (later / "metrics.jsonl").write_text('{"step": 77, "loss": 2.0}\n')
    time.sleep(2 * page._SECONDS)
    tab.get_by_label("Run", exact=True).click()
    tab.get_by_role("option", name="later").click()
    tab.get_by_text("step 77").wait_for()
  finally:
    shutil.rmtree(later)


def test_a_run_that_is_removed_is_told_once(tab, served, monkeypatch, capfd):
  monkeypatch.setattr(tabs, "_SECONDS", 0.0)
  gone = served.room / "runs" / "gone"
  gone.mkdir()
  try:
    (gone / "metrics.jsonl").write_text('{"step": 55, "loss": 2.0}\n')
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_text("step 8").wait_for()
    tab.wait_for_timeout(2000 * page._SECONDS)
    tab.get_by_label("Run", exact=True).click()
    tab.get_by_role("option", name="gone").click()
    tab.get_by_text("step 55").wait_for()
  finally:
    shutil.rmtree(gone)
  tab.get_by_text("There is no such run; choose another one.").wait_for()
  tab.wait_for_timeout(2000 * page._SECONDS)  # Further looks raise no errors.
  assert tab.get_by_text("list of choices").count() == 0
  assert "Traceback" not in capfd.readouterr().err
  tab.get_by_label("Run", exact=True).click()
  tab.get_by_role("option", name="a run").click()
  tab.get_by_text("step 8").wait_for()


def test_no_run_is_looked_at_while_another_tab_is_open(tab):
  asked = []
  tab.on("request", lambda request: asked.append(request.url))
  tab.get_by_role("tab", name="Runs").click()
  tab.get_by_text("step 8").wait_for()
  tab.wait_for_timeout(1000 * page._SECONDS + 1500)
  assert sum("queue/join" in url for url in asked) >= 2, asked
  tab.get_by_role("tab", name="Compare").click()
  tab.wait_for_timeout(2000)
  asked.clear()
  tab.wait_for_timeout(2000 * page._SECONDS)
  assert not [url for url in asked if "queue" in url]


def test_gradio_is_new_enough():
  pytest.importorskip("gradio")
  assert page.gradio().__name__ == "gradio"
