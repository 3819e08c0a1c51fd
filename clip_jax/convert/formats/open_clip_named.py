"""Rows for towers that OpenCLIP's config gives by name: timm's, and BERTs."""

import dataclasses
from collections.abc import Callable
from typing import Any

from clip_jax import errors
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.formats import bert, timm_vit
from clip_jax.convert.formats.open_clip_rows import TEXT, VISION

# Their timm_proj -> where timm keeps the projection; "" for none. Without one
# of OpenCLIP's, timm's classifier serves as the projection.
TIMM_HEADS = {
  "linear": "head.proj",
  "none": "",
  "": "trunk.head",
  None: "trunk.head",
}
# Our projection -> how it is written for a tower of timm.
TIMM_PROJECTIONS = {
  "linear": {"timm_proj": "linear"},
  "linear_bias": {"timm_proj": "linear", "timm_proj_bias": True},
  "none": {"timm_proj": "none"},
}
# Configs of the published ones: what differs from `bert-base-uncased`.
_LARGE = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "intermediate_size": 4096,
}
BERTS: dict[str, dict[str, Any]] = {
  "bert-base-uncased": {},
  "bert-base-cased": {"vocab_size": 28996},
  "bert-large-uncased": dict(_LARGE),
  "bert-large-cased": {**_LARGE, "vocab_size": 28996},
  "bert-base-multilingual-cased": {"vocab_size": 119547},
  "bert-base-multilingual-uncased": {"vocab_size": 105879},
}
BERTS |= {f"google-bert/{name}": config for name, config in BERTS.items()}
# Fields that the weights' shapes show, so the report leaves them out.
_IN_WEIGHTS = ("width", "depth", "mlp_dim")


class TimmTower(fields.Row):
  """An image tower that is given by timm's name, and its projection."""

  ours: str = "image"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Stores the tower that has the name."""
    name, pool, size, head, bias = (
      source.get(f"{VISION}.{field}")
      for field in (
        *("timm_model_name", "timm_pool", "image_size"),
        *("timm_proj", "timm_proj_bias"),
      )
    )
    tower, head = timm_vit.describe(name), TIMM_HEADS[head]
    at_creation = head != "head.proj"
    if pool or at_creation:
      tower = timm_vit.pooled(tower, pool, at_creation=at_creation, name=name)
    if kinds.PIXELS.read(size) != tower["image_size"]:
      raise errors.UserError(
        f"{source.where(f'{VISION}.image_size')}: image_size={size}, but "
        f"{name} is made for {tower['image_size']}; give the timm_model_name "
        "of that size."
      )
    tower["activation"] = source.override(
      "image.activation", tower["activation"], f"{VISION}.timm_model_name"
    )
    _note_all(source, "image", tower)
    spec["image"] = {**tower, **spec["image"]}
    biased = bias or head == "trunk.head"
    projection = "linear_bias" if biased else "linear"
    spec["image_projection"] = projection if head else "none"

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the name that timm has for the tower."""
    found = find_timm(spec)
    assert found, "checked before"
    name, pool = found
    written = {
      "image_size": spec["image"]["image_size"],
      "timm_model_name": name,
      "timm_model_pretrained": False,
      "timm_pool": pool,
      **TIMM_PROJECTIONS[spec["image_projection"]],
    }
    for field, value in written.items():
      fields.put(config, f"{VISION}.{field}", value)


def find_timm(spec: dict[str, Any]) -> tuple[str, str] | None:
  """Returns the name and pooling of timm's tower that equals the image's."""
  projection = spec["image_projection"]
  if spec["image"]["kind"] != "vit" or projection not in TIMM_PROJECTIONS:
    return None
  return timm_vit.find(spec["image"], at_creation=projection == "none")


def _note_all(source, tower: str, described: dict[str, Any]) -> None:
  """Notes that a tower's fields follow from its name."""
  for field, value in described.items():
    key = f"{tower}.{field}"
    if field not in _IN_WEIGHTS and key not in source.report.inferred:
      source.report.infer(key, value, "config")


@dataclasses.dataclass(frozen=True)
class BertTower(fields.Row):
  """A BERT, by the name under which it was published.

  Attributes:
    config: returns the config of a BERT by its name.
  """

  config: Callable[[str], dict[str, Any]]
  ours: str = "text"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Reads the config of that name."""
    name, theirs = source.get(f"{TEXT}.hf_model_name"), f"{TEXT}.hf_model_name"
    if not source.get(f"{TEXT}.hf_tokenizer_name"):
      raise errors.UserError(
        f"{source.where(theirs)} lacks hf_tokenizer_name: CLIP's tokenizer "
        f"does not fit hf_model_name={name!r:.100}. Add its tokenizer's name."
      )
    config = source.get(f"{TEXT}.hf_model_config")
    if config is None:
      config = self.config(name)
    where = f"{source.where(theirs)}: the config of {name}"
    tower = bert.describe(config, source.report, where, source.overrides)
    tower["normalize"] = False
    _note_all(source, "text", tower)
    spec["text"] = {**tower, **spec["text"]}

  def check(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Raises UserError if the longest text exceeds the positions."""
    positions = spec["text"]["positions"]
    if spec["text"]["context_length"] > positions:
      raise source.wrong(
        f"{TEXT}.context_length", f"at most {positions}, its positions"
      )

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the name of the nearest published BERT."""
    name = nearest_bert(spec["text"])
    fields.put(config, f"{TEXT}.hf_model_name", name)


def nearest_bert(text: dict[str, Any]) -> str:
  """Returns the name of the published BERT that is most like a tower."""

  def differences(name):
    there = bert.describe(BERTS[name], report_lib.Report(""), name)
    return sum(text[field] != want for field, want in there.items())

  return min(BERTS, key=differences)
