"""Data in buckets are those on disk, also where the network has faults."""

import dataclasses
import io
import pickle
import signal
import threading
import time

import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from source_content import at_both, content

import bucket_stand_in
from clip_jax import buckets, cli, errors, places
from clip_jax.buckets import attempts, clients
from clip_jax.data import sources
from clip_jax.data.sources import shard


@pytest.fixture
def data(tmp_path, pairs, write_tar, members):
  """A folder with the same pairs in each form."""
  root, records = tmp_path / "data", pairs(6)
  for name in ("tars", "files", "classes/a b", "classes/c"):
    (root / name).mkdir(parents=True)
  write_tar(root / "tars/x-0.tar", members(records[:4]))
  write_tar(root / "tars/x-1.tar", members(records[4:]))
  (root / "tars/x-0_stats.json").write_text('{"successes": 5}')
  lines = ["filepath,title"]
  for number, record in enumerate(records):
    (root / f"files/{record.key}.png").write_bytes(record.image)
    (root / f"files/{record.key}.txt").write_text(record.texts[0])
    lines.append(f'{record.key}.png,"{record.texts[0]}"')
    folder = ("a b", "c")[number % 2]
    (root / f"classes/{folder}/{record.key}.png").write_bytes(record.image)
  (root / "files/.hidden").write_text("no")
  (root / "files/pairs.csv").write_text("\n".join(lines))
  table = pa.table(
    {
      "image": [record.image for record in records],
      "caption": [record.texts[0] for record in records],
    }
  )
  (root / "tables").mkdir()
  pq.write_table(table, root / "tables/train-00000-of-00001.parquet")
  return root


ADDRESSES = (
  "wds:{}/tars/x-{0..1}.tar",
  "wds:{}/tars/x-*.tar",
  "wds:{}/**/x-[01].tar",
  "wds:{}/tars",
  "csv:{}/files/pairs.csv",
  "csv:{}/files/pairs.csv?root={}/files",
  "folder:{}/files",
  "folder:{}/classes",
  "parquet:{}/tables",
  "parquet:{}/tables/train",
  "parquet:{}/tables/*.parquet?split=held_out",
)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_bucket_holds_what_the_disk_does(address, scheme, store, data):
  store.upload("data-1", data)
  bucket, disk = map(content, at_both(address, scheme, data))
  assert bucket == disk
  assert len(bucket[0]) >= 1


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_twenty_faults_change_nothing(scheme, store, data):
  store.upload("data-1", data)
  addresses = [x for x in ADDRESSES if x.count("{}") == 1]
  disk = [content(at_both(x, scheme, data)[1]) for x in addresses]
  # After a fault of other requests, Google's client waits for a second.
  store.faulty = "alt=media" if scheme == "gs" else ""
  for fault in bucket_stand_in.FAULTS * 4:
    store.faults.extend((fault, ""))
  found = []
  for address in addresses:
    found.append(content(at_both(address, scheme, data)[0]))
    if not store.faults:
      break
  assert store.happened == list(bucket_stand_in.FAULTS * 4)
  assert found == disk[: len(found)]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_listing_is_asked_for_again(scheme, store):
  store.put("data-1", "a/b.tar", b"x")
  store.faults.append("503")
  assert buckets.entries(f"{scheme}://data-1") == [buckets.Entry("a", True)]
  assert store.happened == ["503"]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_an_answer_that_does_not_come_is_asked_for_again(
  scheme, store, monkeypatch
):
  store.put("data-1", "a.bin", bytes(range(100)))
  file = buckets.File(f"{scheme}://data-1/a.bin")
  assert file.read(offset=90, size=20) == bytes(range(90, 100))
  monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.3)
  store.faults.append("stall")
  assert file.read(offset=10, size=5) == bytes(range(10, 15))
  assert store.happened == ["stall"]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_ctrl_c_does_not_wait_for_a_server(scheme, store, monkeypatch):
  store.put("data-1", "00.tar", b"x")
  assert places.kind(f"{scheme}://data-1/00.tar") == "file"
  store.faults.extend(["stall"] * 100)
  main = threading.main_thread().ident
  told = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
  told.start()
  started = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    places.of_each(places.kind, [f"{scheme}://data-1/{i}.tar" for i in "abcd"])
  assert time.monotonic() - started < 5
  store.faults.clear()
  assert places.kind(f"{scheme}://data-1/00.tar") == "file"  # As before.


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_much_is_asked_for_in_pieces(scheme, store, monkeypatch):
  monkeypatch.setattr(buckets, "_REQUEST_BYTES", 30)
  store.put("data-1", "a.bin", bytes(range(100)))
  file = buckets.File(f"{scheme}://data-1/a.bin")
  file.read(offset=0, size=1)
  store.requests.clear()
  assert file.read(offset=5, size=100) == bytes(range(5, 100))
  asked = [x for x in store.requests if "HEAD" not in x]  # S3's last look.
  asked = [x for x in asked if scheme == "s3" or "alt=media" in x]
  assert len(asked) == 4


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_what_stays_broken_is_told_after_some_attempts(scheme, store):
  store.put("data-1", "a.bin", b"abc")
  file = buckets.File(f"{scheme}://data-1/a.bin")
  store.refuse = 503
  with pytest.raises(errors.UserError, match="could not be reached, 8 times"):
    file.read(offset=0, size=3)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize(
  "address", ["wds:{}/tars", "csv:{}/files/pairs.csv", "folder:{}/classes"]
)
def test_no_record_is_bad_because_it_cannot_be_read_now(
  address, scheme, store, data, monkeypatch
):
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  store.upload("data-1", data)
  source = sources.open_source(address.format(f"{scheme}://data-1"))
  store.refuse = 503
  with pytest.raises(errors.UserError, match="could not be reached"):
    source[1]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_no_table_is_damaged_because_it_cannot_be_read_now(
  scheme, store, data, monkeypatch
):
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  store.upload("data-1", data)
  address = f"{scheme}://data-1/tables/train-00000-of-00001.parquet"
  # Its size and its first bytes are told, but no more.
  store.faulty = "alt=media" if scheme == "gs" else "GET"
  first = [""] if scheme == "gs" else ["", ""]  # S3 is listed, too.
  for told in range(1, 6):
    store.faults.clear()
    store.faults.extend([*first, *[""] * told, *["503"] * 2])
    with pytest.raises(errors.UserError, match="could not be reached"):
      sources.open_source(f"parquet:{address}")[0]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_stated_count_that_cannot_be_read_now_is_told(
  scheme, store, data, monkeypatch
):
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  store.upload("data-1", data)
  store.refuse = 503
  with pytest.raises(errors.UserError, match="could not be reached"):
    shard.stated_counts([f"{scheme}://data-1/tars/x-0.tar"])


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_who_may_not_read_is_told_so_at_once(scheme, store):
  store.put("data-1", "a.bin", b"abc")
  file = buckets.File(f"{scheme}://data-1/a.bin")
  store.refuse = 403
  for ask in (
    lambda: file.read(offset=0, size=3),
    lambda: buckets.kind(f"{scheme}://data-1/a.bin"),
    lambda: buckets.entries(f"{scheme}://data-1"),
    lambda: sources.open_source(f"wds:{scheme}://data-1/{{0..3}}.tar"),
  ):
    before = len(store.requests)
    with pytest.raises(errors.UserError, match=r"denied.*Ask for the right"):
      ask()
    assert len(store.requests) - before <= 4


def test_who_has_no_credentials_is_told_which_to_give(
  store, monkeypatch, tmp_path
):
  monkeypatch.delenv("STORAGE_EMULATOR_HOST")
  key = tmp_path / "none.json"
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
  with pytest.raises(errors.UserError, match="gcloud auth application-default"):
    buckets.kind("gs://data-1/a")


def test_credentials_that_were_good_are_waited_for(monkeypatch):
  monkeypatch.setattr(attempts, "FIRST_WAIT_SECONDS", 0.001)
  monkeypatch.setattr(attempts, "_answered", set())
  left = [OSError("UNAVAILABLE: no OAuth2 access token")] * 3

  def ask():
    if left:
      raise left.pop()
    return "data"

  with pytest.raises(errors.UserError, match="There are no credentials"):
    attempts.retried("gs://data-1/a", ask)
  assert attempts.retried("gs://data-1/a", lambda: "data") == "data"
  assert attempts.retried("gs://data-1/a", ask) == "data"


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize(
  ("address", "said"),
  [
    ("wds:{}/none.tar", "none.tar' does not exist"),
    ("wds:{}/*.tar", "No file matches"),
    ("wds:{}x/a.tar", "data-1x/a.tar' does not exist"),
    ("csv:{}/none.csv", "is not a file"),
    ("folder:{}/none", "is not a directory"),
    ("parquet:{}/none.parquet", "does not exist"),
    ("csv:{}/a.csv?root=gs://data-1/none", "is not a directory"),
  ],
)
def test_what_is_not_in_a_bucket_is_named(address, said, scheme, store):
  store.put("data-1", "a.csv", b"filepath,title\na.png,a\n")
  with pytest.raises(errors.UserError, match=said):
    sources.open_source(address.format(f"{scheme}://data-1"))


def test_a_server_that_is_not_there_is_told(store, monkeypatch):
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
  with pytest.raises(errors.UserError, match=r"8 times: .*connect to server"):
    sources.open_source("wds:s3://data-1/a.tar")


def test_data_that_changed_since_are_not_read_on(store):
  store.put("data-1", "a.bin", b"abc")
  file = buckets.File("gs://data-1/a.bin")
  assert file.read(offset=0, size=2) == b"ab"
  del store.objects["data-1"]["a.bin"]
  with pytest.raises(errors.UserError, match="removed or replaced"):
    file.read(offset=0, size=3)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_source_goes_to_other_processes(scheme, store, data):
  store.upload("data-1", data)
  source = sources.open_source(f"wds:{scheme}://data-1/tars")
  other = pickle.loads(pickle.dumps(source))
  assert other[3].image == source[3].image


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_table_leads_to_a_bucket(
  kind, scheme, store, data, tmp_path, monkeypatch
):
  store.upload("data-1", data)
  name = f"{scheme}://data-1/files/000.png"
  (tmp_path / "a.csv").write_text(f"filepath,title\n{name},a\n")
  table = pa.table({"filepath": [name], "title": ["a"]})
  pq.write_table(table, tmp_path / "a.parquet")
  monkeypatch.chdir(tmp_path)  # Where the table's own folder has no name.
  source = sources.open_source(f"{kind}:a.{kind}")
  with pytest.raises(sources.BadRecord, match="missing_file") as bad:
    source[0]
  assert "add ?root=gs://BUCKET/FOLDER" in bad.value.hint
  assert not store.requests


def test_an_image_is_one_request_and_headers_few(store, data, monkeypatch):
  monkeypatch.setattr(buckets, "_SAME_SECONDS", 1000.0)
  store.upload("data-1", data)
  source = sources.open_source("wds:s3://data-1/tars/x-{0..1}.tar")
  source[0]
  store.requests.clear()
  source[1]
  assert len(store.requests) == 2  # The text and the image.


@pytest.mark.parametrize(("scheme", "most"), [("gs", 8), ("s3", 9)])
def test_many_shards_are_opened_by_few_requests_and_several_at_a_time(
  scheme, most, store, data
):
  store.upload("data-1", data)
  tar, shards = store.objects["data-1"]["tars/x-0.tar"].data, 24
  for number in range(shards):
    store.put("data-1", f"many/{number:02d}.tar", tar)
  store.seconds = 0.03
  started = time.monotonic()
  address = f"wds:{scheme}://data-1/many/{{00..{shards - 1}}}.tar?captions=text"
  assert len(sources.open_source(address)) == 4 * shards
  seconds = time.monotonic() - started
  assert len(store.requests) <= most * shards + 20
  # One after the other they would take longer than all answers.
  assert seconds < len(store.requests) * store.seconds / 2


@pytest.mark.parametrize(
  ("pattern", "expected"),
  [
    ("*", ["a.tar", "b"]),
    ("b/*", ["b/c.tar", "b/d"]),
    ("**/*.tar", ["a.tar", "b/c.tar", "b/d/e.tar"]),
    ("?/[!x].tar", ["b/c.tar"]),
    ("*/.*", ["b/.f.tar"]),
  ],
)
@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_globs_match_as_on_disk(pattern, expected, scheme, store, tmp_path):
  for name in ("a.tar", "b/c.tar", "b/d/e.tar", "b/.f.tar", "b/.g/h.tar"):
    store.put("data-1", name, b"x")
  store.upload("data-1", tmp_path / "none")
  names = places.matching(f"{scheme}://data-1/{pattern}")
  assert [
    name.removeprefix(f"{scheme}://data-1/") for name in names
  ] == expected


def test_the_command_line_reads_a_bucket(store, data, capsys):
  store.upload("data-1", data)
  for address in ("wds:gs://data-1/tars", "csv:s3://data-1/files/pairs.csv"):
    cli.main(["data", "inspect", address, "--json"])
    assert '"records": 6' in capsys.readouterr().out
  with pytest.raises(SystemExit):
    cli.main(["data", "inspect", "gs://data-1/tars"])
  assert "or csv:gs://data-1/tars or" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_an_object_that_is_replaced_by_a_shorter_one_is_told(scheme, store):
  address = f"{scheme}://data-1/list.json"
  store.put("data-1", "list.json", b"x" * 90)
  opened = buckets.File(address)
  store.put("data-1", "list.json", b"y" * 60)
  with pytest.raises(buckets.ReplacedError, match="removed or replaced since"):
    opened.read(offset=0, size=90)


def _replace(store, name, data):
  """Replaces an object at once, so that times do not tell."""
  before = store.objects["data-1"][name]
  made = store.put("data-1", name, data)
  store.objects["data-1"][name] = dataclasses.replace(
    made, written=before.written
  )


def _from_front_to_end(file):
  with io.BufferedReader(buckets._Stream(file), 10) as stream:
    return b"".join(iter(lambda: stream.read(10), b""))


def _by_one_read(file):
  return file.read(offset=0, size=70)


def _here_and_there(file):
  return b"".join(file.read(offset=x, size=9) for x in (80, 20, 50))


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize(
  "read", [_from_front_to_end, _by_one_read, _here_and_there]
)
@pytest.mark.parametrize("size", [90, 200])
def test_bytes_of_two_objects_are_never_taken_for_one(
  size, read, scheme, store, monkeypatch
):
  monkeypatch.setattr(buckets, "_REQUEST_BYTES", 20)
  if read is _here_and_there:
    monkeypatch.setattr(buckets, "_SAME_SECONDS", 0.0)
  store.put("data-1", "a.bin", b"x" * 90)
  data = read(buckets.File(f"{scheme}://data-1/a.bin"))
  assert data and set(data) == set(b"x")
  ask, asked = buckets.File._ask, []

  def ask_and_replace(file, *place):
    data = ask(file, *place)
    if not asked:
      _replace(store, "a.bin", b"y" * size)
    asked.append(data)
    return data

  monkeypatch.setattr(buckets.File, "_ask", ask_and_replace)
  with pytest.raises(buckets.ReplacedError, match="removed or replaced since"):
    read(buckets.File(f"{scheme}://data-1/a.bin"))
  assert asked


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_what_is_replaced_while_it_is_read_is_read_again(
  scheme, store, monkeypatch
):
  address = f"{scheme}://data-1/list.json"
  store.put("data-1", "list.json", b"x" * 90)
  ask, left = buckets.status, [b"y" * 60, b"z" * 120]

  def replace_after(asked):
    found = ask(asked)
    if left:
      store.put("data-1", "list.json", left.pop(0))
    return found

  monkeypatch.setattr(buckets, "status", replace_after)
  assert buckets.read_current(address, limit=500) == b"z" * 120


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_what_is_replaced_twice_while_it_is_read_is_read_again(
  scheme, store, monkeypatch
):
  """Of the same size before and after, and larger where the read begins; of S3,
  in the same second, too."""
  address = f"{scheme}://data-1/list.json"
  store.put("data-1", "list.json", b"x" * 90)
  ask, left = buckets.status, [b"y" * 120, b"z" * 90]

  def replace_around(asked):
    if len(left) == 1:
      store.put("data-1", "list.json", left.pop(0))
    found = ask(asked)
    if len(left) == 2:
      store.put("data-1", "list.json", left.pop(0))
    return found

  monkeypatch.setattr(buckets, "status", replace_around)
  assert buckets.read_current(address, limit=500) == b"z" * 90
