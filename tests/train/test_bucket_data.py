"""A run on data in a bucket is the one on disk, bit for bit, despite faults."""

import io
import json
import tarfile

import jax
import numpy as np
import pytest

import bucket_stand_in
from clip_jax import config as config_lib
from clip_jax.buckets import attempts
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data import sources
from clip_jax.train import journal, loop

RECORDS, SHARD_RECORDS, BROKEN = 24, 8, 5


def _write_tars(root):
  source = sources.open_source("builtin:digits/train")
  root.mkdir()
  for start in range(0, RECORDS, SHARD_RECORDS):
    with tarfile.open(root / f"{start // SHARD_RECORDS}.tar", "w") as tar:
      for slot in range(start, start + SHARD_RECORDS):
        image = b"none" if slot == BROKEN else source[slot].image
        text = f"{source[slot].texts[0]} ({slot})".encode()
        for suffix, data in (("png", image), ("txt", text)):
          member = tarfile.TarInfo(f"{slot:03d}.{suffix}")
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))


def _config(address):
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  image = {"kind": "vit", "image_size": 16, "patch_size": 8}
  image |= {"width": 8, "depth": 1, "heads": 2}
  config.model_overrides = {
    "embed_dim": 12,
    "image": image,
    "text": {"width": 8},
  }
  config.data.train = address
  config.data.max_bad_fraction = 0.3
  config.batch_size, config.steps = 8, 6
  config.precision = "float32"
  config.optim.warmup_steps = 2
  config.log_every_steps = 1
  return config_lib.check(config)


def _result(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  losses = [x["loss"] for x in map(json.loads, lines) if "loss" in x]
  saved = workdir_lib.load_model(workdir)
  leaves = [x.tobytes() for x in jax.tree.leaves(saved.variables)]
  ledger = (workdir / journal.LEDGER).read_text().splitlines()
  return losses, leaves, ledger, saved.step


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """A folder with tars, and a finished run on them."""
  root = tmp_path_factory.mktemp("disk")
  _write_tars(root / "tars")
  loop.train(_config(f"wds:{root}/tars/{{0..2}}.tar"), root / "run")
  return root


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_on_a_bucket_is_that_on_disk(
  scheme, on_disk, tmp_path, monkeypatch
):
  monkeypatch.setattr(attempts, "FIRST_WAIT_SECONDS", 0.001)
  monkeypatch.setattr(attempts, "LONGEST_WAIT_SECONDS", 0.01)
  with bucket_stand_in.serve() as store:
    for name, value in store.environment.items():
      monkeypatch.setenv(name, value)
    store.upload("data-1", on_disk)
    # After a fault of other requests, Google's client waits for a second.
    store.faulty = "alt=media" if scheme == "gs" else ""
    for fault in bucket_stand_in.FAULTS * 4:
      store.faults.extend((fault, ""))
    address = f"wds:{scheme}://data-1/tars/{{0..2}}.tar"
    loop.train(_config(address), tmp_path / "bucket")
  assert store.happened == list(bucket_stand_in.FAULTS * 4)
  disk, bucket = _result(on_disk / "run"), _result(tmp_path / "bucket")
  assert disk == bucket
  assert len(disk[0]) == 6 and np.isfinite(disk[0]).all()
  assert disk[2] and disk[3] == 6
