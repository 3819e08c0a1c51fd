"""The schema of a config: every field, its default, unit, check and help."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from clip_jax import names
from clip_jax.config.knobs import (
  Check,
  above_zero,
  address,
  at_least,
  axis_size,
  below_one,
  between,
  countable,
  knob,
  not_empty,
  one_of,
  positive,
)

# The address, of an evaluation's or a report's data, for the part of the
# training data that `data.held_out` keeps from training.
HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class Init:
  """The weights that a run starts from."""

  model: str = knob(
    "", help="a model to start from, in any format; empty: none"
  )
  image: str = knob("", help="a checkpoint whose image tower to start from")
  text: str = knob("", help="a checkpoint whose text tower to start from")
  scheme: str = knob(
    "scaled",
    one_of(names.INIT_SCHEMES),
    "how new parameters are drawn: both towers as OpenAI's code draws "
    "the text tower, or all as in that code",
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """The training data, and how they are read."""

  train: str = knob(
    "",
    address,
    "DATA address of the pairs; of several, a JSON object of addresses and "
    "weights",
  )
  temperature: float = knob(
    0.0,
    between(0, 100),
    "above 0, each weight of data.train is multiplied by the source's records "
    "to the power of one over this; 0 takes the weights alone",
  )
  held_out: float = knob(
    0.0,
    below_one,
    "share of data.train, of each of several, that is not trained on; evals "
    "may have data=held_out",
  )
  template: str = knob(
    "",
    help="caption of a picture with a class, such as 'a photo of a {}.'; "
    "empty: the data's own",
  )
  workers: int = knob(
    0,
    at_least(0),
    "loader processes; 0 loads in threads only",
    unit="processes",
  )
  threads: int = knob(
    4, at_least(1), "loader threads a process", unit="threads"
  )
  max_bad_fraction: float = knob(
    0.01, between(0, 1), "share of bad and lost records that stops the run"
  )
  max_pixels: int | None = knob(
    None,
    at_least(1),
    "pixels of the largest image that is read; left out: 250 million of a "
    "JPEG, 25 of a JPEG 2000, 50 of an AVIF, 8 of a BMP of run lengths, 64 of "
    "any other",
    unit="pixels",
  )
  resize_ratio: float = knob(
    1.0,
    between(1, 4),
    "shortest side before the random crop, over the image size",
  )
  caption: str = knob(
    "random", one_of(names.CAPTION_CHOICES), "which caption of an image"
  )
  text_layout: str = knob(
    "auto",
    one_of(names.TEXT_LAYOUTS),
    "captions packed into shared rows, in short rows, or padded; auto: "
    "the least work that gives the same result",
  )


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random changes of the training images; the paper's recipe has none."""

  scale: float = knob(
    1.0,
    above_zero,
    "below 1: the least share of an image's area that is drawn for a random "
    "crop, which may be longer than wide; 1: the paper's square crop",
  )
  ratio: float = knob(
    4 / 3,
    between(1, 10),
    "largest ratio of the sides of such a crop, either way",
  )
  flip: float = knob(
    0.0, between(0, 1), "probability that an image is mirrored"
  )
  brightness: float = knob(
    0.0, at_least(0), "its factor is at most so far from 1"
  )
  contrast: float = knob(
    0.0, at_least(0), "its factor is at most so far from 1"
  )
  saturation: float = knob(
    0.0, at_least(0), "its factor is at most so far from 1"
  )
  hue: float = knob(
    0.0, between(0, 0.5), "most that it turns, as a share of the circle"
  )
  jitter_prob: float = knob(
    1.0, between(0, 1), "probability that these four change"
  )
  gray_prob: float = knob(
    0.0, between(0, 1), "probability that an image is made grey"
  )


@dataclasses.dataclass(frozen=True)
class Optim:
  """The optimizer and its schedule."""

  name: str = knob("adamw", one_of(names.OPTIMIZERS), "the optimizer")
  peak_lr: float = knob(
    5e-4, positive, "learning rate after warm-up (paper, Table 20)"
  )
  warmup_steps: int | None = knob(
    None,
    countable(0),
    "updates of linear warm-up; left out: 2000 (paper, Table 18), but at "
    "most a tenth of the run",
    unit="updates",
  )
  schedule: str = knob(
    "cosine",
    one_of(names.SCHEDULES),
    "what the learning rate does after the warm-up: half a cosine to 0 "
    "(paper, section 2.5), a line to 0, nothing, or 1 / sqrt(1 + updates / "
    "rsqrt_steps)",
  )
  rsqrt_steps: int = knob(
    10_000,
    countable(1),
    "updates after the warm-up at which rsqrt has come to 0.71 of the peak",
    unit="updates",
  )
  cooldown_steps: int = knob(
    0,
    countable(0),
    "last updates of the run, in which the learning rate also falls to 0 along "
    "a line",
    unit="updates",
  )
  weight_decay: float = knob(
    0.2, at_least(0), "decoupled decay of matrices (paper, Table 18)"
  )
  beta1: float = knob(0.9, below_one, "momentum: Adam's beta1")
  beta2: float | None = knob(
    None, below_one, "Adam's beta2; paper: ViT 0.98, ResNet 0.999"
  )
  epsilon: float | None = knob(
    None, positive, "Adam's epsilon; paper: ViT 1e-6, ResNet 1e-8"
  )
  clip_norm: float = knob(
    1.0, at_least(0), "largest global gradient norm; 0: no clipping"
  )
  image_lr_factor: float = knob(
    1.0, at_least(0), "factor on the learning rate of the image tower"
  )
  text_lr_factor: float = knob(
    1.0, at_least(0), "factor on the learning rate of the text tower"
  )
  layer_decay: float = knob(
    1.0, between(0, 1), "learning rate of a layer over that of the one above"
  )
  ema_decay: float = knob(
    0.0,
    below_one,
    "decay, per update, of a moving average of the weights, which is the "
    "model that is evaluated and loaded; 0: no average",
  )
  frozen: str = knob(
    "",
    help="regular expression of parameters that are not trained; empty: none",
  )


@dataclasses.dataclass(frozen=True)
class Objective:
  """What training asks of the model (paper, section 2.3)."""

  kind: str = knob(
    "contrastive",
    one_of(names.OBJECTIVES),
    "which text goes with which image: read by the model's text tower, or as "
    "a bag of words (bow_contrastive); or a caption predicted from its image: "
    "its words in any order (bow), or one after the other (lm)",
  )
  captioning_weight: float = knob(
    0.0,
    at_least(0),
    "weight of a captioner's loss beside a contrastive one; 0: no captioner",
  )
  depth: int | None = knob(
    None,
    at_least(1),
    "layers of the captioner; left out: as many as the text tower has",
    unit="layers",
  )


@dataclasses.dataclass(frozen=True)
class Loss:
  """The losses that compare images and texts: the contrastive objectives."""

  kind: str = knob(
    "softmax",
    one_of(("auto", *names.LOSS_KINDS)),
    "contrastive objective; auto: sigmoid for a model with a logit bias",
  )
  method: str = knob(
    "auto", one_of(names.LOSS_METHODS), "how the global logits are computed"
  )
  duplicates: str = knob(
    "ignore",
    one_of(names.DUPLICATES),
    "how pairs of a batch with the same image or caption count: as "
    "negatives, left out, or as positives",
  )


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The mesh of devices."""

  data: int = knob(
    -1, axis_size, "devices that split the batch", unit="devices"
  )
  fsdp: int = knob(
    1,
    axis_size,
    "devices that split batch, parameters and optimizer",
    unit="devices",
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When checkpoints are saved, and how many are kept."""

  every_steps: int = knob(
    1000, at_least(1), "updates between checkpoints", unit="updates"
  )
  keep: int = knob(
    3, at_least(1), "number of newest checkpoints kept", unit="checkpoints"
  )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One entry of `config.evals`."""

  task: str = knob(
    "zero_shot",
    one_of((*names.TASKS, *names.TRAINING_TASKS, "auto")),
    "what is measured; auto: zero_shot where the data has classes, else "
    "retrieval; few_shot_lsr: ridge regression on 1, 5, 10 and 25 examples a "
    "class, of data with two splits",
  )
  data: str = knob("", not_empty, "DATA address, or held_out")
  labels: str = knob(
    "", help="comma-separated or a file; empty: the data's own"
  )
  templates: str = knob("", help="a template or a file; empty: the data's own")


@dataclasses.dataclass(frozen=True)
class Config:
  """The config of a run, checked and frozen; `check` returns it.

  `model_overrides` and `evals` are open: users choose the names in them.
  """

  model: str = knob(
    "ViT-B-32", not_empty, "name of the model; `clip-jax models` lists"
  )
  batch_size: int = knob(
    32_768,
    at_least(1),
    "pairs in the global batch (paper, Table 18)",
    unit="pairs",
  )
  micro_batches: int = knob(
    1,
    at_least(1),
    "parts of a device's pairs that the towers compute one after another, to "
    "save memory; the result is the same",
    unit="parts",
  )
  steps: int | None = knob(
    None, countable(1), "length in updates; or give epochs", unit="updates"
  )
  epochs: float | None = knob(
    None,
    positive,
    "length in passes over data.train; or give steps",
    unit="passes over the data",
  )
  min_steps: int = knob(
    0,
    countable(0),
    "least number of updates, for epochs of little data",
    unit="updates",
  )
  seed: int = knob(
    0, between(0, 2**31 - 1), "seed of parameters, order and crops"
  )
  precision: str = knob(
    "bfloat16",
    one_of(names.PRECISIONS),
    "compute type; parameters, logits and loss stay float32 (or float64)",
  )
  init: Init = Init()
  data: Data = Data()
  augment: Augment = Augment()
  eval_every_steps: int = knob(
    0,
    at_least(0),
    "updates between evaluations; 0: only at the end",
    unit="updates",
  )
  optim: Optim = Optim()
  objective: Objective = Objective()
  loss: Loss = Loss()
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  log_every_steps: int = knob(
    50, at_least(1), "updates between log lines", unit="updates"
  )
  tracker: str = knob(
    "none",
    one_of(names.TRACKERS),
    "where metrics, evaluations and the config go besides the workdir",
  )
  report: str = knob(
    "",
    help="DATA address, or held_out, for report.png; empty: no report",
  )
  model_overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  evals: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config.

  Attributes:
    type: type of its value.
    default: default value; None if the program chooses one.
    check: returns None for an allowed value, else what is allowed, as text.
    help: its meaning.
    unit: its unit, in the plural; "" for none.
  """

  type: type
  default: Any
  check: Check
  help: str
  unit: str


# Open dictionaries: users choose the names in them, so they are not locked.
OPEN = ("model_overrides", "evals")


def _fields(part: Any, prefix: str = "") -> dict[str, Field]:
  """Returns the fields of a dataclass by "."-joined path."""
  hints, found = typing.get_type_hints(part), {}
  for field in dataclasses.fields(part):
    path, kind = prefix + field.name, hints[field.name]
    if dataclasses.is_dataclass(kind):
      found |= _fields(kind, path + ".")
    elif path not in OPEN:
      kinds = typing.get_args(kind) or (kind,)  # `int | None` is int here.
      found[path] = Field(kinds[0], field.default, **field.metadata)
  return found


SCHEMA = _fields(Config)
EVAL_SCHEMA = _fields(Evaluation)


def default_config() -> ml_collections.ConfigDict:
  """Returns the default config: the paper's recipe, without data."""
  tree: dict[str, Any] = {name: {} for name in OPEN}
  for path, field in SCHEMA.items():
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = (
      config_dict.placeholder(field.type)
      if field.default is None
      else field.default
    )
  config: Any = ml_collections.ConfigDict(tree)
  config.lock()
  for name in OPEN:
    config[name].unlock()
  return config


def freeze(tree: Mapping[str, Any]) -> Config:
  """Returns the frozen config of nested dictionaries, without checking it."""
  parts = {
    field.name: type(field.default)(**tree[field.name])
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.default)
  }
  return Config(**{**tree, **parts})
