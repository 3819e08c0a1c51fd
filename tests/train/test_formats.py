"""The same pairs in every format train to the same bits, damage included."""

import collections
import importlib.util
import io
import json
import struct
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tensorflow_datasets.proto import tf_example_generated_pb2

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import order, prepare, sources
from clip_jax.data.sources import tfrecord
from clip_jax.train import loop
from clip_jax.train import program as program_lib

RECORDS, BATCH, STEPS, SEED = 250, 32, 8, 3
FORMATS = ("folder", "csv", "wds", "arrayrecord", "parquet", "coco", "hf")
if importlib.util.find_spec("google_crc32c"):
  FORMATS += ("tfrecord",)
SHARD_RECORDS = 130

# One percent of the images is damaged, in three ways, and one sample of a tar
# has a damaged header, so that its image is lost.
TEXT, CUT, EMPTY, LOST = 17, 101, 180, 200
REASONS = {TEXT: "not_an_image", CUT: "truncated", EMPTY: "empty_image"}
LOST_REASONS = {
  "folder": "missing_image",  # No file beside the text.
  "csv": "missing_file",  # The table names it.
  "wds": "damaged_header",
  "arrayrecord": "damaged_header",  # As in the tar it was made from.
  "parquet": "missing_file",  # The row has a path only.
  "coco": "missing_file",
  "hf": "missing_file",
  "tfrecord": "missing_image",
}
ROW_GROUP = 40


def _pairs():
  """Returns (key, image or None, text) of every record, as it is damaged."""
  source = sources.open_source("builtin:two_digits/test")
  pairs = []
  for slot in range(RECORDS):
    image = {
      TEXT: b"<html>not found</html>",
      CUT: source[slot].image[: len(source[slot].image) // 2],
      EMPTY: b"",
    }.get(slot, source[slot].image)
    pairs.append((f"{slot:04d}", image, source[slot].texts[0]))
  return pairs


def _write_folder(root, pairs):
  root.mkdir()
  for slot, (key, image, text) in enumerate(pairs):
    if slot != LOST:
      (root / f"{key}.png").write_bytes(image)
    (root / f"{key}.txt").write_text(text)


def _write_table(root, pairs):
  rows = [f'images/{key}.png\t"{text}"\n' for key, _, text in pairs]
  (root / "pairs.tsv").write_text("filepath\ttitle\n" + "".join(rows))
  (root / "images").mkdir()
  for slot, (key, image, _) in enumerate(pairs):
    if slot != LOST:
      (root / "images" / f"{key}.png").write_bytes(image)


def _write_tars(root, pairs):
  root.mkdir()
  for number, start in enumerate(range(0, RECORDS, SHARD_RECORDS)):
    with tarfile.open(root / f"{number:04d}.tar", "w") as tar:
      for key, image, text in pairs[start : start + SHARD_RECORDS]:
        for name, data in (
          (f"{key}.png", image),
          (f"{key}.txt", text.encode()),
        ):
          member = tarfile.TarInfo(name)
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
  path = root / f"{LOST // SHARD_RECORDS:04d}.tar"
  content = bytearray(path.read_bytes())
  content[content.index(b"%04d.png" % LOST)] ^= 1  # Its checksum fails.
  path.write_bytes(content)


def _write_parquet(root, pairs):
  root.mkdir()
  for start in range(0, RECORDS, SHARD_RECORDS):
    part = pairs[start : start + SHARD_RECORDS]
    images = [
      {"bytes": None if start + i == LOST else image, "path": f"{key}.png"}
      for i, (key, image, _) in enumerate(part)
    ]
    table = pa.table({"image": images, "text": [text for _, _, text in part]})
    name = f"{start // SHARD_RECORDS:05d}-of-00002"
    path = root / f"train-{name}.parquet"
    parquet.write_table(table, path, row_group_size=ROW_GROUP)
    # As `datasets` saves it.
    with pa.ipc.new_stream(root / f"data-{name}.arrow", table.schema) as file:
      file.write_table(table, max_chunksize=ROW_GROUP)


def _write_tfrecord(path, pairs):
  with open(path, "wb") as file:
    for slot, (_, image, text) in enumerate(pairs):
      example = tf_example_generated_pb2.Example()
      feature = example.features.feature
      feature["txt"].bytes_list.value.append(text.encode())
      if slot != LOST:
        feature["png"].bytes_list.value.append(image)
      data = example.SerializeToString()
      for part in (struct.pack("<Q", len(data)), data):
        file.write(part + struct.pack("<I", tfrecord.masked_crc(part)))


def _write_coco(root, pairs):
  """Writes annotations for the images that lie beside the table."""
  content = {
    "images": [
      {"id": slot, "file_name": f"{key}.png"}
      for slot, (key, _, _) in enumerate(pairs)
    ],
    "annotations": [
      {"image_id": slot, "caption": text}
      for slot, (_, _, text) in reversed(list(enumerate(pairs)))
    ],
  }
  (root / "captions_train.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
  """The address of the same pairs in each format."""
  root = tmp_path_factory.mktemp("formats")
  pairs = _pairs()
  _write_folder(root / "folder", pairs)
  _write_table(root, pairs)
  _write_tars(root / "tars", pairs)
  _write_parquet(root / "parquet", pairs)
  if "tfrecord" in FORMATS:
    _write_tfrecord(root / "pairs.tfrecord", pairs)
  _write_coco(root, pairs)  # Beside images/, as the table of text.
  tars = f"wds:{root}/tars/{{0000..0001}}.tar"
  prepare.prepare(sources.open_source(tars), root / "prepared", address=tars)
  found = {
    "folder": f"folder:{root}/folder",
    "csv": f"csv:{root}/pairs.tsv",
    "wds": tars,
    "arrayrecord": f"arrayrecord:{root}/prepared",
    "parquet": f"parquet:{root}/parquet/train",
    "coco": f"coco:{root}/captions_train.json",
    "hf": f"hf:{root}/parquet",
    "tfrecord": f"tfrecord:{root}/pairs.tfrecord",
  }
  return {name: found[name] for name in FORMATS}


def _config(address, max_bad_fraction):
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {
      "kind": "vit",
      "image_size": 24,
      "patch_size": 8,
      "width": 8,
      "depth": 1,
      "heads": 2,
    },
    "text": {"width": 8},
  }
  config.data.train = address
  config.data.max_bad_fraction = max_bad_fraction
  config.data.resize_ratio = 1.25
  config.batch_size = BATCH
  config.steps = STEPS
  config.seed = SEED
  config.precision = "float32"
  config.optim.warmup_steps = 2
  config.optim.peak_lr = 2e-3
  config.log_every_steps = 1
  return config_lib.check(config)


@pytest.fixture(scope="module")
def one_step():
  """Lets all runs, which differ in their data alone, trace one step."""
  make_step, made = program_lib.Program.make_step, []

  def make_once(self):
    if not made:
      made.append(make_step(self))
    return made[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program_lib.Program, "make_step", make_once)
    yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, addresses, one_step):
  """A finished run on each format: its workdir and summary."""
  root = tmp_path_factory.mktemp("runs")
  return {
    name: (root / name, loop.train(_config(address, 0.05), root / name))
    for name, address in addresses.items()
  }


def _lines(workdir, name):
  text = (workdir / name).read_text()
  return [json.loads(line) for line in text.splitlines()]


def _key(slot, name):
  number, row = divmod(slot, SHARD_RECORDS)
  if name == "parquet":
    return f"train-{number:05d}-of-00002.parquet[{row}]"
  if name == "hf":
    return f"data-{number:05d}-of-00002.arrow[{row}]"
  forms = {
    **{"csv": "images/{:04d}.png", "coco": "{:04d}.png"},
    "tfrecord": "pairs.tfrecord[{}]",
  }
  return forms.get(name, "{:04d}").format(slot)


def _expected_ledger(name, steps):
  """Every bad record, in the order that the seed gives, and its substitute."""
  reasons = REASONS | {LOST: LOST_REASONS[name]}
  lines = []
  for g in range(steps * BATCH):
    met = []
    slot = order.record_index(g, seed=SEED, records=RECORDS)
    while slot in reasons:
      met.append(slot)
      slot = order.record_index(g, seed=SEED, records=RECORDS, attempt=len(met))
    lines += [
      {
        "step": g // BATCH + 1,
        "index": g,
        "key": _key(bad, name),
        "reason": reasons[bad],
        "substitute": slot,
      }
      for bad in met
    ]
  return lines


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_back_what_was_put_in(addresses, name):
  source = sources.open_source(addresses[name])
  assert len(source) == RECORDS
  damaged = REASONS | {LOST: LOST_REASONS[name]}
  for slot, (_, image, text) in enumerate(_pairs()):
    # A copy is of images only, as far as their headers tell.
    bad = (EMPTY, LOST, TEXT) if name == "arrayrecord" else (EMPTY, LOST)
    if slot in bad:
      with pytest.raises(sources.BadRecord, match=damaged[slot]):
        source[slot]
    else:
      record = source[slot]
      assert (record.image, record.texts) == (image, (text,))
      assert record.key == _key(slot, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS[1:])
def test_every_format_trains_to_the_same_bits(runs, name):
  timed = ("images_per_second", "data_wait", "mfu")
  (workdir, _), (wanted, _) = runs[name], runs[FORMATS[0]]
  got, want = (
    [
      {key: x for key, x in line.items() if key not in timed}
      for line in _lines(path, "metrics.jsonl")
    ]
    for path in (workdir, wanted)
  )
  assert len(want) == STEPS and want[0]["loss"] != want[-1]["loss"]
  assert got == want  # The loss, the gradient's norm, the records' checksum.
  got, want = (
    workdir_lib.load_model(path).variables for path in (workdir, wanted)
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_ledger_has_every_bad_record_with_its_reason(runs, name):
  workdir, summary = runs[name]
  expected = _expected_ledger(name, STEPS)
  assert _lines(workdir, "ledger.jsonl") == expected
  assert summary.bad_records == len(expected)
  different = len({line["key"] for line in expected})
  assert summary.different_bad_records == different
  counts = collections.Counter(line["reason"] for line in expected)
  # More than an epoch was read: each of the four was met at least once.
  assert set(counts) == {*REASONS.values(), LOST_REASONS[name]}


# To the rest of the loop, the ledger above is all that differs.
@pytest.mark.parametrize("name", ["folder", "wds"])
def test_too_many_bad_records_stop_every_format_at_the_same_step(
  addresses, one_step, tmp_path, name
):
  limit = 0.01
  ledger = _expected_ledger(name, STEPS)
  bad = [
    sum(line["step"] <= step for line in ledger) for step in range(STEPS + 1)
  ]
  stop = next(
    step
    for step in range(STEPS + 1)
    if bad[step] > limit * max(step * BATCH, RECORDS)
  )
  assert 1 < stop < STEPS
  with pytest.raises(errors.UserError) as caught:
    loop.train(_config(addresses[name], limit), tmp_path / "run")
  message = str(caught.value)
  assert f"{bad[stop]} bad records among {stop * BATCH} examples" in message
  assert "data.max_bad_fraction=0.01 allows 2.5" in message
  met = ledger[: bad[stop]]
  for reason, count in collections.Counter(x["reason"] for x in met).items():
    assert f"{count} {reason}" in message
  assert f"First keys: {met[0]['key']}, {met[1]['key']}" in message
  assert _lines(tmp_path / "run", "ledger.jsonl") == met
  assert _lines(tmp_path / "run", "metrics.jsonl")[-1]["step"] == stop
