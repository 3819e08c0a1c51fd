"""Every JSON file that is read: whatever it holds, never a traceback.

CLIP_JAX_JSON_BOMBS is the number of bombs for each kind of file.
"""

import contextlib
import copy
import json
import os
import pathlib
import random
import shutil

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from clip_jax import config as config_lib
from clip_jax import convert, errors, json_lines, json_text, search
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import engine, report
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import bert, timm_vit
from clip_jax.convert.tensor import Tensor
from clip_jax.data import inspection, ledger, prepare, record, sources
from clip_jax.data.sources import array_record, captions
from clip_jax.evals import label_files, prompts
from clip_jax.train import metric_log

BOMBS = int(os.environ.get("CLIP_JAX_JSON_BOMBS", 4))

WHOLE = (
  b"",
  b" \n",
  b"\0" * 100,
  b"\xff\xfe{}",
  b"\xef\xbb\xbf{}",
  '{"caption": "x"}'.encode("utf-16"),
  b'{"caption": "caf\xe9"}',
  b"{",
  b"{}",
  b"{}{}",
  b"{'a': 1}",
  b"null",
  b"true",
  b"-0",
  b'"x"',
  b"[]",
  b"[null]",
  b"[[], {}]",
  b"NaN",
  b"[" * 100_000,
  b'{"a":' * 100_000,
  b"[" * 900 + b"]" * 900,
  b'{"a":' * 101 + b"1" + b"}" * 101,
  b"7" * 5000,
  b"[" + b"1," * 50_000 + b"1]",
)
# JSON texts that go where a valid value was.
LEAVES = (
  *("null", "true", "-1", "0", "1", "1.5", '"x"', '""', "[]", "[1]", "{}"),
  *('{"a": []}', "[[], {}]", "NaN", "-Infinity", "1e999", "1e308", "1e-320"),
  *('"\\ud800"', '"a\\u0000b"', '"../../etc/passwd"', '"\\u001b[31m"'),
  *("9" * 19, "9" * 40, "-" + "9" * 400, "9" * 5000),
  "[" * 90 + "]" * 90,
  '{"a":' * 90 + "1" + "}" * 90,
  '"' + "y" * 100_000 + '"',
)
_MARK = "the place of the bomb"


def _places(value, path=()):
  items = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, inner in items:
    yield (*path, key)
    yield from _places(inner, (*path, key))


def bombs(valid, count, seed):
  """Yields `count` texts: of `WHOLE`, and `valid` with a leaf exchanged."""
  rng = random.Random(seed)
  tree = json.loads(valid)
  places = list(_places(tree))
  for _ in range(count):
    kind = rng.random()
    if kind < 0.3 or not places:
      yield rng.choice(WHOLE)
    elif kind < 0.4:
      yield valid[: rng.randrange(len(valid))]
    else:
      changed = copy.deepcopy(tree)
      inner = changed
      *parents, last = rng.choice(places)
      for key in parents:
        inner = inner[key]
      if kind < 0.5:
        del inner[last]
        yield json.dumps(changed).encode()
        continue
      inner[last] = _MARK
      text = json.dumps(changed).replace(f'"{_MARK}"', rng.choice(LEAVES))
      yield text.encode()


class Victim:
  """A file that holds JSON, and what reads it."""

  def __init__(self, path, read, *, wrap=lambda text: text, valid=None):
    self.path = path
    self.read = read
    self.wrap = wrap
    self.valid = path.read_bytes() if valid is None else valid


def _workdir(root):
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 3
  config.evals.seen = {"data": "builtin:digits/test"}
  path = root / workdir_lib.CONFIG
  path.write_text(config_lib.to_json(config))
  return Victim(path, lambda: workdir_lib.load_config(root))


def _lines(root, line, read):
  path = root / "lines.jsonl"
  return Victim(
    path,
    lambda: read(path),
    wrap=lambda text: line + b"\n" + text + b"\n" + line + b"\n",
    valid=line,
  )


def _metrics(root):
  line = b'{"step": 1, "loss": 0.5, "eval/seen/top1": 0.25}'
  return _lines(
    root, line, lambda path: metric_log.truncate_lines(path, 1, but="eval/")
  )


def _ledger(root):
  line = (
    b'{"step": 1, "index": 3, "key": "a", "reason": "empty", "substitute": 2}'
  )

  def read(path):
    book = ledger.Ledger(path, records=9, max_bad_fraction=1)
    book.truncate_after(5)
    book.check(book.bad, 9)
    assert path.read_bytes().count(line) >= 2

  return _lines(root, line, read)


def _index(root):
  embeds = np.eye(3, dtype=np.float32)
  batch = {
    "image": embeds,
    "key": list("abc"),
    "texts": [("x",)] * 3,
    "path": [""] * 3,
    "record": np.arange(3),
  }
  search.build(
    root / "index",
    batches=lambda start: (batch for _ in range(1)),
    embed_images=lambda images: images,
    model="",
    fingerprint="f",
    dtype="float32",
    facts={"step": 1},
  )
  return Victim(
    root / "index" / "meta.json",
    lambda: search.Index(root / "index").search(embeds[0], k=2),
  )


def _prepared(root):
  for name in ("ant", "bee"):
    (root / "classes" / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "classes" / name / "0.png")
  source = sources.open_source(f"folder:{root / 'classes'}")
  prepare.prepare(source, root / "copy")

  def read():
    prepare.prepare(source, root / "copy")
    inspection.inspect(sources.open_source(f"arrayrecord:{root / 'copy'}"))

  return Victim(root / "copy" / array_record.SIDECAR, read)


def _record(root):
  path = root / "record"
  valid = b'{"key": "a", "label": 1, "texts": ["x", "y"]}'

  def read():
    text = path.read_bytes()
    data = b"CLIPJAX1" + len(text).to_bytes(4, "little") + text
    try:
      array_record.decode(data)
    except ValueError:  # Which the source makes a bad record of.
      return

  return Victim(path, read, valid=valid)


def _caption(root):
  path = root / "caption.json"
  return Victim(
    path,
    lambda: captions.from_json(path.read_bytes(), key="k"),
    valid=b'{"caption": ["a", "b"], "captions": "c", "width": 3, "x": {}}',
  )


def _open_all(address):
  source = sources.open_source(address)
  for slot in range(len(source)):
    with contextlib.suppress(record.BadRecord):
      source[slot]


def _coco(root):
  path = root / "captions_x.json"
  valid = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b"}],
    "annotations": [{"image_id": 1, "caption": "x", "id": 3}] * 2,
  }
  return Victim(
    path, lambda: _open_all(f"coco:{path}"), valid=json.dumps(valid).encode()
  )


def _karpathy(root):
  path = root / "dataset_coco.json"
  image = {"filename": "a", "filepath": "b", "sentences": [{"raw": "x"}] * 2}
  valid = {"images": [image | {"split": "test"}, image | {"split": "train"}]}
  return Victim(
    path,
    lambda: _open_all(f"coco:{path}/test"),
    valid=json.dumps(valid).encode(),
  )


def _features(root):
  path, out = root / "features.json", root / "a.parquet"
  label = {"_type": "ClassLabel", "names": ["ant", "bee"]}
  valid = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}

  def read():
    table = pyarrow.table({"image": [b"x", b"y"], "label": [0, 1]})
    metadata = {b"huggingface": path.read_bytes()}
    parquet.write_table(table.replace_schema_metadata(metadata), out)
    _open_all(f"parquet:{out}")

  return Victim(path, read, valid=json.dumps(valid).encode())


def _labels(root):
  path = root / "labels.json"
  return Victim(
    path,
    lambda: prompts.resolve(label_files.read_labels(str(path))),
    valid=b'["cat", ["dog", "hound"], "bird"]',
  )


def _templates(root):
  path = root / "templates.json"
  return Victim(
    path,
    lambda: prompts.resolve(["cat"], label_files.read_templates(str(path))),
    valid=b'["a {}.", "the {}."]',
  )


def _weights(directory, entries, shapes):
  safetensors_file.write(
    directory / "model.safetensors",
    {
      entry.name: Tensor.from_array(
        np.ones(engine.their_shape(entry, shapes), np.float32)
      )
      for entry in entries
    },
  )


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
BERT_FILES = {
  "config.json": {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
  },
  "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 10**30},
  "modules.json": [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
  ],
  "1_Pooling/config.json": {"pooling_mode_cls_token": True},
  "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
}


def _bert(root):
  (root / "1_Pooling").mkdir()
  for name, data in BERT_FILES.items():
    (root / name).write_text(json.dumps(data))
  (root / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  text = bert.describe(BERT_FILES["config.json"], report.Report("bert"), "")
  text |= {"pooling": "mean", "context_length": 9}
  spec = engine.resolve({"text": text, "tokenizer": {"kind": "clip_bpe"}})
  _weights(root, bert.FAMILY.entries({"text": text}), engine.leaf_shapes(spec))
  return root


def _open(directory):
  options = convert.Options(headers_only=True, pooling="mean")
  return convert.open_model(directory, options=options)


def _bert_file(name):
  def victim(root):
    return Victim(_bert(root) / name, lambda: _open(root))

  return victim


def _shard_index(root):
  directory = _bert(root)
  weights = directory / "model.safetensors"
  names = safetensors_file.read(weights).tensors
  weights.rename(directory / "model-1.safetensors")
  path = directory / "model.safetensors.index.json"
  index = {
    "metadata": {},
    "weight_map": dict.fromkeys(names, "model-1.safetensors"),
  }
  path.write_text(json.dumps(index))
  return Victim(path, lambda: safetensors_file.read_sharded(path))


def _header(root):
  directory = _bert(root)
  path = directory / "model.safetensors"
  data = path.read_bytes()
  size = int.from_bytes(data[:8], "little")
  return Victim(
    path,
    lambda: _open(directory),
    wrap=lambda text: len(text).to_bytes(8, "little") + text + data[8 + size :],
    valid=data[8 : 8 + size].rstrip(),
  )


TIMM = {
  "architecture": "vit_tiny_patch16_224",
  "model_args": {
    "img_size": 4,
    "embed_dim": 6,
    "depth": 1,
    "num_heads": 2,
    "patch_size": 2,
  },
  "pretrained_cfg": {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "input_size": [3, 4, 4],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
  },
}


def _timm(root):
  tower = timm_vit.describe(TIMM["architecture"])
  tower |= {"width": 6, "depth": 1, "heads": 2, "mlp_dim": 24}
  tower |= {"image_size": 4, "patch_size": 2}
  spec = engine.resolve({"image": tower})
  _weights(
    root, timm_vit.NAMES.entries({"image": tower}), engine.leaf_shapes(spec)
  )
  (root / "config.json").write_text(json.dumps(TIMM))
  return Victim(root / "config.json", lambda: _open(root))


def _model_dir(root):
  (root / "timm").mkdir()
  _timm(root / "timm")
  convert.convert(root / "timm", root / "model", to="clip-jax")
  (path,) = (root / "model").glob("*.json")
  return Victim(path, lambda: _open(root / "model"))


def _override(root):
  path = root / "override"

  def read():
    config = config_lib.default_config()
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    change = f"model_overrides.image.depth={text}"
    config_lib.apply_override(config, change)

  return Victim(path, read, valid=b'{"a": [1, 2]}')


VICTIMS = {
  "workdir's config.json": _workdir,
  "metrics.jsonl": _metrics,
  "ledger.jsonl": _ledger,
  "index's meta.json": _index,
  "dataset.json": _prepared,
  "record": _record,
  "caption": _caption,
  "COCO's captions": _coco,
  "Karpathy's captions": _karpathy,
  "features of a Parquet table": _features,
  "labels": _labels,
  "templates": _templates,
  **{f"BERT's {name}": _bert_file(name) for name in BERT_FILES},
  "index of shards": _shard_index,
  "safetensors header": _header,
  "timm's config.json": _timm,
  "model.json": _model_dir,
  "override": _override,
}


@pytest.mark.parametrize("name", VICTIMS)
def test_a_bomb_is_a_clear_error_or_harmless(name, tmp_path):
  victim = VICTIMS[name](tmp_path)
  victim.path.write_bytes(victim.wrap(victim.valid))
  victim.read()
  for number, text in enumerate(bombs(victim.valid, BOMBS, seed=name)):
    victim.path.write_bytes(victim.wrap(text))
    try:
      victim.read()
    except (errors.UserError, record.BadRecord) as error:
      assert len(str(error)) < 2000
    except OSError as error:
      assert error.filename
    except Exception as error:
      pytest.fail(f"bomb {number}, {text[:200]!r}: {error!r}")


def test_what_is_lenient_is_read():
  parse = json_text.parse
  assert parse(b'\xef\xbb\xbf{"a": NaN}')["a"] != 0
  assert parse('{"a": ' + "7" * 5000 + "}")["a"] == float("inf")
  assert parse("[18446744073709551615]", kind=list) == [2**64 - 1]
  assert parse("[" * 100 + "]" * 100, kind=list)
  for text, words in {
    "[" * 101 + "]" * 101: "more than 100 levels",
    "[]": r"JSON object, got \[\]",
    b"\xff": "no UTF-8",
    "{": "no valid JSON",
  }.items():
    with pytest.raises(json_text.JsonError, match=f"It .*{words}") as raised:
      parse(text, what="It")
    assert str(raised.value).endswith((json_text.AGAIN, "; save it as UTF-8."))
  with pytest.raises(json_text.JsonError, match="'a' occurs twice"):
    parse('{"a": 1, "a": 2}', strict=True)


def test_damaged_lines_are_set_aside_and_told(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  bad = [b"\xff\xfe", b'{"step": "1"}', b"\0" * 9, b"[" * 3000, b'{"step": 2']
  good = [b'{"step": %d}' % step for step in range(1, 7)]
  lines = [line for pair in zip(good[:5], bad, strict=True) for line in pair]
  path.write_bytes(b"\n".join(lines))
  metric_log.truncate_lines(path, 4)
  assert path.read_bytes() == b"\n".join([*good[:4], b""])
  aside = pathlib.Path(f"{path}.damaged")
  assert aside.read_bytes() == b"\n".join([*bad, b""])
  assert "5 damaged lines are set aside" in caplog.text
  shutil.copy(path, aside)
  caplog.clear()
  metric_log.truncate_lines(path, 4)
  assert not caplog.text


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_line_that_is_too_long_is_one_line_and_nothing_of_it_counts(
  tmp_path, caplog, monkeypatch, ending
):
  monkeypatch.setattr(json_lines, "_MAX_LINE_BYTES", 64)
  path = tmp_path / "metrics.jsonl"
  good = b'{"step": 1}\n'
  for size in (53, 60, 64, 117, 128):  # The limit lies at its end, or in it.
    long = b"x" * size + good.strip()
    path.write_bytes(good + long + ending)
    caplog.clear()
    metric_log.truncate_lines(path, 4)
    assert path.read_bytes() == good
    aside = pathlib.Path(f"{path}.damaged")
    assert aside.read_bytes().removesuffix(b"\n") == long
    assert "1 damaged line is set aside" in caplog.text
    aside.unlink()
