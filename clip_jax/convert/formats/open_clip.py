"""Reads and writes OpenCLIP's directories.

A directory has `open_clip_config.json` and weights. There are three kinds of
names, chosen for each tower: OpenAI's names; a text tower under `text.`; towers
of timm (`visual.trunk.`) and of HuggingFace (`text.transformer.`).
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine, portable, tokenizer_files
from clip_jax.convert.engine import Entry
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.names import Names
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import (
  bert,
  open_clip_config,
  open_clip_named,
  openai_names,
  timm_vit,
)
from clip_jax.convert.formats import open_clip_files as files_lib
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import clip
from clip_jax.tokenizer import tokenizer_file as tokenizer_lib_files

NAME = "open-clip"
CONFIG, WEIGHTS = files_lib.CONFIG, files_lib.WEIGHTS
IGNORED = (
  r"^text\.transformer\.embeddings\.position_ids$",
  r"^text\.transformer\.pooler\.dense\.",
  r"^(text\.)?attn_mask$",
  r"^visual\..*\.num_batches_tracked$",
)
WHOLE = """
{scale} logit_scale   log_scale
{bias}  logit_bias    logit_bias  if init_logit_bias!=None
part    visual.       image       vit     if image_names=vit
part    visual.       image       resnet  if image_names=resnet
part    visual.trunk. image       timm    if image_names=timm
-       visual.proj            image_projection/kernel  if image_end=parameter
weight  visual.{image_head}    image_projection         if image_end=linear
linear  visual.{image_head}    image_projection       if image_end=linear_bias
weight  visual.{image_head}.0  image_projection/fc_in   if image_end=mlp
weight  visual.{image_head}.2  image_projection/fc_out  if image_end=mlp
part    {prefix}               text        text  if text.kind=transformer
-       {prefix}text_projection  text_projection/kernel if text_end=parameter
weight  {prefix}{text_head}    text_projection          if text_end=linear
linear  {prefix}{text_head}    text_projection        if text_end=linear_bias
weight  {prefix}{text_head}.0  text_projection/fc_in    if text_end=mlp
weight  {prefix}{text_head}.2  text_projection/fc_out   if text_end=mlp
part    {prefix}transformer.   text        bert  if text.kind=bert
"""
NAMES = Names(
  {"whole": WHOLE} | openai_names.TABLES | timm_vit.TABLES | bert.TABLES,
  variables=dict.fromkeys(
    (
      *("scale", "bias", "image_names", "image_end", "image_head"),
      *("prefix", "text_end", "text_head", "norms"),
    )
  ),
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with OpenCLIP's config."""
  return files_lib.find_config(path) is not None


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of a model with OpenCLIP's custom towers."""
  return any(name.startswith("visual.") for name in names) and any(
    name.startswith(("text.", "positional_embedding")) for name in names
  )


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a directory, or of a file whose config is an option.

  Raises:
    UserError: the config is not supported, or the weights do not fit it.
    AmbiguousError: it is a file, and the options have no config.
  """
  reading = SourceReading(str(path), NAME, options)
  report = reading.report
  source = files_lib.find(path, reading)
  described = open_clip_config.describe(
    source.config,
    reading,
    bert_config=lambda name: _bert_config(source, name),
    name=source.where,
  )
  tensors = reading.tensors(source.weights)
  files, token_spec = _tokenizer(described, source, reading)
  if described.spec["text"]["kind"] == "bert":
    bert.check_pad(described.spec["text"], token_spec, str(path))
  # What training keeps to; open_clip bounds the scale there, not in the model.
  biased = described.spec["init_logit_bias"] is not None
  limit = None if biased else clip.MAX_LOGIT_SCALE
  report.infer("max_logit_scale", limit, "format")
  for field, value in token_spec.items():
    # A named model's cleaning may not be the config's.
    noted = report.inferred.get(f"tokenizer.{field}", {})
    report.infer(f"tokenizer.{field}", value, noted.get("source", "format"))
  spec = engine.resolve(
    {**described.spec, "tokenizer": token_spec, "max_logit_scale": limit}
  )
  layout = _layout(described, tensors)
  timm_vit.refuse_other_blocks(tensors, str(path))
  model = reading.model(
    entries(spec, layout),
    tensors,
    spec,
    name=str(source.weights),
    configs=source.configs,
    weights=[source.weights],
    ignored=IGNORED,
    hint=f"Check that {source.where} belongs to the weights.",
    files=files,
    dialect={"config": source.config, "layout": layout},
  )
  # The patches to drop are of the config, not of the description.
  dropout = described.spec["image"].get("patch_dropout")
  execution = {"image": {"patch_dropout": dropout}} if dropout else {}
  return dataclasses.replace(model, execution=execution)


def _bert_config(source: files_lib.Files, name: str) -> dict[str, Any]:
  """Returns the config of a BERT, from a directory or as published."""
  for directory in source.directories:
    beside = config_file.peek(directory / bert.CONFIG)
    if beside.get("model_type") == "bert":
      return beside
  if name in open_clip_named.BERTS:
    return open_clip_named.BERTS[name]
  raise errors.UserError(
    f"{source.where}: hf_model_name={name!r:.100} is not known here. If it is "
    f"a BERT, put its config.json into {source.directories[0]}; other kinds "
    "are not supported. Nearest by name: "
    f"{', '.join(errors.nearest(name, open_clip_named.BERTS))}."
  )


def _tokenizer(
  described: open_clip_config.Described,
  source: files_lib.Files,
  reading: SourceReading,
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Returns the tokenizer's files, and its description."""
  if named := source.spec.get("tokenizer", {}).get("file"):
    # The model was told by its name; its tokenizer may lie beside the file.
    file = tokenizer_lib_files.find(named, directory=source.directories[0])
    if not file:
      reading.report.warnings.append(
        f"{source.weights} has no tokenizer: put its {named} beside the file "
        "to encode texts."
      )
    return {named: file.read()} if file else {}, source.spec["tokenizer"]
  if described.tokenizer_name is None:
    own = tokenizer_files.CLIP
    about = {"cleaning": described.cleaning, "pad_id": 0}
    return {}, {"kind": own["kind"], **about, **own}
  carried = {
    directory: tokenizer_files.carry(directory)
    for directory in source.directories
  }
  where = next(filter(carried.get, carried), source.directories[0])
  found = tokenizer_files.describe(
    carried[where],
    cleaning=described.cleaning,
    where=str(where),
    strip_end=described.strip_end,
    report=reading.report,
  )
  vocab_size = described.spec["text"]["vocab_size"]
  tokenizer_files.check_ids(found, vocab_size, str(where))
  return carried[where], found


def _layout(
  described: open_clip_config.Described, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
  """Returns the kind of names in a checkpoint, by its config and tensors."""
  # Older checkpoints of custom models have OpenAI's names all the same, and
  # those of open_clip's `--force-custom-text` have a custom model's.
  known = {f"{prefix}positional_embedding": prefix for prefix in ("", "text.")}
  found = known.keys() & tensors.keys()
  prefix = known[found.pop()] if len(found) == 1 else described.prefix
  scalars = {
    name: list(tensors[name].shape)
    for name in ("logit_scale", "logit_bias")
    if name in tensors and tensors[name].shape in ((), (1,))
  }
  return {
    "image_head": described.image_head,
    "prefix": prefix,
    "scalars": scalars,
    "legacy_norms": bert.naming(tensors)["norms"] == "gamma",
  }


def entries(spec: dict[str, Any], layout: dict[str, Any]) -> list[Entry]:
  """Returns the entry of each tensor of a checkpoint.

  Args:
    spec: the description.
    layout: "image_head", the module of a timm tower's projection ("" for none,
      None for a tower of OpenCLIP's own); "prefix", of the text tower's names;
      "scalars", the shapes of the scale and the bias; "legacy_norms", of BERT.
  """
  head, scalars = layout["image_head"], layout["scalars"]
  is_bert = spec["text"]["kind"] == "bert"
  image_end, text_end = spec["image_projection"], spec["text_projection"]
  if head is None:
    image_end = "parameter" if spec["image"]["kind"] == "vit" else "none"
  if text_end == "linear" and not is_bert:
    text_end = "parameter"
  return NAMES.entries(
    spec,
    {
      "scale": "box" if scalars.get("logit_scale") else "-",
      "bias": "box" if scalars.get("logit_bias") else "-",
      "image_names": spec["image"]["kind"] if head is None else "timm",
      "image_end": image_end,
      "image_head": head,
      "prefix": layout["prefix"],
      "text_end": text_end,
      "text_head": "proj" if is_bert else "text_projection",
      "norms": "gamma" if layout["legacy_norms"] else "norm",
    },
  )


def can_restore(model: portable.Portable) -> bool:
  """Whether a model came unchanged from this format."""
  return _unchanged_source(model) is not None


def write(model: portable.Portable, destination: pathlib.Path) -> None:
  """Writes a directory that open_clip loads as `local-dir:`.

  Raises:
    UserError: OpenCLIP has no such model, or its tokenizer is missing.
  """
  found = _unchanged_source(model)
  if found is None:
    portable.refuse(NAME, open_clip_config.refusals(model.spec))
    config = open_clip_config.configure(model)
    described = _describe_again(config, open_clip_named.BERTS.get)
    found = config, _layout(described, {}), {}
  config, layout, extras = found
  if model.spec["tokenizer"]["kind"] != "clip_bpe":
    # What the directory would lack, the source lacks.
    tokenizer_files.describe(model.files, cleaning="none", where="The source")
  tensors = engine.to_theirs(entries(model.spec, layout), model.leaves)
  destination.mkdir(parents=True, exist_ok=True)
  tensors = {**tensors, **openai_names.running_counts(tensors), **extras}
  safetensors_file.write(destination / WEIGHTS, tensors)
  for name, data in model.files.items():
    (destination / name).write_bytes(data)
  if model.spec["text"]["kind"] == "bert":
    # What its name stands for, so that nothing has to be fetched.
    about = bert.FAMILY.config({"text": model.spec["text"]})
    config_file.write(destination / bert.CONFIG, about)
  config_file.write(destination / CONFIG, config)


def _unchanged_source(model):
  """Returns the config and the names of the source, if they are still true."""
  dialect = model.dialect(NAME)
  if not dialect:
    return None
  described = _describe_again(
    dialect["config"],
    lambda name: bert.FAMILY.config({"text": model.spec["text"]}),
  )
  if not open_clip_config.same(described, model.spec):
    return None  # It was changed on the way, such as by another image size.
  return dialect["config"], dialect["layout"], model.extras


def _describe_again(config, bert_config) -> open_clip_config.Described:
  reading = SourceReading(CONFIG, NAME)
  return open_clip_config.describe(
    config, reading, bert_config=bert_config, name=CONFIG
  )


FORMAT = Format(
  NAME,
  read,
  recognise=recognise,
  recognise_names=recognise_names,
  write=write,
  refusals=open_clip_config.refusals,
  can_restore=can_restore,
)
