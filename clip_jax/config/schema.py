"""The schema of a run: every knob with its default, its unit and its check."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

PRECISIONS = ("bfloat16", "float32", "float64")
OPTIMIZERS = ("adafactor", "adamw", "lion", "muon")
INIT_SCHEMES = ("scaled", "openai")
LOSS_KINDS = ("auto", "sigmoid", "softmax")
LOSS_METHODS = ("auto", "dense", "gathered", "ring", "two_level")
DUPLICATES = ("ignore", "mask", "positive")
CAPTION_CHOICES = ("random", "first")
TEXT_LAYOUTS = ("auto", "packed", "buckets", "full")
EVAL_TASKS = ("zero_shot", "retrieval", "auto")
# An evaluation's or a report's data: what `data.held_out` keeps from training.
HELD_OUT = "held_out"

# A check returns what is wanted where the value is not allowed, else None.
Check = Callable[[Any], str | None]


def _at_least(low: float) -> Check:
  return lambda value: None if value >= low else f"at least {low}"


def _between(low: float, high: float) -> Check:
  wanted = f"between {low} and {high}"
  return lambda value: None if low <= value <= high else wanted


def _below_one(value: float) -> str | None:
  return None if 0 <= value < 1 else "at least 0 and less than 1"


def _one_of(names: Sequence[str]) -> Check:
  wanted = "one of " + ", ".join(names)
  return lambda value: None if value in names else wanted


def _axis_size(value: int) -> str | None:
  return None if value == -1 or value >= 1 else "-1 (all the rest) or >= 1"


def _positive(value: float) -> str | None:
  return None if value > 0 else "more than 0"


def _anything(value: Any) -> None:
  del value


def _not_empty(value: str) -> str | None:
  return None if value else "a name or an address, not an empty text"


def _address(value: str) -> str | None:
  return None if value else "set: --config.data.train=ADDRESS"


@dataclasses.dataclass(frozen=True)
class Field:
  """One knob: its type, its default (None: worked out), check and meaning."""

  type: type
  default: Any
  check: Check
  help: str


SCHEMA: dict[str, Field] = {
  "model": Field(
    str, "ViT-B-32", _not_empty, "name of the model; `clip-jax models` lists"
  ),
  "batch_size": Field(
    int, 32_768, _at_least(1), "pairs in the global batch (paper, Table 18)"
  ),
  "micro_batches": Field(
    int,
    1,
    _at_least(1),
    "parts of a device's pairs that the towers take at a time; the same result",
  ),
  "steps": Field(int, None, _at_least(1), "length in updates; or give epochs"),
  "epochs": Field(
    float, None, _positive, "length in passes over data.train; or give steps"
  ),
  "min_steps": Field(
    int, 0, _at_least(0), "updates at the least, where epochs of few data end"
  ),
  "seed": Field(
    int, 0, _between(0, 2**31 - 1), "seed of parameters, order and crops"
  ),
  "precision": Field(
    str,
    "bfloat16",
    _one_of(PRECISIONS),
    "compute type; parameters, logits and loss stay float32 (or float64)",
  ),
  "init.model": Field(
    str, "", _anything, "a model to begin with, in any format; empty: none"
  ),
  "init.image": Field(
    str, "", _anything, "a checkpoint whose image tower to begin with"
  ),
  "init.text": Field(
    str, "", _anything, "a checkpoint whose text tower to begin with"
  ),
  "init.scheme": Field(
    str,
    "scaled",
    _one_of(INIT_SCHEMES),
    "how new parameters are drawn: both towers as OpenAI's code draws the text"
    " tower, or all as in that code",
  ),
  "data.train": Field(str, "", _address, "DATA address of the pairs"),
  "data.held_out": Field(
    float,
    0.0,
    _below_one,
    "share of data.train that is not trained on; evals may have data=held_out",
  ),
  "data.template": Field(
    str,
    "",
    _anything,
    "caption of a picture with a class, such as 'a photo of a {}.'; empty: the"
    " data's own",
  ),
  "data.workers": Field(
    int, 0, _at_least(0), "loader processes; 0 loads in threads only"
  ),
  "data.threads": Field(int, 4, _at_least(1), "loader threads a process"),
  "data.max_bad_fraction": Field(
    float,
    0.01,
    _between(0, 1),
    "share of bad and lost records that stops the run",
  ),
  "data.max_pixels": Field(
    int,
    None,
    _at_least(1),
    "pixels of the largest image that is read; 250 million of a JPEG (a phone's"
    " of 200 megapixels fits), 64 million of others",
  ),
  "data.resize_ratio": Field(
    float,
    1.0,
    _between(1, 4),
    "shortest side before the random crop, over the image size",
  ),
  "data.caption": Field(
    str, "random", _one_of(CAPTION_CHOICES), "which caption of an image"
  ),
  "data.text_layout": Field(
    str,
    "auto",
    _one_of(TEXT_LAYOUTS),
    "captions packed into shared rows, in short rows, or padded; auto: the"
    " least work that gives the same result",
  ),
  "eval_every_steps": Field(
    int, 0, _at_least(0), "updates between evaluations; 0: only at the end"
  ),
  "optim.name": Field(str, "adamw", _one_of(OPTIMIZERS), "how weights move"),
  "optim.peak_lr": Field(
    float, 5e-4, _positive, "learning rate after warm-up (paper, Table 20)"
  ),
  "optim.warmup_steps": Field(
    int,
    None,
    _at_least(0),
    "updates of linear warm-up; left out: 2000 (paper, Table 18), and no more"
    " than a tenth of the run",
  ),
  "optim.weight_decay": Field(
    float, 0.2, _at_least(0), "decoupled, on matrices (paper, Table 18)"
  ),
  "optim.beta1": Field(float, 0.9, _below_one, "momentum: Adam's beta1"),
  "optim.beta2": Field(
    float, None, _below_one, "Adam's beta2; paper: ViT 0.98, ResNet 0.999"
  ),
  "optim.epsilon": Field(
    float, None, _positive, "Adam's epsilon; paper: ViT 1e-6, ResNet 1e-8"
  ),
  "optim.clip_norm": Field(
    float, 1.0, _at_least(0), "largest global gradient norm; 0: no clipping"
  ),
  "optim.image_lr_factor": Field(
    float, 1.0, _at_least(0), "learning rate of the image tower over the full"
  ),
  "optim.text_lr_factor": Field(
    float, 1.0, _at_least(0), "learning rate of the text tower over the full"
  ),
  "optim.layer_decay": Field(
    float, 1.0, _between(0, 1), "learning rate of a layer over the one above's"
  ),
  "optim.ema_decay": Field(
    float,
    0.0,
    _below_one,
    "weights in use are an average of the trained ones, which moves by 1 - this"
    " an update; 0: no average",
  ),
  "optim.frozen": Field(
    str,
    "",
    _anything,
    "regular expression: parameters that stay as they are; empty: none",
  ),
  "loss.kind": Field(
    str,
    "softmax",
    _one_of(LOSS_KINDS),
    "contrastive objective; auto: sigmoid for a model with a logit bias",
  ),
  "loss.method": Field(
    str, "auto", _one_of(LOSS_METHODS), "how the global logits are made"
  ),
  "loss.duplicates": Field(
    str,
    "ignore",
    _one_of(DUPLICATES),
    "pairs of a batch with the same image or caption: negatives, left out, or"
    " positives",
  ),
  "mesh.data": Field(int, -1, _axis_size, "devices that split the batch"),
  "mesh.fsdp": Field(
    int, 1, _axis_size, "devices that split batch, parameters and optimizer"
  ),
  "checkpoint.every_steps": Field(
    int, 1000, _at_least(1), "updates between checkpoints"
  ),
  "checkpoint.keep": Field(int, 3, _at_least(1), "newest checkpoints kept"),
  "log_every_steps": Field(int, 50, _at_least(1), "updates between log lines"),
  "report": Field(
    str,
    "",
    _anything,
    "DATA address, or held_out, that report.png shows; empty: no report",
  ),
}

# The fields of one entry of `config.evals`.
EVAL_SCHEMA: dict[str, Field] = {
  "task": Field(
    str,
    "zero_shot",
    _one_of(EVAL_TASKS),
    "what is measured; auto: zero_shot where the data has classes, else"
    " retrieval",
  ),
  "data": Field(str, "", _not_empty, "DATA address, or held_out"),
  "labels": Field(
    str, "", _anything, "comma-separated or a file; empty: the data's own"
  ),
  "templates": Field(
    str, "", _anything, "a template or a file; empty: the data's own"
  ),
}

# Open dictionaries: names are the user's own, so no lock guards them.
OPEN = ("model_overrides", "evals")


def default_config() -> ml_collections.ConfigDict:
  """Returns the defaults: the paper's recipe, without data."""
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
  config = ml_collections.ConfigDict(tree)
  config.lock()
  for name in OPEN:
    config[name].unlock()
  return config
