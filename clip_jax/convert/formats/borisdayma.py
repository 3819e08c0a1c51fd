"""Reads borisdayma/clip-jax: an Orbax directory beside a config.json.

That codebase has many architectures. Only CLIP's is supported: pre-norm blocks
with LayerNorm and biases, learnt positions, plain MLPs, and a causal text tower
that is read at the end of the text. Others are rejected by their fields.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine, portable, tokenizer_files
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.fields import Field, Heads, Other, Row, Written
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.names import FLAX, Names
from clip_jax.convert.files import orbax_directory
from clip_jax.convert.formats import big_vision_description
from clip_jax.convert.formats.huggingface_family import structure
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor

NAME = "borisdayma"
CONFIG = "config.json"
SECTIONS = ("text_config", "vision_config")
WHOLE = """
box     logit_scale        log_scale
box     logit_bias         logit_bias
part    vision/            image  image
part    text/              text   text
weight  vision_projection  image_projection  if image_projection=linear
weight  text_projection    text_projection   if text_projection=linear
"""
IMAGE = """
-       embeddings/patch_embeds/kernel  patch_kernel
-       embeddings/patch_embeds/bias    patch_bias
box     embeddings/position_embeds      position_embedding
box2    embeddings/cls_token            class_embedding  if class_token
box     embeddings/registers            registers        if registers
stack   encoder/layers/                 blocks    block
norm    final_norm                      ln_post
part    MAPHead_0/                      map_head  head   if pooling=map
"""
TEXT = """
-       embeddings/embeddings/embedding  token_embedding/embedding
box     embeddings/position_embeds       position_embedding
stack   encoder/layers/                  blocks  block
norm    final_norm                       ln_final
"""
BLOCK = """
norm       pre_attention_norm  ln_1
attention  attention           attention
norm       mlp/pre_mlp_norm    ln_2
linear     mlp/wi              mlp/fc_in
linear     mlp/wo              mlp/fc_out
"""
HEAD = """
-          probe               probe
attention  attention           attention
norm       mlp/pre_mlp_norm    ln
linear     mlp/wi              mlp/fc_in
linear     mlp/wo              mlp/fc_out
"""
NAMES = Names(
  {
    **{"whole": WHOLE, "image": IMAGE, "text": TEXT},
    **{"block": BLOCK, "head": HEAD},
  },
  kinds=FLAX,
)

_POOLINGS = {"tok": "class", "gap": "gap", "map": "map"}


_COUNT = kinds.checked(
  "a whole number from 0 on",
  lambda x: type(x) is int and 0 <= x <= kinds.MAX_INTEGER,
)
_id_or_null = functools.partial(kinds.or_null, kinds.TOKEN_ID)


def _only(**values: Any) -> tuple[Written, ...]:
  """Returns rows of fields for which one value is supported."""
  return tuple(Written(k, v, kinds.exactly(v)) for k, v in values.items())


def _any(*names: str) -> tuple[Other, ...]:
  """Returns rows of fields that may have any value."""
  return tuple(map(Other, names))


class Registers(Row):
  """The row of register tokens, which are dropped before the last norm."""

  ours = "image.registers"
  theirs = "vision_config.registers"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Reads their number."""
    count = source.read(self.theirs, kinds.or_null(_COUNT, 0))
    spec["image"]["registers"] = count
    if count and source.get(KEEP_REGISTERS):
      raise source.wrong(KEEP_REGISTERS, "false")


class Patches(Row):
  """The row of the grid of patches; it must come after those of the sizes."""

  ours = "image.drop_edge"
  theirs = "vision_config.position_embedding_shape"

  def check(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Compares the grid of positions with the patches."""
    image = spec["image"]
    side, edge = divmod(image["image_size"], image["patch_size"])
    if source.get(self.theirs) not in (None, [side, side]):
      raise source.wrong(self.theirs, f"null or {[side, side]}")
    image["drop_edge"] = edge > 0
    image["class_token"] = image["pooling"] == "class"


KEEP_REGISTERS = "vision_config.keep_registers"
TOWER = (
  Field("hidden_size", "width", in_weights=True),
  Field("num_layers", "depth", in_weights=True),
  Heads("num_heads", "heads", in_weights=True),
  Field("mlp_dim", "mlp_dim", in_weights=True),
  *structure(activation="gelu_tanh", norm_epsilon=1e-6),
  *_only(use_rmsnorm=False, ln_type="preln", use_bias=True, force_scale=True),
  *_only(normalize_qk=False, num_queries=1, position_embedding_type="learnt"),
  *_only(activations=["gelu"]),  # flax's, which is the tanh form.
  # Fields about training or about numeric types.
  *_any("dtype", "float32_logits", "attention_dropout", "mlp_dropout_rate"),
  *_any("unroll", "gradient_checkpointing", "remat_policy", "mask_token_id"),
  *_any("pad_token_id", "bos_token_id", "masked_pred_prob"),
)
TEXT_FIELDS = (
  *structure(kind="transformer", causal=True, pooling="eos"),
  *TOWER,
  Field("max_length", "context_length", in_weights=True),
  Field("vocab_size", "vocab_size", in_weights=True),
  Field("eos_token_id", "eos_id", in_weights=True),
  # Padding is masked out in the others.
  *_only(use_causal_mask=True, is_decoder=False, pool_type="eos"),
)
VISION_FIELDS = (
  *structure(kind="vit", norm_after_pool=False, class_position=False),
  *structure(pre_norm=False, patch_bias=True),
  *TOWER,
  Field("image_size", "image_size", in_weights=True),
  Field("patch_size", "patch_size", in_weights=True),
  Field("pool_type", "pooling", kinds.one_of(_POOLINGS), in_weights=True),
  *_only(use_causal_mask=False, position_embedding_factorized=False),
)
FIELDS: tuple[Row, ...] = (
  *fields.within("text_config", "text", TEXT_FIELDS),
  *fields.within("vision_config", "image", VISION_FIELDS),
  Registers(),
  Other(KEEP_REGISTERS),
  Patches(),
)
# Default values of the codebase.
_TOWER_DEFAULTS = {
  "activations": ["relu"],
  "normalize_qk": False,
  "use_bias": False,
  "force_scale": False,
  "pool_type": None,
  "num_queries": 1,
  "pad_token_id": None,
  "bos_token_id": None,
}
DEFAULTS = {
  "logit_scale_init_value": 2.6592,
  "logit_bias_init_value": 0.0,
  "text_config": {**_TOWER_DEFAULTS, "is_decoder": False},
  "vision_config": {
    **_TOWER_DEFAULTS,
    "position_embedding_type": "sincos2d",
    "position_embedding_shape": None,
    "position_embedding_factorized": False,
    "registers": 0,
    "keep_registers": False,
  },
}
# As of big_vision, but for the crop.
PREPROCESSING = {
  **big_vision_description.PREPROCESSING,
  **{"antialias": True, "resize": "shortest", "crop_rounding": "floor"},
}


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` has such a config and steps of an Orbax manager."""
  config = config_file.peek(path / CONFIG)
  towers = [config.get(section) for section in SECTIONS]
  return all(isinstance(x, dict) and "num_layers" in x for x in towers)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of the newest step of a directory.

  Raises:
    UserError: it is damaged, or its architecture is not supported.
  """
  reading = SourceReading(str(path), NAME, options)
  config = config_file.read(path / CONFIG)
  step = orbax_directory.newest(path)
  tensors = orbax_directory.read(step)
  if options.activation not in (None, "gelu_tanh"):
    raise errors.UserError(
      f"{path / CONFIG} says the activation, gelu (flax's, the tanh form): "
      "leave --activation out."
    )
  files = tokenizer_files.carry(path)
  spec = describe(config, tensors, files, reading, where=str(path / CONFIG))
  return reading.model(
    NAMES.entries(spec),
    tensors,
    spec,
    name=str(step),
    configs=[path / CONFIG],
    files=files,
    noted={"step": int(step.name)},
  )


def describe(
  config: dict[str, Any],
  tensors: Mapping[str, Tensor],
  files: Mapping[str, bytes],
  reading: SourceReading,
  *,
  where: str,
) -> dict[str, Any]:
  """Returns the description of a model.

  Args:
    config: the content of config.json.
    tensors: the parameters by name; projections may be missing.
    files: the tokenizer's files, as of `tokenizer_files.carry`.
    reading: the checkpoint that is read.
    where: the config's name in messages.

  Raises:
    UserError: the architecture is not supported; the message lists the fields.
  """
  for section in SECTIONS:
    config_file.section(config, section, where)
  sections = {section: section for section in SECTIONS}
  source = reading.config(config, DEFAULTS, {"": where, **sections})
  towers: dict[str, Any] = {"image": {}, "text": {}}
  problems = _problems(lambda row: row.read(source, towers))
  problems += [
    f"{section}: {field} is not known."
    for section in SECTIONS
    for field in fields.unknown(FIELDS, config[section], section)
  ]
  problems = problems or _problems(lambda row: row.check(source, towers))
  if problems:
    raise errors.UserError(
      f"{where} describes a model that is not supported. {' '.join(problems)}"
    )
  # The list of problems named the file once; from here on each message does.
  source, report = reading.config(config, DEFAULTS, {"": where}), reading.report
  report.infer("activation", "gelu_tanh", "config")
  report.infer("norm_epsilon", 1e-6, "format")
  report.infer("text.pooling", "eos", "config")
  report.infer("preprocessing", "mean and std 0.5, cropped square", "format")
  report.warnings.append(
    "Its images were cut to size before training; here they are scaled by the "
    "shortest side and cropped."
  )
  spec = {
    **towers,
    **PREPROCESSING,
    **_ends(source, towers, tensors),
    "tokenizer": _tokenizer(source, towers["text"], files, where),
  }
  return engine.resolve(spec)


def _problems(act: Callable[[Row], None]) -> list[str]:
  """Returns the messages of all rows that reject the config."""
  found = []
  for row in FIELDS:
    try:
      act(row)
    except errors.UserError as error:
      found.append(str(error))
  return found


def _ends(source, towers, tensors) -> dict[str, Any]:
  """Returns the fields of the description that are about both towers."""
  projects = "vision_projection/kernel" in tensors
  infer = source.report.infer
  kind = infer("projections", "linear" if projects else "none", "shape")
  bias = source.read("logit_bias_init_value", kinds.NUMBER)
  embed_dim = towers["text"]["width"]
  if projects:
    embed_dim = source.read("projection_dim", kinds.INTEGER)
  return {
    "embed_dim": embed_dim,
    "image_projection": kind,
    "text_projection": kind,
    "embed_norm": infer("embed_norm", "l2_rsqrt_1e-6", "format"),
    "init_logit_scale": source.read("logit_scale_init_value", kinds.LOG_SCALE),
    "init_logit_bias": bias,
    # A softmax loss does not train a bias, so the initial one means none.
    "probabilities": infer(
      "probabilities", "sigmoid" if bias else "softmax", "config"
    ),
    "max_logit_scale": infer("max_logit_scale", None, "format"),
  }


def _tokenizer(source, text, files, where) -> dict[str, Any]:
  source.report.infer("tokenizer", "AutoTokenizer's", "format")
  if files:
    return tokenizer_files.describe(files, cleaning="none", where=where)
  source.report.warnings.append(
    "The tokenizer has a place of its own: put its tokenizer.json beside "
    "config.json to encode texts."
  )
  return {
    "kind": "hf_json",
    "cleaning": "none",
    "pad_id": source.read("text_config.pad_token_id", _id_or_null(0)),
    "start_id": source.read("text_config.bos_token_id", _id_or_null(None)),
    "end_id": text["eos_id"],
    "file": "tokenizer.json",
  }


FORMAT = Format(NAME, read, recognise=recognise)
