"""Processes that share an evaluation measure what one of them would."""

import functools
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import (
  embedder,
  errors,
  hosts,
  preprocess,
  sharding,
  shared_batches,
)
from clip_jax.data import pipeline
from clip_jax.data import record as record_lib
from clip_jax.evals import embedding_model, reading, tasks
from clip_jax.models import variants

SIZE, CLASSES, BAD = 16, 5, (3, 17)
SPEC = preprocess.Preprocess(image_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))


class Source:
  """Pictures of noise, two of them bad; notes which slots are read."""

  templates, fingerprint = ("{}",), "noise"
  class_names = tuple(f"class {i}" for i in range(CLASSES))

  def __init__(self, records):
    self.records = records
    self.read = []

  def __len__(self):
    return self.records

  def __getitem__(self, index):
    self.read.append(index)
    if index in BAD:
      raise record_lib.BadRecord("missing_image", f"é {index}")
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    texts = tuple(f"text {index} {k}" for k in range(1 + index % 3))
    return record_lib.Record(
      file.getvalue(), texts, f"ключ {index}", label=index % CLASSES
    )


def make_encoder(devices):
  """An encoder with random numbers on a mesh, and its variables."""
  overrides = {
    "embed_dim": 12,
    "image": {"image_size": SIZE, "patch_size": 8, "width": 24, "depth": 1},
    "text": {"context_length": 9, "width": 20, "depth": 1},
  }
  module = variants.create_model(variants.spec("tiny-vit", overrides))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.2).astype(x.dtype),
    variants.abstract_variables(module),
  )
  mesh = sharding.make_mesh(devices=devices)
  encoder = embedder.Embedder(module, mesh=mesh, batch_sizes=(1, 8))
  return encoder, sharding.place_everywhere(variables, mesh)


def embed_texts(texts):
  rows = [
    np.random.default_rng([*text.encode()]).normal(size=12) for text in texts
  ]
  return np.stack([row / np.linalg.norm(row) for row in rows])


def measured(devices, records, *, shared):
  """The measures of both tasks and the slots that were read."""
  encoder, variables = make_encoder(devices)

  embed_images = functools.partial(encoder.embed_images, variables)
  model = embedding_model.Functions(embed_images, embed_texts, SPEC)
  found, read = {}, []
  for task in tasks.TASKS:
    source = Source(records)
    evaluation = tasks.Evaluation(task, "noise", source, None, None)
    open_batches = pipeline.eval_batches
    if shared:
      open_batches = functools.partial(
        shared_batches.open_batches, encoder=encoder
      )
    found[task] = evaluation.measure(
      model, reading=reading.Reading(8, 2, open_batches=open_batches)
    )
    read.append(sorted(source.read))
  assert read[0] == read[-1]
  return found, read[0]


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("records", [21, 5])
def test_shared_batches_measure_the_same(devices, records):
  want, slots = measured(jax.devices()[:1], records, shared=False)
  got, read = measured(jax.devices()[:devices], records, shared=True)
  assert got == want
  assert read == slots == list(range(records))
  bad = sum(slot < records for slot in BAD)
  assert got["zero_shot"]["examples"] == records - bad
  assert got["zero_shot"]["bad_records"] == {"missing_image": bad}


def test_rows_of_a_batch_are_read_by_themselves():
  source = Source(11)
  with pipeline.eval_batches(
    source, batch_size=4, preprocess=SPEC, rows=[1, 3]
  ) as batches:
    parts = list(batches)
  assert [part["record"].tolist() for part in parts] == [[1], [5, 7], [9]]
  assert [len(part["problems"]) for part in parts] == [1, 0, 0]
  assert sorted(source.read) == [1, 3, 5, 7, 9]


class Failing(Source):
  """A source that cannot be read at one place; all others can."""

  def __getitem__(self, index):
    if index == 13:
      raise errors.UserError("The file has changed.")
    return super().__getitem__(index)


def message_of_failing(devices):
  """What an evaluation of `Failing` says."""
  encoder, _ = make_encoder(devices)
  with (
    pytest.raises(errors.UserError) as caught,
    shared_batches.open_batches(
      Failing(21), encoder=encoder, batch_size=8, preprocess=SPEC
    ) as batches,
  ):
    list(batches)
  return str(caught.value)


def test_an_error_in_reading_is_said(monkeypatch):
  assert message_of_failing(jax.devices()) == "The file has changed."
  other = json.dumps(["Gone.", dict.fromkeys(shared_batches._FACTS, ()), []])

  def exchanged(text):
    return [text, text if text.startswith("[21") else other]

  monkeypatch.setattr(hosts, "exchanged", exchanged)
  assert message_of_failing(jax.devices()) == "On process 1: Gone."


@pytest.mark.parametrize(
  "other, message",
  [
    ([20, "noise"], "20 records on process 1, 21 on process 0"),
    ([21, "sound"], "21 records on process 1, which are others than those of"),
  ],
)
def test_different_data_are_noticed(monkeypatch, other, message):
  said = json.dumps(other)
  monkeypatch.setattr(hosts, "exchanged", lambda text: [text, said])
  assert message in message_of_failing(jax.devices())


_PROCESS = """
import json, sys
address, process, folder, records = sys.argv[1:]
import jax
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
sys.path.insert(0, folder)
import test_shared_batches as tests
found, read = tests.measured(jax.devices(), int(records), shared=True)
message = tests.message_of_failing(jax.devices())
again, _ = tests.measured(jax.devices(), int(records), shared=True)
print(json.dumps([found, read, message, again == found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_two_processes_read_half_each_and_measure_the_same(
  on_two_processes, devices, request
):
  output = on_two_processes(
    _PROCESS, str(request.path.parent), "21", devices=devices
  )
  (first, own, *said), (second, others, *says) = (
    json.loads(text.splitlines()[-1]) for text in output
  )
  # What one of them cannot read ends the evaluation of both, and no other.
  assert said == says
  assert said[0].startswith("On process ") and said[0].endswith("has changed.")
  assert said[1]
  want, slots = measured(jax.devices()[:1], 21, shared=False)
  assert first == second == json.loads(json.dumps(want))
  assert sorted(own + others) == slots  # Nobody reads what another has read.
  assert min(len(own), len(others)) >= 8
