"""Every objective gives one result on any devices, and runs from end to end."""

import dataclasses
import functools
import json
import pathlib
import shutil

import beginnings
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import model_kinds
from clip_jax import cli, convert, errors, loading, sharding
from clip_jax import config as config_lib
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.doctor import examination, finding
from clip_jax.models import captioner, variants
from clip_jax.plan import jobs, planner, presentation, topology
from clip_jax.train import loop, step_flops
from clip_jax.train import origins as origins_lib
from clip_jax.train import program as program_lib
from clip_jax.train import step as step_lib

BATCH, LENGTH, WORDS, END = 16, 7, 300, 299
HERE = pathlib.Path(__file__).parents[1]
CONFIG = HERE / "configs" / "tiny_bow.py"
WEIGHT = 1.5


def _config(kind, *, weight=0.0, parts=1):
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {"width": 24, "depth": 2, "heads": 3, "patch_dropout": 0.5},
    # Large enough arrays that `fsdp` splits tables and layers.
    "text": {
      "width": 64,
      "depth": 2,
      "heads": 2,
      "vocab_size": WORDS,
      "context_length": LENGTH,
    },
  }
  config.precision = "float64"
  config.batch_size = BATCH
  config.micro_batches = parts
  config.objective.kind = kind
  config.objective.captioning_weight = weight
  return config


def _model(config):
  """Returns the model, whose texts end in END instead of clip_bpe's id."""
  model = run_model.make(config)
  if model.head is None:
    return model
  return model.clone(head=model.head.clone(end_id=END))


def _batch():
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, END, (BATCH, LENGTH), dtype=np.int32)
  ends = rng.integers(1, LENGTH, BATCH)
  tokens[np.arange(LENGTH) > ends[:, None]] = 0
  tokens[np.arange(BATCH), ends] = END
  return {
    "image": rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8),
    "tokens": tokens,
    "bad": np.zeros(BATCH, np.int32),
  }


@functools.cache
def _initial(model, tx):
  return jax.tree.map(
    np.asarray,
    state_lib.init_state(
      model, tx, sharding.make_mesh(devices=jax.devices()[:1]), seed=3
    ),
  )


TX = optax.sgd(1.0)  # Plain descent: what changes is the gradient.


@functools.cache
def _updated(mesh_shape, kind, weight, parts):
  """Returns what was measured, and the change of every parameter."""
  config = _config(kind, weight=weight, parts=parts)
  devices = jax.devices()[: mesh_shape[0] * mesh_shape[1]]
  mesh = sharding.make_mesh(
    data=mesh_shape[0], fsdp=mesh_shape[1], devices=devices
  )
  model = _model(config)
  initial = _initial(model, TX)
  before = initial.params
  state = jax.tree.map(
    lambda x, like: jax.device_put(x.copy(), like.sharding),
    initial,
    state_lib.abstract_state(model, TX, mesh),
  )
  step = program_lib.Program(config, mesh, {}, model, TX, None).make_step()
  batch = sharding.place(_batch(), sharding.batch_sharding(mesh))
  with pytest.MonkeyPatch.context() as patch:
    if kind == "lm":  # Its logits in parts, of three tokens each.
      in_parts = functools.partial(
        captioner.token_losses, most_logits=3 * WORDS
      )
      patch.setattr(captioner, "token_losses", in_parts)
    state, measured = step(state, batch)
  change = jax.tree.map(
    lambda new, old: np.asarray(new) - old, state.params, before
  )
  return jax.tree.map(np.asarray, measured), change


def _dense_gradient(kind, weight):
  """Returns loss and gradient of the whole batch, written down at once."""
  model, batch = _model(_config(kind, weight=weight)), _batch()
  params = _initial(model, TX).params
  key = jax.random.fold_in(step_lib.seed_key(0), 0)

  def loss(params):
    output = model.apply(
      {"params": params},
      batch["image"],
      batch["tokens"],
      train=True,
      examples=jnp.arange(BATCH),
      rngs={"dropout": key},
    )
    total = 0.0
    if model.contrastive:
      logits = output.logit_scale * output.image_embeds @ output.text_embeds.T
      own = jnp.arange(BATCH)
      for each in (logits, logits.T):
        total -= jax.nn.log_softmax(each)[own, own].mean() / 2
    if model.head is not None:
      each = jnp.stack([output.head_losses[i] for i in range(BATCH)])
      total += (weight or 1.0) * each.sum() / BATCH
    return total

  return jax.jit(jax.value_and_grad(loss))(params)


MESHES = [
  pytest.param(
    "bow", 0.0, (2, 2), 2, id="bow-fsdp-micro", marks=pytest.mark.slow
  ),
  pytest.param(
    *("contrastive", WEIGHT, (4, 2), 2),
    id="captioning-fsdp-micro",
    marks=pytest.mark.slow,
  ),
  pytest.param("lm", 0.0, (2, 4), 1, id="lm-8", marks=pytest.mark.slow),
  pytest.param("bow", 0.0, (8, 1), 1, id="bow-8", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "weight", "mesh_shape", "parts"), MESHES)
def test_an_update_is_that_of_the_whole_batch_on_any_devices(
  kind, weight, mesh_shape, parts
):
  with jax.enable_x64(True):
    loss, gradient = _dense_gradient(kind, weight)
    measured, change = _updated(mesh_shape, kind, weight, parts)
  np.testing.assert_allclose(measured.loss, loss, rtol=1e-12)
  floor = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(
      -got, want, atol=1e-11 * floor
    ),
    change,
    gradient,
  )
  assert ("text" in change) == (kind == "contrastive")
  assert ("log_scale" in change) == (measured.logit_scale is not None)
  if weight:
    terms = measured.terms
    total = terms["contrastive_loss"] + weight * terms["captioning_loss"]
    np.testing.assert_allclose(measured.loss, total, rtol=1e-12)


def test_a_bag_of_words_takes_the_place_of_the_text_tower():
  config = _config("bow_contrastive")
  config.precision = "float32"
  shapes = variants.abstract_variables(run_model.make(config))["params"]
  assert jax.tree.map(lambda x: x.shape, shapes["text"]) == {
    "token_embedding": {"embedding": (WORDS, 64)}
  }
  assert run_model.spec(
    config.model, config.model_overrides, objective="bow_contrastive"
  )["text"] == {
    "kind": "cbow",
    "context_length": LENGTH,
    "vocab_size": WORDS,
    "width": 64,
  }


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (["objective.kind=bag"], "one of contrastive, bow_contrastive, bow, lm"),
    (["objective.kind=lm", "loss.duplicates=mask"], "compares no pairs"),
    (["objective.kind=bow", "loss.kind=sigmoid"], "compares no pairs"),
    (["objective.kind=bow", "objective.captioning_weight=1"], "compares no"),
    (["objective.kind=lm"], "objective.depth=2"),
    (["objective.captioning_weight=-1"], "at least 0"),
    (["objective.depth=3"], "depth=3 has no effect"),
    (["objective.kind=bow", "objective.depth=3"], "depth=3 has no effect"),
    (["objective.kind=bow", "data.text_layout=packed"], "is not exact"),
    (["objective.kind=bow", "report=builtin:digits/test"], "report="),
    (
      [
        "objective.kind=bow",
        "evals.r.data=builtin:digits/test",
        "evals.r.task=retrieval",
      ],
      "evals.r: retrieval compares embeddings",
    ),
  ],
)
def test_what_does_not_go_together_is_told_at_the_start(
  tmp_path, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    loop.train(config_lib.load(CONFIG, changes), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    ["objective.kind=bow", "evals.t.data=builtin:digits/test"],
    ["objective.captioning_weight=2", "objective.depth=1"],
  ],
  ids=["bow", "captioning"],
)
def test_a_head_is_resumed_bit_for_bit(tmp_path, changes):
  config = config_lib.load(CONFIG, changes)
  whole, again = tmp_path / "whole", tmp_path / "again"
  summary = loop.train(config, whole)
  shutil.copytree(whole, again)
  for step in (2, 3):
    shutil.rmtree(again / "checkpoints" / str(step))
  resumed = loop.train(config, again)
  assert (resumed.steps_now, resumed.evals) == (2, summary.evals)
  one, two = (
    workdir_lib.load_model(path).variables["params"] for path in (whole, again)
  )
  assert "head" in one
  jax.tree.map(np.testing.assert_array_equal, one, two)
  lines = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
  first = next(lines)
  if "objective.kind=bow" in changes:
    assert "logit_scale" not in first
  else:
    total = first["contrastive_loss"] + 2 * first["captioning_loss"]
    np.testing.assert_allclose(first["loss"], total, rtol=1e-6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Workdirs of models that predict, by objective; nothing was trained."""
  directory = tmp_path_factory.mktemp("saved")
  return {
    kind: model_kinds.workdir(directory / kind, kind=kind)
    for kind in ("bow", "lm")
  }


@pytest.mark.parametrize("kind", ["bow", "lm"])
def test_a_prediction_is_measured_by_its_scores(
  saved, kind, capsys, fails, tmp_path
):
  data, out = "builtin:digits/test", tmp_path / "out"
  command = ["eval", saved[kind], "--data", data, "--json", "--task"]
  flags = ["--labels", "one,two,three", "--template", "{}"]
  assert "3 labels are given" in fails(*command, "zero_shot", *flags)
  if kind == "bow":  # The other takes a second and more.
    cli.main([*map(str, command), "zero_shot"])
    plain = json.loads(capsys.readouterr().out)
    cli.main([*map(str, command), "zero_shot", "--subtract-prior"])
    assert json.loads(capsys.readouterr().out)["top1"] != plain["top1"]
  said = fails(*command, "retrieval")
  assert "no embedding space" in said
  assert "--task linear_probe or knn its image features" in said
  if kind == "bow":
    train = ("--train-data", "builtin:digits/train")
    cli.main([*map(str, command), "knn", *train])
    assert json.loads(capsys.readouterr().out)["task"] == "knn"
  embed = ("embed", saved[kind], "--data", data, "--out", out)
  assert "no embedding space" in fails(*embed)
  hf = ("convert", saved[kind], out, "--to", "huggingface")
  assert f"objective.kind='{kind}'" in fails(*hf)
  assert not out.exists()


@pytest.mark.parametrize("kind", ["bow", "lm"])
def test_scores_are_the_heads_own(saved, kind):
  clip = loading.load(saved[kind])
  assert set(clip.variables["params"]) == {"image", "head"}
  images = np.random.default_rng(0).integers(
    0, 256, (3, *(clip.preprocess.image_size,) * 2, 3), np.uint8
  )
  texts = ["two words", "one", "two two words more"]
  scores = clip.score_texts(texts)
  got = np.zeros((3, len(texts)))  # (images, texts)
  found = np.asarray(scores.of_images(images), np.float64)
  for unit, text, weight in zip(*scores.weights, strict=True):
    got[:, text] += weight * found[:, unit]
  tokens = clip.tokenize(texts)
  features = clip.image_features(images)
  for number in range(len(texts)):
    same = np.repeat(tokens[number : number + 1], 3, axis=0)
    head = {"params": clip.variables["params"]["head"]}
    want = -clip.module.head.apply(head, features, same)
    if kind == "lm":  # The loss is a mean over its tokens.
      want *= tokens[number].argmax()
    # Sums of float32, in another order.
    np.testing.assert_allclose(got[:, number], want, rtol=1e-5)
  for ask in (clip.encode_image, clip.encode_text, lambda _: clip.logit_scale):
    with pytest.raises(errors.UserError, match="no embedding space"):
      ask([])
  with pytest.raises(errors.UserError, match="no embedding space"):
    clip.classify(images, ["a", "b"])


def test_a_captioner_beside_the_towers_stays_behind(tmp_path):
  workdir = model_kinds.workdir(tmp_path / "run", captioning_weight=2.0)
  clip = loading.load(workdir)
  assert clip.module.head is None
  assert "head" not in clip.variables["params"]
  made = convert.convert(workdir, tmp_path / "new", to="clip-jax")
  assert "captioner" in made.left_out[0]
  again = loading.load(tmp_path / "new").variables
  jax.tree.map(
    np.testing.assert_array_equal, clip.variables["params"], again["params"]
  )


def test_a_model_without_a_text_tower_is_no_beginning(saved):
  init = config_lib.Init(model=str(saved["bow"]))
  with pytest.raises(errors.UserError, match=r"objective\.kind='bow'"):
    origins_lib.open_sources(init, model="from_init")


def test_a_prediction_takes_the_image_tower_of_a_clip(tmp_path):
  config = config_lib.load(CONFIG, ["objective.kind=bow"])
  spec = run_model.spec(config.model, config.model_overrides, objective="bow")
  shapes = variants.abstract_variables(variants.create_model(spec))
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes
  )
  loading.assemble(variants.create_model(spec), drawn, spec=spec).save(
    tmp_path / "clip"
  )
  init = config_lib.Init(model=str(tmp_path / "clip"))
  config, origins = beginnings.begin(
    dataclasses.replace(config, init=init), tmp_path / "run"
  )
  program = program_lib.make_program(config, devices=jax.devices()[:1])
  state = origins_lib.load(
    program.init_state(),
    origins,
    init=init,
    max_logit_scale=None,
    frozen="",
  )
  assert set(state.params) == {"image", "head"}
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params["image"],
    drawn["params"]["image"],
  )


def _flops(kind, weight=0.0):
  config = config_lib.check(_trainable(_config(kind, weight=weight)))
  program = program_lib.make_program(config, devices=jax.devices()[:1])
  tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
  image = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.uint8)
  return step_flops.update_flops(program.model, image, tokens)


def _trainable(config):
  config.precision = "float32"
  config.data.train = "builtin:digits/train"
  config.steps = 5
  return config


def test_the_operations_of_a_head_are_counted():
  # Of a linear layer: forward, and the gradients of both its inputs.
  image_alone = _flops("bow") - 3 * 2 * BATCH * 24 * WORDS
  image_alone -= 2 * 2 * BATCH * LENGTH  # The mean over a caption's words.
  rows, length = BATCH, captioner.PREFIX + LENGTH - 1
  predicting = _flops("lm") - image_alone
  logits = 3 * 2 * rows * LENGTH * 64 * WORDS
  layers = 3 * 2 * rows * length * 2 * 12 * 64 * 64
  prefix = 3 * 2 * rows * 24 * 4 * 64
  # The rest are the products of queries, keys and values.
  assert 0 < predicting - logits - layers - prefix < 0.2 * predicting
  assert _flops("contrastive", 1.0) == _flops("contrastive") + predicting


@pytest.mark.slow
def test_the_planner_and_the_doctor_know_objectives():
  changes = ["objective.kind=bow", "optim.peak_lr=1e-2"]
  config = config_lib.load(CONFIG, changes)
  plan = planner.make_plan(
    jobs.make_job(config, topology.make_topology("local"))
  )
  assert plan.fits and plan.flops_analytic > 0
  assert plan.memory["loss_alone"] is None
  assert "compares no pairs" in plan.reasons["memory.loss_alone"]
  assert "Objective: bow" in presentation.to_text(plan)
  found = examination.of_config(config, steps=4)
  (last,) = [x for x in found if x.check == "overfit one batch"]
  assert last.verdict == finding.OK
  assert "objective.kind='bow'" in last.message
