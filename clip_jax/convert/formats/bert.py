"""HuggingFace's BERT, in, as a text tower."""

import pathlib
from collections.abc import Collection, Iterable
from typing import Any

from clip_jax import errors
from clip_jax.convert import (
  config_file,
  engine,
  portable,
  timm,
  tokenizer_files,
  transforms,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import Entry, Slot
from clip_jax.models import paths

NAME = "bert"
_POOLINGS = ("mean", "cls")  # What a user may say that a plain one is for.
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}
# `BertConfig` of transformers, where a config is silent.
_DEFAULTS = {
  "vocab_size": 30522,
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "max_position_embeddings": 512,
  "type_vocab_size": 2,
}
# The pooler and the heads of pretraining and of fine-tuning.
IGNORED = (
  r"(^|\.)position_ids$",
  r"^cls\.",
  r"^classifier\.",
  r"^(bert\.|.*transformer\.)?pooler\.dense\.",
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with a BERT."""
  config = config_file.peek(path / CONFIG)
  return config.get("model_type") == "bert"


def knows(names: Collection[str]) -> bool:
  """Whether these are names of a BERT."""
  word = "embeddings.word_embeddings.weight"
  return word in names or f"bert.{word}" in names


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a BERT; its own pooler is kept aside.

  A BERT by itself gives a vector for each token, and does not say how these
  become one.

  Raises:
    UserError: it is another kind of BERT, or damaged, or has no such pooling.
    AmbiguousError: the pooling was not told.
  """
  if path.is_file():
    raise errors.UserError(
      f"{path} holds a BERT without its config and its tokenizer; give the "
      f"directory that has them all, {CONFIG} and {WEIGHTS[0]}."
    )
  if options.pooling is None:
    raise errors.AmbiguousError(
      f"{path} does not say how its tokens become one vector; a directory of "
      "sentence-transformers would.",
      flags="--pooling mean or --pooling cls",
    )
  if options.pooling not in _POOLINGS:
    raise errors.unknown("pooling of a BERT", options.pooling, _POOLINGS)
  report = report_lib.Report(NAME)
  report.infer("text.pooling", options.pooling, "flag")
  return read_tower(path, report, options, pooling=options.pooling)


def read_tower(
  path: pathlib.Path,
  report: report_lib.Report,
  options: portable.Options,
  *,
  pooling: str,
  normalize: bool = False,
  context_length: int | None = None,
  cleaning: str | None = None,
) -> portable.Portable:
  """Reads a BERT with what a directory around it says.

  Args:
    path: the directory with the config and the weights.
    report: takes the account.
    options: what a user says.
    pooling: of `models.bert.POOLINGS`.
    normalize: whether the pooled vector gets unit length.
    context_length: the most tokens; None for all positions.
    cleaning: of `tokenizer.CLEANINGS`; None where nothing says one.
  """
  config = config_file.read(path / CONFIG)
  text = describe(config, report, str(path / CONFIG))
  text |= {
    "pooling": pooling,
    "normalize": normalize,
    "activation": _activation(text["activation"], options, report, path),
  }
  text["context_length"] = context_length or text["positions"]
  said = context_length or "max_position_embeddings" in config
  report.infer(
    "text.context_length",
    text["context_length"],
    "config" if said else "format",
  )
  files = tokenizer_files.carry(path)
  tokenizer = tokenizer_files.describe(
    files, cleaning=cleaning or "none", where=str(path), report=report
  )
  report.infer(
    "tokenizer.cleaning",
    tokenizer["cleaning"],
    "config" if cleaning else "format",
  )
  check_pad(text, tokenizer, str(path))
  weights = timm.containers_file(path, WEIGHTS)
  tensors = weights_file.read(weights, options, report).tensors
  dialect = naming(tensors)
  spec = engine.resolve({"text": text, "tokenizer": tokenizer})
  return portable.assemble(
    entries(text, **dialect),
    tensors,
    spec,
    report=report,
    name=str(weights),
    options=options,
    configs=[path / CONFIG],
    weights=[weights],
    ignored=IGNORED,
    hint=f"Check that {CONFIG} belongs to the weights.",
    files=files,
    dialect={"config": config, **dialect},
  )


def _activation(said, options, report, path) -> str:
  if options.activation in (None, said):
    return said
  report.warnings.append(
    f"--activation {options.activation} is not what {path / CONFIG} says: "
    f"{said}."
  )
  return report.infer("text.activation", options.activation, "flag")


def check_pad(text: dict[str, Any], tokenizer: dict, where: str) -> None:
  """Raises UserError where the tokenizer's ids are not the model's.

  Padding with another id would not be masked.
  """
  if tokenizer["pad_id"] != text["pad_id"]:
    raise errors.UserError(
      f"{where}: the tokenizer pads with {tokenizer['pad_id']}, the model "
      f"masks {text['pad_id']} (pad_token_id of its config)."
    )
  tokenizer_files.check_ids(tokenizer, text["vocab_size"], where)


def describe(
  config: dict[str, Any], report: report_lib.Report, where: str
) -> dict[str, Any]:
  """Returns the text tower of a BERT's config, without its pooling.

  Raises:
    UserError: it names what no tower here has.
  """
  fields = config_file.Fields(where, {**_DEFAULTS, **config})
  fields.neutral("model_type", "bert")
  fields.neutral("position_embedding_type", "absolute", None)
  fields.neutral("is_decoder", False)
  fields.neutral("add_cross_attention", False)
  fields.neutral("pruned_heads", {}, None)
  text = {
    "kind": "bert",
    "vocab_size": fields.positive("vocab_size"),
    "width": fields.positive("hidden_size", most=config_file.MAX_WIDTH),
    "depth": fields.positive("num_hidden_layers", most=config_file.MAX_DEPTH),
    "heads": fields.positive("num_attention_heads"),
    "mlp_dim": fields.positive("intermediate_size"),
    "positions": fields.positive("max_position_embeddings"),
    "token_types": fields.positive("type_vocab_size"),
    "activation": fields.choose("hidden_act", "gelu", ACTIVATIONS),
    "norm_epsilon": config_file.epsilon(fields, "layer_norm_eps", 1e-12),
    "pad_id": config_file.identity(fields, "pad_token_id", 0),
  }
  check_heads(text, where)
  theirs = {
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "pad_id": "pad_token_id",
  }
  for field, name in theirs.items():
    source = "config" if name in config else "format"
    report.infer(f"text.{field}", text[field], source)
  return text


def check_heads(tower: dict[str, Any], where: str) -> None:
  """Raises UserError unless the heads divide the width."""
  if tower["width"] % tower["heads"]:
    raise errors.UserError(
      f"{where}: the width {tower['width']} does not divide by the number of "
      f"heads, {tower['heads']}."
    )


def naming(names: Iterable[str], prefix: str | None = None) -> dict[str, Any]:
  """Returns how a checkpoint names BERT's tensors: prefix and norms."""
  names = list(names)
  if prefix is None:
    prefix = "bert." if any(n.startswith("bert.") for n in names) else ""
  legacy = any(n.endswith("LayerNorm.gamma") for n in names)
  return {"prefix": prefix, "legacy_norms": legacy}


def entries(
  text: dict[str, Any], *, prefix: str = "", legacy_norms: bool = False
) -> list[Entry]:
  """Returns where the tensors of HuggingFace's BertModel go.

  Args:
    text: the tower's description.
    prefix: of all names.
    legacy_norms: whether norms have a gamma and a beta, as TensorFlow's.
  """
  tower = "params/text"
  ends = ("gamma", "beta") if legacy_norms else ("weight", "bias")

  found = [
    Entry(
      f"{prefix}embeddings.{name}_embeddings.weight",
      (Slot(f"{tower}/{ours}"),),
    )
    for name, ours in (
      ("word", "token_embedding/embedding"),
      ("position", "position_embedding"),
      ("token_type", "token_type_embedding"),
    )
  ]
  found += _norm(f"{prefix}embeddings.LayerNorm", f"{tower}/ln_embed", ends)
  for i in range(text["depth"]):
    found += _block(f"{prefix}encoder.layer.{i}", text["heads"], ends, layer=i)
  if text["pooling"] == "pooler":
    found += _linear(
      f"{prefix}pooler.dense", f"{tower}/pooler", transform=_DENSE
    )
  return found


def _linear(name: str, path: str, *, transform, layer=None) -> list[Entry]:
  slots = [Slot(f"{path}/{part}", layer) for part in ("kernel", "bias")]
  weight, bias = transform
  return [
    Entry(f"{name}.weight", (slots[0],), weight),
    Entry(f"{name}.bias", (slots[1],), bias),
  ]


_DENSE = (transforms.LINEAR, transforms.IDENTITY)


def _norm(name, path, ends, layer=None) -> list[Entry]:
  return [
    Entry(f"{name}.{end}", (Slot(f"{path}/{part}", layer),))
    for end, part in zip(ends, ("scale", "bias"), strict=True)
  ]


def _block(name, heads, ends, *, layer) -> list[Entry]:
  """Returns where the tensors of one layer go."""
  blocks = f"params/{paths.stack('text')}"
  kernel = (
    transforms.linear_to_heads(heads),
    transforms.bias_to_heads(heads),
  )
  out = (transforms.heads_to_linear(heads), transforms.IDENTITY)
  found = []
  for theirs, ours, how in (
    ("attention.self.query", "attention/query", kernel),
    ("attention.self.key", "attention/key", kernel),
    ("attention.self.value", "attention/value", kernel),
    ("attention.output.dense", "attention/out", out),
    ("intermediate.dense", "mlp/fc_in", _DENSE),
    ("output.dense", "mlp/fc_out", _DENSE),
  ):
    found += _linear(
      f"{name}.{theirs}", f"{blocks}/{ours}", transform=how, layer=layer
    )
  for theirs, ours in (("attention.output", "ln_1"), ("output", "ln_2")):
    found += _norm(
      f"{name}.{theirs}.LayerNorm", f"{blocks}/{ours}", ends, layer
    )
  return found
