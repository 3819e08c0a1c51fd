"""Reads and writes `open_clip_config.json`, and lists what it cannot say."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine, portable
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.family import Family, normal_form, refusal
from clip_jax.convert.formats import open_clip_fields as tables
from clip_jax.convert.formats import open_clip_named, timm_vit
from clip_jax.convert.formats.open_clip_rows import MODEL, TEXT, VISION
from clip_jax.convert.source_reading import SourceReading
from clip_jax.models import variants

# Their fields about towers of any kind.
_OF_TOWERS = {
  getattr(row, "theirs", "")
  for kinds in (tables.IMAGES, tables.TEXTS)
  for rows in kinds.values()
  for row in rows
}


@dataclasses.dataclass(frozen=True)
class Described:
  """The model that a config describes.

  Attributes:
    spec: the description, without the tokenizer.
    family: the family whose rows read it.
    image_head: the module of a timm tower's projection, "" for none; None for
      a tower of OpenCLIP's own.
    prefix: prefix of the text tower's names in checkpoints with this config.
    cleaning: how texts are cleaned, one of `tokenizer.CLEANINGS`.
    tokenizer_name: name of a HuggingFace tokenizer; None for CLIP's own.
    strip_end: whether zeros take the place of the tokenizer's end token.
  """

  spec: dict[str, Any]
  family: Family
  image_head: str | None
  prefix: str
  cleaning: str
  tokenizer_name: str | None
  strip_end: bool


def describe(
  config: dict[str, Any],
  reading: SourceReading,
  *,
  bert_config: Callable[[str], dict[str, Any]],
  name: str,
) -> Described:
  """Returns the model that an `open_clip_config.json` describes.

  Args:
    config: the content of the file.
    reading: the checkpoint that is read.
    bert_config: returns the config of a HuggingFace model by its name.
    name: the file's name in messages.

  Raises:
    UserError: a field is unknown, or its value is not supported.
  """
  model = config_file.section(config, MODEL, name)
  vision, text = (
    config_file.section(model, part, f"{name}: {MODEL}")
    for part in ("vision_cfg", "text_cfg")
  )
  tokenizer_name = text.get("hf_tokenizer_name") or None
  kind = "resnet" if isinstance(vision.get("layers"), list) else "vit"
  found = tables.family(
    "timm" if vision.get("timm_model_name") else kind,
    "bert" if text.get("hf_model_name") else "transformer",
    own_tokenizer=tokenizer_name is None,
    bert_config=bert_config,
  )
  preprocess = config.get("preprocess_cfg")
  if isinstance(preprocess, dict):  # A null counts as missing in open_clip.
    preprocess = {k: v for k, v in preprocess.items() if v is not None}
  config = {**config, "preprocess_cfg": preprocess}
  where = {"": name, MODEL: f"{name}: {MODEL}"}
  where |= {VISION: f"{name}: vision_cfg", TEXT: f"{name}: text_cfg"}
  source = reading.config(config, found.defaults, where)
  known = {getattr(row, "theirs", "") for row in found.fields}
  _refuse_unknown(config, known, source)
  spec = found.describe(source)
  head = None
  if vision.get("timm_model_name"):
    head = open_clip_named.TIMM_HEADS[source.get(f"{VISION}.timm_proj")]
  # The field of a HuggingFace tower, even null, makes the model a custom one.
  custom = source.get(f"{MODEL}.custom_text") or "hf_model_name" in text
  strip = f"{TEXT}.tokenizer_kwargs.strip_sep_token"
  return Described(
    spec,
    found,
    head,
    "text." if custom else "",
    spec.pop("tokenizer")["cleaning"],
    tokenizer_name,
    tokenizer_name is not None and source.get(strip),
  )


def _refuse_unknown(
  values: Mapping[str, Any],
  known: Collection[str],
  source: fields.ConfigReader,
  section: str = "",
) -> None:
  """Raises UserError if there are fields without a row.

  Those that only another kind of tower uses cause a warning.
  """
  unknown = []
  for field, value in values.items():
    path = f"{section}{field}"
    if path in known:
      continue
    if any(name.startswith(f"{path}.") for name in known):
      if isinstance(value, dict):
        _refuse_unknown(value, known, source, f"{path}.")
      elif value is not None:
        raise source.wrong(path, "a JSON object")
    elif not any(f"{name}.".startswith(f"{path}.") for name in _OF_TOWERS):
      unknown.append(str(field))
    elif value not in (None, False, _default(path)):
      source.report.warnings.append(
        f"{source.where(path)}.{field}={value!r:.100} has no effect there."
      )
  if unknown:
    raise errors.UserError(
      f"{source.where(section)} has fields that are not known: "
      f"{', '.join(sorted(unknown))}. A newer version of its library may have "
      "written it; they cannot be ignored. Update clip_jax, or remove them if "
      "they change nothing."
    )


def _default(path: str) -> Any:
  found = fields.has(tables.DEFAULTS, path)
  return fields.get(tables.DEFAULTS, path) if found else None


def same(described: Described, spec: dict[str, Any]) -> bool:
  """Whether a config's description equals that of the model."""
  again = engine.resolve({**described.spec, "tokenizer": spec["tokenizer"]})
  wanted, found = normal_form(_plain(spec)), normal_form(again)
  return all(
    wanted[tower]["kind"] == found[tower]["kind"] for tower in ("image", "text")
  ) and not described.family.differences(wanted, found)


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns messages about what of a description OpenCLIP cannot hold."""
  return _choose(spec)[1] + _tokenizer_problems(spec)


def _choose(spec: dict[str, Any]) -> tuple[Family, list[str]]:
  """Returns the family for a model, and messages about what it cannot hold.

  A tower of OpenCLIP's own is chosen if possible; else one of timm, if timm has
  a name for exactly that image tower.
  """
  spec, problems = _plain(spec), []
  if spec["text"]["kind"] not in tables.TEXTS:
    problems = [refusal("text.kind", spec["text"]["kind"], tuple(tables.TEXTS))]
    # Another one stands in, to name what else there is.
    text = dict(variants.VARIANTS["ViT-B-32"]["text"])
    text["activation"] = spec["image"].get("activation", "gelu")
    spec = engine.resolve({**spec, "text": text, "text_projection": "linear"})
  text, tokenizer = spec["text"]["kind"], spec["tokenizer"]["kind"]
  own, timm = (
    tables.family(image, text, own_tokenizer=tokenizer == "clip_bpe")
    for image in (spec["image"]["kind"], "timm")
  )
  found = own.refusals(spec)
  if text == "bert" and any(one.startswith("text.") for one in found):
    near = open_clip_named.nearest_bert(spec["text"])
    problems.append(
      f"open_clip has only published BERTs, of which {near} is nearest"
    )
  if found and open_clip_named.find_timm(spec):
    return timm, timm.refusals(spec) + problems
  if any(one.startswith(("image.", "image_projection")) for one in found):
    found += _timm_problems(spec)
  return own, found + problems


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
  """Returns a description without fields that have no effect."""
  text = dict(spec["text"])
  # Without a bias, the norm after the projection undoes this one.
  if "normalize" in text and spec["text_projection"] != "mlp":
    text["normalize"] = False
  return {**spec, "text": text}


def _timm_problems(spec) -> list[str]:
  """Returns messages about how an image tower differs from timm's."""
  if spec["image"]["kind"] != "vit":
    return []
  if (near := timm_vit.nearest(spec["image"])) is None:
    return ["timm has no image tower of these sizes either"]
  name, other = near
  return [
    f"image.{field}={spec['image'][field]!r} (timm's {name} has {value!r})"
    for field, value in other.items()
  ]


def _tokenizer_problems(spec) -> list[str]:
  """Returns messages about other padding, if the text tower attends to it."""
  tokenizer, text = spec["tokenizer"], spec["text"]
  unseen = text["kind"] == "transformer" and text["causal"]
  unseen = unseen and text["pooling"] in ("argmax", "eos")
  pad_id = tokenizer.get("pad_id", 0)
  if unseen or tokenizer["kind"] != "clip_bpe" or not pad_id:
    return []
  return [refusal("tokenizer.pad_id", pad_id, (0,))]


def configure(model: portable.Portable) -> dict[str, Any]:
  """Returns the config of a model that has no `refusals`.

  Small differences of OpenCLIP's preprocessing and cleaning of texts become
  warnings in the model's report.
  """
  spec, warnings = model.spec, model.report.warnings
  image = {**spec["image"], **model.execution.get("image", {})}
  config = _choose(spec)[0].config({**spec, "image": image})
  warnings += [
    f"{field}={spec[field]!r} is {value!r} in open_clip, which differs "
    "slightly; the weights are the same."
    for field, value in {**tables.ALWAYS, "embed_norm": "l2"}.items()
    if spec[field] != value
  ]
  tokenizer = spec["tokenizer"]
  cleaning = tokenizer.get("cleaning", "clip")
  if cleaning not in tables.CLEANINGS.values():
    warnings.append(
      f"tokenizer.cleaning={cleaning!r} becomes open_clip's "
      f"{tables.NEAREST[cleaning]!r}, the nearest: some texts get other ids."
    )
  if (
    tokenizer["kind"] != "clip_bpe"
    and "tokenizer_config.json" not in model.files
  ):
    warnings.append(
      f"The tokenizer's file {tokenizer['file']} is written, but open_clip "
      "needs tokenizer_config.json beside it to load it."
    )
  return config
