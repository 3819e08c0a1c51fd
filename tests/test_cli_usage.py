"""What is typed: options, usage errors, and processes that are joined."""

import json
import re
import signal
import subprocess
import sys
import threading
import types

import jax
import jaxlib
import pytest

import clip_jax
from clip_jax import cli, errors, host_devices
from clip_jax.cli import parser
from clip_jax.cli.commands import app
from clip_jax.train import peers


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "say which label fits an image"),
    (["trian"], "Did you mean train?"),
    (["models", "--jsn"], "Did you mean --json?"),
    (["models", "extra"], "unrecognized arguments: extra"),
    (["eval", "m", "--task", "zero_shot"], "required: --data"),
    (["eval", "m", "--task=zero_sot", "--data=d"], "Did you mean 'zero_shot'?"),
    (["convert", "a", "b", "--to=opneai"], "Did you mean 'openai'?"),
    (["embed", "m", "--dtype=float8"], "Known: float16, float32"),
    (["data", "inspct", "builtin:digits"], "Did you mean inspect?"),
    (["classify", "m", "--labels", "a"], "required: IMAGE"),
    (["app"], "required: MODEL"),
    (["app", "m", "--port", "65536"], "whole number from 0 to 65535"),
    (["app", "m", "--keys", "a"], "--keys goes with --index"),
    (["app", "m", "--password="], "--password is empty; leave it out, or"),
    (["app", "m", "--prot=1"], "Did you mean --port?"),
    (["search", "index"], "give a text"),
    (["search", "index", " "], "is empty"),
    (["search", "index", __file__], f"search with --image {__file__}"),
    (["search", "index", "text", "--image", "file"], "give a text"),
    (
      ["search", "index", "text", "-k", "0"],
      "-k: must be a whole number, at least 1; got '0'",
    ),
    (["search", "index", "text", "-k", "x"], "whole number, at least 1"),
    (["verify", "a", "b", "--seed", "-1"], "a whole number from 0 to"),
    (["train", "--steps=5"], "Did you mean --config.steps=5?"),
    (["train", "--batch-size", "5"], "--config.batch_size=N, 5 times"),
    (["train", "--config.steps=7", "--config.epochs=1"], "not both"),
    (["data", "prepare", "builtin:digits", "o", "--drop"], "--drop-bad"),
    (["train", "--config", "c"], "required: --workdir"),
    (["train", "--confg=c"], "Did you mean --config?"),
    (["train", "--config.steps"], "--config.steps=VALUE"),
    (["convert", "a", "b", "--preprocess", "0.9"], "like inception:0.9"),
    (["convert", "a", "b", "--preprocess", "half:1"], "like inception:0.9"),
    (["convert", "a", "b", "--preprocess", "openai:x"], "like inception:0.9"),
    (
      ["train", "--config=c", "--workdir=d", "--processes", "2"],
      "go together",
    ),
    (
      [
        *("train", "--config=c", "--workdir=d", "--coordinator=host:1"),
        *("--processes=2", "--process-id=2"),
      ],
      "from 0 to 1",
    ),
  ],
)
def test_wrong_usage_exits_with_2(fails, arguments, message):
  error = fails(*arguments, code=2)
  assert message in error
  assert error.startswith("usage: clip-jax")


def test_versions_and_the_device_are_told_without_starting_it():
  code = (
    "import sys; from clip_jax import cli\n"
    "try: cli.main(['--version'])\n"
    "finally: assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
  )
  ran = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  first, second, third = ran.stdout.splitlines()
  assert first == f"clip-jax {clip_jax.__version__}"
  assert f"jax {jax.__version__}, jaxlib {jaxlib.__version__}" in second
  assert third.startswith("device: CPU (") and "JAX_PLATFORMS" in third


@pytest.mark.parametrize("words", ["--version --json", "--json --version"])
def test_versions_come_as_json_too(words, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(words.split())
  assert ended.value.code == 0
  found = json.loads(capsys.readouterr().out)
  libraries = ["jax", "jaxlib", "flax"]
  assert list(found) == ["clip_jax", *libraries, "python", "device"]
  assert found["clip_jax"] == clip_jax.__version__
  assert found["jaxlib"] == jaxlib.__version__
  assert found["device"].startswith("CPU (")


@pytest.mark.parametrize(
  "has, extra, told",
  [
    (None, None, r"CPU \(\d+ cores\)"),
    ("a TPU", None, r"CPU .*has a TPU, for which jax is not installed"),
    ("a TPU", "libtpu", "a TPU"),
    ("an NVIDIA GPU", None, r"CPU .*has 2 x NVIDIA X1, for which"),
    ("an NVIDIA GPU", "cuda", "2 x NVIDIA X1"),
  ],
)
def test_the_device_is_expected_from_files(
  monkeypatch, tmp_path, has, extra, told
):
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    about = f"Model: \t\t NVIDIA X1\nIRQ:  {i}\n"
    (tmp_path / str(i) / "information").write_text(about)
  monkeypatch.setattr(host_devices, "_NVIDIA", str(tmp_path))
  monkeypatch.setattr(host_devices, "accelerator", lambda: has)
  plugins = (
    [types.SimpleNamespace(name="xla_cuda12")] if extra == "cuda" else []
  )
  finds = {
    (host_devices.importlib.metadata, "entry_points"): lambda group: plugins,
    (host_devices.importlib.util, "find_spec"): lambda name: (
      extra if name == extra else None
    ),
  }
  for (module, name), found in finds.items():
    monkeypatch.setattr(module, name, found)
  monkeypatch.delenv("JAX_PLATFORMS")
  assert re.fullmatch(told + ".*", host_devices.expected())


def test_a_platform_that_is_asked_for_is_told(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
  assert host_devices.expected() == "as JAX_PLATFORMS says: tpu,cpu"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_is_no_error(capsys, arguments):
  with pytest.raises(SystemExit) as caught:
    cli.main(arguments)
  assert caught.value.code == 0
  assert capsys.readouterr().out.startswith("usage: clip-jax")


@pytest.mark.parametrize(
  "address",
  ["foo", "127.0.0.1:abc", ":1", "host:99999", f"host:{'9' * 5000}"],
)
def test_a_coordinator_has_host_and_port(fails, address):
  run = ["train", "--config=c", "--workdir=d", "--processes=2"]
  run += ["--process-id=0", "--coordinator", address]
  assert "must be HOST:PORT" in fails(*run, code=2)


@pytest.mark.parametrize(
  "words",
  [
    "search index -k 5 --json text",
    "search -k 5 index text --json",
    "search --json index text -k 5",
    "search index -k 5 --json -- text",
  ],
)
def test_options_stand_anywhere(words):
  arguments = parser.parse(words.split())
  assert (arguments.index, arguments.query) == ("index", "text")
  assert arguments.k == 5 and arguments.json


def test_images_stand_anywhere():
  arguments = parser.parse(
    ["classify", "--labels", "a,b", "m", "1.png", "--json", "2.png"]
  )
  assert arguments.model == "m" and arguments.images == ["1.png", "2.png"]


def test_wrong_usage_shows_the_usage_of_the_verb(fails):
  error = fails("search", "index", "two", "seven", code=2)
  assert error.startswith("usage: clip-jax search")
  assert "unrecognized arguments: seven" in error


def test_overrides_come_in_both_forms_and_in_order():
  arguments = parser.parse(
    [
      *("train", "--config.a.b=1=2", "--config", "file", "--workdir=dir"),
      *("--config.mesh.data", "-1", "--config.a.b=", "--json"),
    ]
  )
  assert arguments.overrides == ["a.b=1=2", "mesh.data=-1", "a.b="]
  assert (arguments.config, arguments.workdir) == ("file", "dir")
  assert arguments.json


class Watch:
  """Stands for the connections to the other processes."""

  coordinator = "127.0.0.1:9"

  def __init__(self):
    self.failures = []
    self.stop_asked = threading.Event()

  def fail(self, error):
    self.failures.append(str(error))


@pytest.mark.parametrize(
  "flags, expected",
  [
    ([], []),
    (["--distributed"], [{"heartbeat_timeout_seconds": 90}]),
    (
      ["--coordinator=host:12", "--processes=3", "--process-id=2"],
      [
        {
          "coordinator_address": Watch.coordinator,
          "coordinator_bind_address": Watch.coordinator,
          "num_processes": 3,
          "process_id": 2,
          "heartbeat_timeout_seconds": 90,
        }
      ],
    ),
  ],
)
def test_processes_are_joined_before_anything_else(
  monkeypatch, tmp_path, fails, flags, expected
):
  watch, connected, joined = Watch(), [], []

  def connect(address, *, process, processes, join_seconds, heartbeat_seconds):
    assert join_seconds == (60 if "--distributed" in flags else 300)
    assert heartbeat_seconds == 30
    connected.append((address, process, processes))
    return watch

  def initialize(*, initialization_timeout, **options):
    assert initialization_timeout == 300
    joined.append(options)

  monkeypatch.setattr(peers, "connect", connect)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  # The missing file shows that joining came first.
  path = tmp_path / "none.py"
  before = signal.getsignal(signal.SIGTERM)
  said = fails("train", "--config", path, "--workdir", tmp_path, *flags)
  assert signal.getsignal(signal.SIGTERM) is before
  assert joined == expected
  named = "--coordinator=host:12" in flags
  if named:
    assert connected == [("host:12", 2, 3)]
  elif flags:
    ((address, process, processes),) = connected
    assert (process, processes) == (0, 1) and address.rpartition(":")[2] > "0"
  assert ("Waiting for process 0 at host:12 (up to 300 s)" in said) == named
  # The others are told.
  assert len(watch.failures) == bool(flags)
  assert all("none.py" in failure for failure in watch.failures)


def test_processes_that_cannot_watch_each_other_run_all_the_same(
  monkeypatch, tmp_path, fails
):
  def connect(address, **_):
    raise errors.UserError(f"Process 0 cannot be reached at {address}.")

  monkeypatch.setattr(peers, "connect", connect)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
  path = tmp_path / "none.py"
  words = ("--config", path, "--workdir", tmp_path, "--distributed")
  said = fails("train", *words)
  assert "cannot watch each other: Process 0 cannot be reached at" in said
  assert "none.py" in said


@pytest.mark.parametrize(
  "content, typed",
  [
    ("cat\r\nowl, barn\n", "cat\nowl, barn"),
    ('["cat", "dog"]', "cat\ndog"),
    ('["cat", ["dog", "hound"]]', None),
    ('["one\\ntwo"]', None),
    ('{"cat": ["a cat"]}', None),
  ],
)
def test_the_page_begins_with_the_labels_of_a_file(tmp_path, content, typed):
  file = tmp_path / f"labels.{'json' if content[0] in '[{' else 'txt'}"
  file.write_text(content, newline="")
  if typed is None:
    with pytest.raises(errors.UserError, match="a name a line"):
      app.typed_labels(str(file))
  else:
    assert app.typed_labels(str(file)) == typed
  assert app.typed_labels("cat, ,dog") == "cat\ndog"
  assert app.typed_labels("") == ""
