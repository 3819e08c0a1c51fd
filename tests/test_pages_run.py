"""Commands of README and the pages run as they stand, beside small data."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile

import pyarrow as pa
import pytest
from pyarrow import parquet

import model_kinds
import tf_examples
from clip_jax import cli
from clip_jax import config as config_lib
from clip_jax.cli import parser
from clip_jax.data import sources
from clip_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# Why a command that begins so, or holds this, is not run here.
NOT_RUN = {
  "pip install": "it installs: .ci/run does it",
  "docker ": "builds and pushes an image: network",
  "kubectl ": "cloud",
  "gcloud ": "cloud",
  "export CLIP_JAX": "a variable of a cluster's scripts: tests/launchers",
  "hf-hub:": "network",
  "my-bucket/": "network and an account: tests/mirrors",
  "tracker=wandb": "network and an account; tests/train/test_tracking.py",
  "my-name/my-clip --license mit --reports": "network and an account",
  "my-name/my-clip-hf": "network and an account",
  "tfds:voc": "network: 2 GB of pictures; tests/data/test_tfds.py",
  "configs/vit_bert.py": "network: two pretrained towers",
  "configs/openclipart.py": "an hour, and drawings of a Debian package",
  "enwiki-latest": "hours, and a dump of 20 GB; tests/data/test_query_lists.py",
  "--suite": "data sets that nobody may pass on; tests/evals/test_suite.py",
  "--folds": "data sets that nobody may pass on; tests/evals/test_folds.py",
  "--runner beam": "a cluster of Flink; tests/data/test_dedupe.py",
  "captioning_weight": "a larger model; tests/train/test_objectives.py",
  "ViT-B-32.pt models": "OpenAI's own file; tests/convert/test_openai.py",
  "clip-jax plan": "minutes a plan: tests/plan",
  "clip-jax verify": "PyTorch: tests/convert/test_verification.py",
  "clip-jax app": "it goes on until it is stopped: tests/app",
  "--coordinator": "two processes: test_resume.py, test_search_hosts.py",
  "runs/pets": "tests/train/test_finetuning.py runs README's section",
  "models/pets": "tests/train/test_finetuning.py runs README's section",
  "SOURCE DEST": "words in place of paths",
}
# Libraries of extras without which a command that holds this is skipped.
EXTRAS = {"index.faiss": "faiss", "--queries en=": "py3langid"}
# What stands here in place of a reader's large data and long runs.
SMALL = {
  "--profile 20": "--profile 2",
  "warmup_steps=2000": "warmup_steps=1",
  "steps=40000": "steps=2",
  "steps=50000": "steps=3",
  "cooldown_steps=10000": "cooldown_steps=1",
  "{00000..00331}": "{00000..00001}",
  "/data/": "data/",
  "ADDRESS": "csv:pairs.csv",
}


def _blocks(page, language):
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def _commands():
  for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
    for block in _blocks(page, "bash"):
      for line in block.replace("\\\n", " ").splitlines():
        if re.search(r"clip-jax\b", line, re.IGNORECASE):
          yield page.name, " ".join(line.split())


def _is_run(line):
  return not any(part in line for part in NOT_RUN)


def _run_here():
  for page, line in _commands():
    if _is_run(line):
      yield pytest.param(page, line, id=f"{page}: {line}")


def test_every_reason_is_that_of_a_command():
  lines = [line for _, line in _commands()]
  for reason in NOT_RUN.values():
    for path in re.findall(r"tests/[\w/.]+", reason):
      assert (ROOT / path).exists(), path
  assert all(any(part in line for line in lines) for part in NOT_RUN)
  assert all(any(part in line for line in lines) for part in EXTRAS)
  assert len([*_run_here()]) >= 54 and len(lines) >= 85


def _write_small_configs(room):
  """The configs that pages name, with a model and a length for this test."""
  tiny = runpy.run_path(str(ROOT / "tests" / "configs" / "tiny_bow.py"))
  tiny = tiny["get_config"]().to_dict()
  names = ("batch_size", "model", "model_overrides", "precision")
  fields = {name: tiny[name] for name in names}
  fields |= {"epochs": None, "steps": 2}
  fields["model_overrides"]["image"]["image_size"] = 16
  (room / "configs").mkdir()
  for name in ("demo", "vit_b32", "my_run", "objectives"):
    real = ROOT / "configs" / f"{name.replace('my_run', 'demo')}.py"
    (room / "configs" / f"{name}.py").write_text(
      "import runpy\n\n\ndef get_config():\n"
      f"  config = runpy.run_path({str(real)!r})['get_config']()\n"
      f"  config.update({fields!r})\n"
      "  config.data.update({'workers': 0, 'threads': 1})\n"
      "  config.optim.warmup_steps = 1\n"
      "  config.evals = {'unseen': {'data': 'builtin:two_digits/unseen'}}\n"
      "  return config\n"
    )


def _write_data(room):
  source = sources.open_source("builtin:two_digits/test")
  records, others = ([source[i] for i in range(n, n + 24)] for n in (0, 23))
  lines = ["filepath\ttitle"]
  # A record of the training set is in the test set, too.
  for folder, of in (("imagenet/val", others), ("pets", records)):
    for i, record in enumerate(of):
      path = room / "data" / folder / f"class {i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(record.image)
  for i, record in enumerate(records):
    lines.append(f"data/pets/class {i % 2}/{i}.png\t{record.texts[0]}")
  (room / "pairs.tsv").write_text("\n".join(lines) + "\n")
  (room / "pairs.csv").write_text("\n".join(lines).replace("\t", ",") + "\n")
  _write_shards(room, records)
  _write_hub_data(room, records)
  (room / "faces").symlink_to(room / "data" / "pets")
  keys = [
    f"class {i % 2}/{i}.png,{'old' if i % 3 else 'new'}" for i in range(24)
  ]
  (room / "faces.csv").write_text("\n".join(["key,age", *keys]) + "\n")
  (room / "labels.json").write_text('["class 0", "class 1"]')
  (room / "templates.txt").write_text("a photo of a {}.\nthe number {}.\n")
  (room / "queries.txt").write_text("one\nphoto\nthree\n")
  for language in ("english", "chinese", "thai"):
    (room / f"{language}.txt").write_text("one\nphoto\nthree\n")
  (room / "views.tsv").write_text("Photo\t100\nNumber\t90\n")
  (room / "rules.toml").write_text("min_side = 8\nmax_aspect = 3\n")
  (room / "results").mkdir()


def _write_shards(room, records):
  for shard in range(2):
    with tarfile.open(room / "data" / f"{shard:05d}.tar", "w") as tar:
      for i, record in enumerate(records[shard::2]):
        caption = " ".join(record.texts).encode()
        for suffix, data in (("png", record.image), ("txt", caption)):
          member = tarfile.TarInfo(f"{shard}{i:03d}.{suffix}")
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))


def _write_hub_data(room, records):
  """Food101 as the hub has it, and the table of COCO's captions."""
  names = pa.schema(
    [
      ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
      ("label", pa.int64()),
    ]
  )
  classes = {"names": ["apple pie", "waffles"], "_type": "ClassLabel"}
  about = {"info": {"features": {"label": classes}}}
  schema = names.with_metadata({"huggingface": json.dumps(about)})
  (room / "data" / "food101").mkdir()
  for split in ("train", "validation"):
    rows = [
      {"image": {"bytes": x.image, "path": f"{i}.png"}, "label": i % 2}
      for i, x in enumerate(records)
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    name = f"{split}-00000-of-00001.parquet"
    parquet.write_table(table, room / "data" / "food101" / name)
  saved = room / "data" / "saved" / "validation"  # By `save_to_disk`.
  saved.mkdir(parents=True)
  with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", schema) as file:
    file.write_table(table)
  (room / "data" / "shards").mkdir()
  tf_examples.write(
    room / "data" / "shards" / "a.tfrecord",
    *(
      tf_examples.example(jpg=x.image, txt=x.texts[0].encode()) for x in records
    ),
  )
  images = []
  for i, record in enumerate(records):
    (room / "data" / f"{i}.png").write_bytes(record.image)
    images.append(
      {
        **{"filename": f"{i}.png", "cocoid": i},
        "split": ("train", "restval", "test")[i % 3],
        "sentences": [{"raw": f"{record.texts[0]} {n}"} for n in range(6)],
      }
    )
  table = json.dumps({"images": images, "dataset": "coco"})
  (room / "data" / "dataset_coco.json").write_text(table)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """A folder with what the pages take as given, and small models."""
  room = tmp_path_factory.mktemp("room")
  _write_small_configs(room)
  _write_data(room)
  config = config_lib.load(ROOT / "tests" / "configs" / "tiny_bow.py")
  loop.train(config, room / "runs" / "demo")
  model_kinds.clip_directory(room / "runs" / "mine")
  with contextlib.chdir(room):
    scan = _blocks(ROOT / "README.md", "bash")[2].split('"')[1]
    subprocess.run([sys.executable, "-c", scan], check=True)
  return room


def _words(line):
  for long, short in SMALL.items():
    line = line.replace(long, short)
  return shlex.split(line.removeprefix("clip-jax "), comments=True)


def _made(words):
  """Returns what a command writes, the first of it; "" for nothing."""
  arguments = parser.parse(words)
  names = ("workdir", "out", "dest", "export")
  return next(filter(None, (getattr(arguments, n, "") for n in names)), "")


def _run(line):
  """Runs a line of a page and returns what it says."""
  command, _, file = line.partition(" > ")
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    assert not cli.main(_words(command))
  if file:
    pathlib.Path(file).write_text(said.getvalue())
  return said.getvalue()


def _run_those_before(page, line):
  """Runs the commands of a page that make what a later one reads."""
  words = _words(line)
  for of, before in _commands():
    if (of, before) == (page, line):
      break
    if of == page and _is_run(before):
      made = _made(_words(before.partition(" > ")[0]))
      named = made and any(made in word for word in words)
      if named and not os.path.exists(made):
        _run_those_before(page, before)
        _run(before)


@pytest.mark.parametrize("page, line", [*_run_here()])
def test_a_command_runs(room, tmp_path, monkeypatch, page, line):
  monkeypatch.chdir(room)
  for part, library in EXTRAS.items():
    if part in line:
      pytest.importorskip(library, exc_type=ImportError)
  _run_those_before(page, line)
  words = _words(line.partition(" > ")[0])
  made = _made(words)  # By a command before this one, perhaps.
  if words[0] == "train" and os.path.exists(made):
    shutil.move(made, tmp_path / "before")
    try:
      said = _run(line)
    finally:
      shutil.rmtree(made, ignore_errors=True)
      shutil.move(tmp_path / "before", made)
  else:
    if os.path.isdir(made):
      shutil.rmtree(made)
    elif os.path.isfile(made):
      os.unlink(made)
    said = _run(line)
  if "--json" in words:
    assert json.loads(said)
  assert said.strip()


def test_python_runs(room, monkeypatch, capsys):
  monkeypatch.chdir(room)
  # Of the loss, and of a model that takes a minute to draw.
  left_out = ["def softmax", "create_model"]
  if importlib.util.find_spec("faiss") is None:  # Of the extra `search`.
    left_out.append(".faiss")
  for page in (ROOT / "README.md", ROOT / "docs" / "use.md"):
    known = {}
    for code in _blocks(page, "python"):
      if not any(part in code for part in left_out):
        exec(code, known)
  assert "(1, " in capsys.readouterr().out
