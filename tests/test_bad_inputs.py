"""What users get wrong: a clear message, the right exit code, nothing lost."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import resource
import shlex
import shutil
import string
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import cli, errors
from clip_jax.checkpoints import saving
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import sources
from clip_jax.train import metric_log
from clip_jax.train import run as run_lib

# Where checkpoints are damaged, TensorStore's threads complain after the fact,
# in whichever test runs then.
pytestmark = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
  ),
]

CONFIG = (
  pathlib.Path(__file__).with_name("configs") / "tiny_bow.py"
).read_text()
# Of "return", in whose place `_config_with` puts its line.
LAST_LINE = CONFIG.count("\n")


@dataclasses.dataclass(frozen=True)
class Case:
  """One wrong command.

  Attributes:
    command: `$here` is a new directory; `$config`, `$workdir`, `$poisoned`,
      `$index` and `$image` are good ones that must stay as they are.
    says: words of the message.
    code: exit code.
    prepare: makes what the command needs in `$here`.
    leaves: names in `$here` that the command may make or change.
  """

  command: str
  says: tuple[str, ...]
  code: int = 1
  prepare: Callable[[pathlib.Path], object] | None = None
  leaves: tuple[str, ...] = ()


def _write(name, content=b""):
  """Returns a preparation that writes one file."""

  def prepare(here):
    path = here / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

  return prepare


def _config_with(line):
  """Returns a preparation that writes a config with one more line."""
  text = CONFIG.replace("  return config", f"  {line}\n  return config")
  return _write("my.py", text.encode())


def _empty_directory(name):
  return lambda here: (here / name).mkdir(parents=True)


def _empty_tar(here):
  tarfile.open(here / "0.tar", "w").close()


def _three_shards_of_five(here):
  for i in (0, 1, 3):
    _write(f"{i:04d}.tar")(here)


def _pairs_with_bad_images(good, bad):
  """Returns a preparation of image and text files in `$here/pairs`."""

  def prepare(here):
    source = sources.open_source("builtin:two_digits/test")
    for i in range(good + bad):
      image = source[i].image if i < good else b"<html>not found</html>"
      _write(f"pairs/{i:03d}.png", image)(here)
      _write(f"pairs/{i:03d}.txt", b"a number")(here)

  return prepare


def _truncated_image(here):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG")
  (here / "cut.jpg").write_bytes(buffer.getvalue()[:900])


def _copy(what, name="copy"):
  """Returns a preparation that copies a shared directory to `$here/copy`."""
  return lambda here: shutil.copytree(
    here.parent / "shared" / what, here / name
  )


def _damaged_run(here):
  _copy("run", "run")(here)
  for path in (here / "run" / "checkpoints").rglob("d/*"):
    path.write_bytes(b"")


def _damaged_index(here):
  _copy("index")(here)
  (path,) = (here / "copy").glob("embeddings-*.npy")
  content = bytearray(path.read_bytes())
  content[200] ^= 1
  path.write_bytes(content)


def _index_without_a_file(here):
  _copy("index")(here)
  (path,) = (here / "copy").glob("records-*.parquet")
  path.unlink()


def _index_of_a_model_that_is_gone(here):
  _copy("index")(here)
  path = here / "copy" / "meta.json"
  meta = json.loads(path.read_text()) | {"model": "/gone/model"}
  path.write_text(json.dumps(meta))


def _workdir_with_a_torn_config(here):
  _copy("run", "run")(here)
  (here / "run" / "config.json").write_text('{"batch_size": 16,')


TRAIN = "train --config $config --workdir $here/run "
CLASSIFY = "classify $workdir --labels a,b "
EVAL = "eval $workdir --data builtin:digits/test --task "
EMBED = "embed $workdir --data builtin:digits/test --out "

CASES = {
  # The command line itself.
  "unknown verb": Case("trian", ("Did you mean train?",), 2),
  "unknown flag": Case(
    "train --confg=x", ("'--confg'", "Did you mean --config?"), 2
  ),
  "process id alone": Case(
    TRAIN + "--process-id 1", ("--coordinator", "go together"), 2
  ),
  "batch size 0": Case(
    EVAL + "zero_shot --batch-size 0",
    ("--batch-size", "whole number, at least 1"),
    2,
  ),
  "no query": Case("search $index", ("give a text",), 2),
  # The config.
  "missing config": Case(
    "train --config $here/none.py --workdir $here/run",
    ("none.py", "does not exist", "configs/"),
  ),
  "misspelt field in the config": Case(
    "train --config $here/my.py --workdir $here/run",
    (f"my.py, line {LAST_LINE}", "'peak_rl'", "Did you mean 'peak_lr'?"),
    prepare=_config_with("config.optim.peak_rl = 1e-3"),
  ),
  "syntax error in the config": Case(
    "train --config $here/my.py --workdir $here/run",
    (f"my.py, line {LAST_LINE}", "SyntaxError"),
    prepare=_config_with("config.optim.peak_lr = = 1e-3"),
  ),
  "config without get_config": Case(
    "train --config $here/my.py --workdir $here/run",
    ("defines no get_config()", "configs/demo.py"),
    prepare=_write("my.py", b"batch_size = 3\n"),
  ),
  "unknown field": Case(
    TRAIN + "--config.optim.peak_rl=1e-3",
    ("'optim.peak_rl'", "Did you mean 'optim.peak_lr'?"),
  ),
  "wrong type": Case(
    TRAIN + "--config.steps=many", ("config.steps takes int", "'many'")
  ),
  "value out of range": Case(
    TRAIN + "--config.optim.peak_lr=-1",
    ("config.optim.peak_lr=-1.0", "more than 0"),
  ),
  "steps and epochs": Case(
    "train --config $here/my.py --workdir $here/run",
    ("exactly one of steps and epochs", "steps=3", "epochs=2"),
    prepare=_config_with("config.epochs = 2.0"),
  ),
  "warm-up longer than the run": Case(
    TRAIN + "--config.optim.warmup_steps=9",
    ("optim.warmup_steps=9", "3 steps", "try 1"),
  ),
  "batch not divisible": Case(
    TRAIN + "--config.batch_size=13",
    ("batch_size=13", "8 devices", "try 8"),
  ),
  "mesh that does not fit": Case(
    TRAIN + "--config.mesh.data=3",
    ("mesh.data=3 and mesh.fsdp=1", "8 devices", "-1 takes the rest"),
  ),
  "unknown model": Case(
    TRAIN + "--config.model=tiny-rm", ("'tiny-rm'", "Did you mean 'tiny-rn'?")
  ),
  "unknown field of the model": Case(
    TRAIN + "--config.model_overrides.image.widht=8",
    ("'image.widht'", "Did you mean 'image.width'?"),
  ),
  "wrong type in the model": Case(
    TRAIN + "--config.model_overrides.image.width=wide",
    ("config.model_overrides.image.width takes int", "'wide'"),
  ),
  "model that does not fit together": Case(
    TRAIN + "--config.model_overrides.image.heads=3",
    ("width=8 must be divisible by heads=3",),
  ),
  "float64 in 32-bit mode": Case(
    TRAIN + "--config.precision=float64", ("float64", "JAX_ENABLE_X64=1")
  ),
  # The data.
  "DATA without a scheme": Case(
    "data inspect $here/pairs",
    ("has no scheme", "Did you mean folder:", "/pairs?"),
    prepare=_write("pairs/cat/1.jpg", b"JPEG"),
  ),
  "shards without a scheme": Case(
    "data inspect $here/pairs",
    ("has no scheme", "Did you mean wds:", "/pairs?"),
    prepare=_write("pairs/1.tar", b"tar"),
  ),
  "tables without a scheme": Case(
    "data inspect $here/pairs",
    ("has no scheme", "Did you mean parquet:", "/pairs?"),
    prepare=_write("pairs/1.parquet", b"PAR1"),
  ),
  "TFDS's files without a scheme": Case(
    "data inspect $here/pairs",
    ("has no scheme", "Did you mean tfrecord:", "/pairs?"),
    prepare=_write("pairs/x.tfrecord-00000-of-00001", b"x"),
  ),
  "unknown scheme": Case(
    "data inspect webdataset:x", ("'webdataset'", "Known:", "wds")
  ),
  "unknown option": Case(
    "data inspect csv:x.csv?capton=text", ("'capton'", "'caption'")
  ),
  "unknown built-in set": Case(
    "data inspect builtin:digts/test", ("'digts'", "Did you mean 'digits'?")
  ),
  "unknown split": Case(
    "data inspect builtin:digits/tset",
    ("builtin:digits/tset", "Did you mean 'builtin:digits/test'?"),
  ),
  "unknown TFDS set": Case(
    "data inspect tfds:no_such_set/train",
    ("'no_such_set'", "Looked in", "data_dir"),
  ),
  "missing folder": Case(
    TRAIN + "--config.data.train=folder:$here/none",
    ("folder:", "none is not a directory", "check the path"),
  ),
  "folder without images": Case(
    TRAIN + "--config.data.train=folder:$here/pairs",
    ("pairs", "holds no images", "jpg"),
    prepare=_write("pairs/readme.md", b"text"),
  ),
  "empty tar": Case(
    TRAIN + "--config.data.train=wds:$here/0.tar",
    ("0.tar", "holds no samples", "is empty (10240 bytes)"),
    prepare=_empty_tar,
  ),
  "missing shards": Case(
    TRAIN + "--config.data.train=wds:$here/{0000..0004}.tar",
    ("0002.tar' (and 1 more) does not exist", "Check the path"),
    prepare=_three_shards_of_five,
  ),
  "table without the column": Case(
    TRAIN + "--config.data.train=csv:$here/pairs.csv",
    ("'title' or 'caption'", "'words'", "?caption=COLUMN"),
    prepare=_write("pairs.csv", b"image,words\na.png,a\n"),
  ),
  "table without rows": Case(
    TRAIN + "--config.data.train=csv:$here/pairs.csv",
    ("pairs.csv", "no rows"),
    prepare=_write("pairs.csv", b"image,caption\n"),
  ),
  "empty table": Case(
    TRAIN + "--config.data.train=csv:$here/pairs.csv",
    ("pairs.csv is empty", "image,caption"),
    prepare=_write("pairs.csv"),
  ),
  "missing data of an evaluation": Case(
    TRAIN + "--config.evals.mine.data=folder:$here/none",
    ("evals.mine", "folder:", "is not a directory"),
  ),
  "missing data of the report": Case(
    TRAIN + "--config.report=builtin:digits/unseen",
    ("report: ", "'builtin:digits/unseen'", "Known:"),
  ),
  "too many bad records": Case(
    TRAIN + "--config.data.train=folder:$here/pairs",
    (
      "bad records among 16 examples",
      "max_bad_fraction=0.01 allows 0.4",
      "(1 % of 40 examples, the fewest that the limit is computed from)",
      "not_an_image",
      "clip-jax data inspect",
    ),
    prepare=_pairs_with_bad_images(good=20, bad=20),
    leaves=("run",),
  ),
  "only bad records": Case(
    TRAIN + "--config.data.train=folder:$here/pairs",
    ("101 bad records in a row", "not_an_image", "clip-jax data inspect"),
    prepare=_pairs_with_bad_images(good=0, bad=9),
    leaves=("run",),
  ),
  # The workdir.
  "workdir of another config": Case(
    "train --config $config --workdir $workdir --config.seed=5",
    ("another config (seed: 0 -> 5)", "--allow-changes"),
  ),
  "workdir that is a file": Case(
    TRAIN, ("run", "is a file", "directory"), prepare=_write("run", b"mine")
  ),
  "workdir below a file": Case(
    "train --config $config --workdir $here/file/run",
    ("Not a directory", "file"),
    prepare=_write("file", b"mine"),
  ),
  "workdir on the web": Case(
    "train --config $config --workdir https://bucket/run",
    ("https://bucket/run", "download it"),
  ),
  "checkpoints without a config": Case(
    TRAIN,
    ("run", "no config.json", "new workdir"),
    prepare=_empty_directory("run/checkpoints"),
  ),
  "all checkpoints damaged": Case(
    TRAIN,
    ("None of the 3 checkpoints", "Restore one from a backup", "new workdir"),
    prepare=_damaged_run,
  ),
  # The model.
  "missing model": Case(
    "classify $here/none $image --labels a,b",
    ("none", "does not exist", "workdir"),
  ),
  "model that is no workdir": Case(
    "classify $here/photos $image --labels a,b",
    ("photos", "in no known format", "config.json and checkpoints/"),
    prepare=_empty_directory("photos"),
  ),
  "model that is a file": Case(
    "classify $image $image --labels a,b", ("image.png", "is a file")
  ),
  "model with a torn config": Case(
    "classify $here/run $image --labels a,b",
    ("config.json", "no valid JSON", "line 1"),
    prepare=_workdir_with_a_torn_config,
  ),
  "model with damaged checkpoints": Case(
    "classify $here/run $image --labels a,b",
    ("holds 3 checkpoints, none of them good", "train"),
    prepare=_damaged_run,
  ),
  "model of NaN, classify": Case(
    "classify $poisoned $image --labels a,b",
    ("zero or not finite", "earlier checkpoint"),
  ),
  "model of NaN, evaluate": Case(
    "eval $poisoned --task retrieval --data builtin:digits/test",
    ("zero or not finite", "earlier checkpoint"),
  ),
  "model of NaN, embed": Case(
    "embed $poisoned --data builtin:digits/test --out $here/index",
    ("not finite", "diverged", "earlier checkpoint"),
  ),
  # Images, labels and templates.
  "missing image": Case(
    CLASSIFY + "$here/phto.jpg",
    ("phto.jpg", "No such file", "Did you mean", "photo.jpg"),
    prepare=_write("photo.jpg"),
  ),
  "directory as an image": Case(
    CLASSIFY + "$here", ("Is a directory", "*.jpg", "--data folder:")
  ),
  "image of zero bytes": Case(
    CLASSIFY + "$here/empty.jpg",
    ("empty.jpg", "0 bytes"),
    prepare=_write("empty.jpg"),
  ),
  "text file as an image": Case(
    CLASSIFY + "$here/page.jpg",
    ("page.jpg", "is text, not an image"),
    prepare=_write("page.jpg", b"<html>not found</html>"),
  ),
  "truncated image": Case(
    CLASSIFY + "$here/cut.jpg",
    ("cut.jpg", "truncated"),
    prepare=_truncated_image,
  ),
  "empty label": Case(
    "classify $workdir $image --labels a,,b", ("label", "none of them empty")
  ),
  "label given twice": Case(
    "classify $workdir $image --labels a,b,a", ("more than once: a",)
  ),
  "missing file of labels": Case(
    "classify $workdir $image --labels $here/lables.txt",
    ("lables.txt' does not exist", "Did you mean", "labels.txt"),
    prepare=_write("labels.txt"),
  ),
  "directory of labels": Case(
    "classify $workdir $image --labels $here", ("are a directory", "commas")
  ),
  "labels that are not UTF-8": Case(
    "classify $workdir $image --labels $here/labels.txt",
    ("labels.txt", "no UTF-8", "caf", "Save it as UTF-8"),
    prepare=_write("labels.txt", b"caf\xe9"),
  ),
  "labels in UTF-16": Case(
    "classify $workdir $image --labels $here/labels.txt",
    ("labels.txt", "UTF-16", "Save it as UTF-8"),
    prepare=_write("labels.txt", "cat\ndog".encode("utf-16")),
  ),
  "image as the labels": Case(
    "classify $workdir $image --labels $image", ("no UTF-8", "PNG")
  ),
  "labels as the image": Case(
    CLASSIFY + "$here/labels.txt",
    ("labels.txt", "is text, not an image"),
    prepare=_write("labels.txt", b"cat\ndog"),
  ),
  "template without a placeholder": Case(
    CLASSIFY + "$image --template photo", ("'photo'", "placeholder {}")
  ),
  # Evaluations.
  "unknown task": Case(
    EVAL + "zeroshot", ("'zeroshot'", "Did you mean 'zero_shot'?"), 2
  ),
  "labels for retrieval": Case(
    EVAL + "retrieval --labels a,b", ("takes no labels",)
  ),
  "data without labels": Case(
    "eval $workdir --task zero_shot --data folder:$here/pairs",
    ("names no classes", "--task retrieval", "give --labels"),
    prepare=_pairs_with_bad_images(good=2, bad=0),
  ),
  "evaluation of bad records only": Case(
    "eval $workdir --task retrieval --data folder:$here/pairs",
    ("All 2 records are bad", "2 not_an_image", "data inspect"),
    prepare=_pairs_with_bad_images(good=0, bad=2),
  ),
  # Indices and prepared data.
  "index onto photos": Case(
    EMBED + "$here/photos",
    ("photos is no index", "cat.jpg", "left alone"),
    prepare=_write("photos/cat.jpg", b"mine"),
  ),
  "index onto a file": Case(
    EMBED + "$here/file", ("file is a file",), prepare=_write("file", b"mine")
  ),
  "index below a file": Case(
    EMBED + "$here/file/index",
    ("Not a directory", "file"),
    prepare=_write("file", b"mine"),
  ),
  "index of bad records only": Case(
    "embed $workdir --data folder:$here/pairs --out $here/index",
    ("All 2 records are bad", "2 not_an_image", "data inspect"),
    prepare=_pairs_with_bad_images(good=0, bad=2),
  ),
  "search in a folder": Case(
    "search $here/photos dog",
    ("photos is no index", "clip-jax embed"),
    prepare=_write("photos/cat.jpg"),
  ),
  "search in nothing": Case(
    "search $here/none dog", ("none does not exist", "clip-jax embed")
  ),
  "search in a damaged index": Case(
    "search $here/copy dog",
    ("is damaged", "embeddings-", "clip-jax embed"),
    prepare=_damaged_index,
  ),
  "search in an index without a file": Case(
    "search $here/copy dog",
    ("is damaged", "records-", "is missing", "clip-jax embed"),
    prepare=_index_without_a_file,
  ),
  "search without the model": Case(
    "search $here/copy dog",
    ("/gone/model", "--model"),
    prepare=_index_of_a_model_that_is_gone,
  ),
  "search like a missing image": Case(
    "search $index --image $here/none.png", ("none.png", "No such file")
  ),
  "prepare onto photos": Case(
    "data prepare builtin:digits/test $here/photos",
    ("photos", "nothing is overwritten"),
    prepare=_write("photos/cat.jpg", b"mine"),
  ),
  "prepare below a file": Case(
    "data prepare builtin:digits/test $here/file/copy",
    ("Not a directory", "file"),
    prepare=_write("file", b"mine"),
  ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A config, a trained model, one of NaN, an index and an image."""
  root = tmp_path_factory.mktemp("bad_inputs") / "shared"
  root.mkdir()
  (root / "tiny.py").write_text(CONFIG)
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "image.png")
  commands = (
    "train --config $config --workdir $workdir",
    EMBED + "$index",
  )
  for command in commands:
    with contextlib.redirect_stdout(io.StringIO()):
      assert cli.run(_words(command, root, root)) == 0
  _poison(root / "run", root / "poisoned")
  return root


def _poison(workdir, poisoned):
  """Copies a run and adds a checkpoint whose parameters are all NaN."""
  shutil.copytree(workdir, poisoned)
  run = run_lib.make_run(workdir_lib.load_config(workdir))
  abstract = run.program.abstract_state()
  with saving.Checkpoints(poisoned, keep=9) as checkpoints:
    state, meta = checkpoints.restore_latest(abstract)
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    checkpoints.save(
      state.replace(params=params),
      step=9,
      config=run.program.config,
      counters=meta["counters"],
    )


def _words(command, here, shared):
  places = {
    "config": shared / "tiny.py",
    "workdir": shared / "run",
    "poisoned": shared / "poisoned",
    "index": shared / "index",
    "image": shared / "image.png",
    "here": here,
  }
  return [
    string.Template(word).substitute(places) for word in shlex.split(command)
  ]


def _content(root, but=()):
  """Every file with its content, every directory; some names left out."""
  return {
    str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
    for path in sorted(root.rglob("*"))
    if path.relative_to(root).parts[0] not in but
  }


def _run(words, capsys):
  """Returns exit code, stdout and stderr of a command in this process."""
  capsys.readouterr()
  try:
    code = cli.run(words)
  except SystemExit as caught:
    code = caught.code
  captured = capsys.readouterr()
  return code, captured.out, captured.err


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_command_says_what_is_wrong_and_harms_nothing(
  name, shared, capsys
):
  case = CASES[name]
  here = shared.parent / name.replace(" ", "_").replace(",", "")
  here.mkdir()
  if case.prepare is not None:
    case.prepare(here)
  before = _content(here, case.leaves), _content(shared)
  code, stdout, stderr = _run(_words(case.command, here, shared), capsys)
  assert (code, stdout) == (case.code, "")
  message = stderr.splitlines()[-1]
  for words in case.says:
    assert words in message
  assert "Traceback" not in stderr
  if code == 1:
    assert message.startswith("Error: ")
  assert (_content(here, case.leaves), _content(shared)) == before


def test_processes_that_cannot_be_joined_are_named(
  shared, tmp_path, capsys, monkeypatch
):
  def initialize(**options):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  words = _words(TRAIN + "--distributed", tmp_path, shared)
  code, stdout, stderr = _run(words, capsys)
  assert (code, stdout) == (1, "")
  assert "coordinator_address should be defined" in stderr
  assert "--coordinator, --processes and --process-id" in stderr
  assert not list(tmp_path.iterdir())


# A limit on the size of a file stands in for a full disk, which takes root to
# make: more than a log or an event file, less than a checkpoint's arrays.
FILE_BYTES = 200_000


@contextlib.contextmanager
def _full_disk():
  """Writes beyond `FILE_BYTES` fail in here."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_in_the_background_is_noticed_without_waiting(
  shared, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(shared / "run", workdir)
  before = _content(workdir)
  run = run_lib.make_run(workdir_lib.load_config(workdir))
  abstract = run.program.abstract_state()
  checkpoints = saving.Checkpoints(workdir)
  state, meta = checkpoints.restore_latest(abstract)
  with _full_disk(), pytest.raises(errors.UserError) as caught, checkpoints:
    checkpoints.save(
      state, step=7, config=run.program.config, counters=meta["counters"]
    )
    for _ in range(1000):
      checkpoints.check()
      time.sleep(0.01)
  message = str(caught.value)
  assert message.startswith("Checkpoint 7 could not be saved in ")
  assert "File too large" in message and "step 3 is untouched" in message
  after = _content(workdir)
  unfinished = {path for path in after if ".orbax-checkpoint-tmp" in path}
  assert {path: after[path] for path in after.keys() - unfinished} == before


def test_what_stopped_a_run_comes_before_a_failed_save(
  shared, tmp_path, caplog
):
  workdir = tmp_path / "run"
  run = run_lib.make_run(workdir_lib.load_config(shared / "run"))
  state = run.program.init_state()
  checkpoints = saving.Checkpoints(workdir)
  with (
    _full_disk(),
    pytest.raises(errors.UserError, match="the first error"),
    checkpoints,
  ):
    checkpoints.save(state, step=1, config=run.program.config, counters={})
    raise errors.UserError("the first error")
  assert "Checkpoint 1 could not be saved" in caplog.text
  assert "There is none before it" in caplog.text


def test_a_log_that_cannot_be_written_is_an_error_and_no_wait(tmp_path):
  def append():
    for step in range(1000):
      metric_log.append_line(tmp_path / "lines", {"step": step, "x" * 1000: 1})

  def write():
    (tmp_path / "metrics.jsonl").symlink_to(os.devnull)
    with metric_log.Writer(tmp_path) as writer:
      for step in range(1000):
        writer.write(step, {"x" * 1000: 1.5})

  with _full_disk(), pytest.raises(OSError, match=r"File too large.*lines"):
    append()
  with _full_disk(), pytest.raises(OSError, match=r"File too large.*events"):
    write()


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(
  shared, tmp_path, capsys
):
  """In a process of its own, for all that threads say up to its end."""
  shutil.copytree(shared / "run", tmp_path / "run")
  before = _content(tmp_path / "run")
  words = _words(TRAIN + "--config.steps=6 --allow-changes", tmp_path, shared)
  limit = (FILE_BYTES, resource.RLIM_INFINITY)
  done = subprocess.run(
    [sys.executable, "-m", "clip_jax", *words],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(cli.__file__).parents[2],
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
  )
  assert (done.returncode, done.stdout) == (1, "")
  *_, message = done.stderr.splitlines()
  assert "Traceback" not in done.stderr
  assert message.startswith("Error: Checkpoint 4 could not be saved in ")
  assert "step 3 is untouched" in message and "same command" in message
  after = _content(tmp_path / "run")
  saved = {path for path in before if path.startswith("checkpoints/")}
  assert saved and all(before[path] == after[path] for path in saved)
  code, stdout, stderr = _run(words, capsys)
  assert code == 0 and "Trained 6 steps" in stdout
  assert "Resumed at step 3." in stderr
  assert not list((tmp_path / "run").rglob("*.orbax-checkpoint-tmp"))
