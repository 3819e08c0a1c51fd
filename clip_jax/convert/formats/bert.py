"""Reads HuggingFace's BERT as a text tower."""

import pathlib
from collections.abc import Collection, Iterable
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine, portable, tokenizer_files
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.family import Family
from clip_jax.convert.engine.fields import Field, Fixed, Heads, Written
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import huggingface_weights as weights_lib
from clip_jax.convert.formats.huggingface_family import GELUS, tower
from clip_jax.convert.source_reading import SourceReading

NAME = "bert"
_POOLINGS = ("mean", "cls")  # What a user may choose for a plain BERT.
CONFIG = "config.json"
# The pooler and the heads of pretraining and of fine-tuning.
IGNORED = (
  r"(^|\.)position_ids$",
  r"^cls\.",
  r"^classifier\.",
  r"^(bert\.|.*transformer\.)?pooler\.dense\.",
)
# Norms have TensorFlow's names in old files: a gamma and a beta.
TOWER = """
-       embeddings.word_embeddings.weight        token_embedding/embedding
-       embeddings.position_embeddings.weight    position_embedding
-       embeddings.token_type_embeddings.weight  token_type_embedding
{norms}  embeddings.LayerNorm  ln_embed
stack   encoder.layer.{i}.     blocks  bert_block
linear  pooler.dense           pooler  if pooling=pooler
"""
BLOCK = """
heads   attention.self.query        attention/query
heads   attention.self.key          attention/key
heads   attention.self.value        attention/value
out     attention.output.dense      attention/out
linear  intermediate.dense          mlp/fc_in
linear  output.dense                mlp/fc_out
{norms}  attention.output.LayerNorm  ln_1
{norms}  output.LayerNorm            ln_2
"""
TABLES = {"bert": TOWER, "bert_block": BLOCK}
NAMES = Names(
  {"whole": "part {prefix} text bert", **TABLES},
  variables={"prefix": "", "norms": "norm"},
)
# The defaults are `BertConfig`'s of transformers.
DEFAULTS = tower(
  768,
  vocab_size=30522,
  max_position_embeddings=512,
  type_vocab_size=2,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  pad_token_id=0,
  model_type="bert",
  position_embedding_type="absolute",
  is_decoder=False,
  add_cross_attention=False,
  pruned_heads={},
)
_ABSOLUTE = kinds.exactly("absolute", None)
# Values that would make it another model.
PLAIN = (
  Written("position_embedding_type", "absolute", _ABSOLUTE),
  Written("is_decoder", False, kinds.exactly(False)),
  Written("add_cross_attention", False, kinds.exactly(False)),
  Written("pruned_heads", {}, kinds.exactly({}, None)),
)
FIELDS = (
  Fixed("kind", "bert", in_weights=True),
  Field("vocab_size", "vocab_size", in_weights=True),
  Field("hidden_size", "width", kinds.WIDTH, in_weights=True),
  Field("num_hidden_layers", "depth", kinds.DEPTH, in_weights=True),
  Heads("num_attention_heads", "heads"),
  Field("intermediate_size", "mlp_dim", in_weights=True),
  Field("max_position_embeddings", "positions", in_weights=True),
  Field("type_vocab_size", "token_types", in_weights=True),
  Field("hidden_act", "activation", kinds.one_of(GELUS)),
  Field("layer_norm_eps", "norm_epsilon", kinds.EPSILON),
  Field("pad_token_id", "pad_id", kinds.TOKEN_ID),
)
FAMILY = Family(
  NAME,
  NAMES,
  fields.within(
    "",
    "text",
    (Written("model_type", "bert", kinds.exactly("bert")), *PLAIN, *FIELDS),
  ),
  DEFAULTS,
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with a BERT."""
  return config_file.peek(path / CONFIG).get("model_type") == "bert"


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of a BERT."""
  word = "embeddings.word_embeddings.weight"
  return word in names or f"bert.{word}" in names


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a BERT directory; the BERT's own pooler is an extra.

  A BERT returns a vector for each token, and its files do not say how they are
  pooled.

  Raises:
    UserError: it is another kind of BERT, or damaged, or has no such pooling.
    AmbiguousError: no option says the pooling.
  """
  if path.is_file():
    raise errors.UserError(
      f"{path} holds a BERT without its config and its tokenizer; give the "
      f"directory that has them all, {CONFIG} and {weights_lib.WEIGHTS}."
    )
  if options.pooling is None:
    raise errors.AmbiguousError(
      f"{path} does not say how its tokens become one vector; a directory of "
      "sentence-transformers would.",
      flags="--pooling mean or --pooling cls",
    )
  if options.pooling not in _POOLINGS:
    raise errors.unknown("pooling of a BERT", options.pooling, _POOLINGS)
  reading = SourceReading(str(path), NAME, options)
  reading.report.infer("text.pooling", options.pooling, "flag")
  return read_tower(path, reading, pooling=options.pooling)


def read_tower(
  path: pathlib.Path,
  reading: SourceReading,
  *,
  pooling: str,
  normalize: bool = False,
  context_length: int | None = None,
  cleaning: str | None = None,
) -> portable.Portable:
  """Returns the model of a BERT, with settings of the directory around it.

  Args:
    path: the directory with the config and the weights.
    reading: the checkpoint that is read.
    pooling: one of `models.bert.POOLINGS`.
    normalize: whether the pooled vector is normalised to unit length.
    context_length: the most tokens; None for all positions.
    cleaning: one of `tokenizer.CLEANINGS`; None if the files do not say it.
  """
  report = reading.report
  config = config_file.read(path / CONFIG)
  overrides = {"activation": reading.options.activation}
  text = describe(config, report, str(path / CONFIG), overrides)
  text |= {"pooling": pooling, "normalize": normalize}
  said = context_length or "max_position_embeddings" in config
  text["context_length"] = report.infer(
    "text.context_length",
    context_length or text["positions"],
    "config" if said else "format",
  )
  files = tokenizer_files.carry(path)
  tokenizer = describe_tokenizer(files, text, report, str(path), cleaning)
  weights = weights_lib.require(path)
  tensors = reading.tensors(weights)
  dialect = naming(tensors)
  spec = engine.resolve({"text": text, "tokenizer": tokenizer})
  return reading.model(
    FAMILY.entries(spec, dialect),
    tensors,
    spec,
    name=str(weights),
    configs=[path / CONFIG],
    weights=weights_lib.files(weights),
    ignored=IGNORED,
    hint=f"Check that {CONFIG} belongs to the weights.",
    files=files,
    dialect={"config": config, **dialect},
  )


def describe_tokenizer(
  files: dict[str, bytes],
  text: dict[str, Any],
  report: report_lib.Report,
  where: str = "The directory of this model",
  cleaning: str | None = None,
) -> dict[str, Any]:
  """Returns the description of a BERT's tokenizer; checks its padding id.

  Args:
    files: the result of `tokenizer_files.carry`.
    text: the description of the text tower.
    report: the report to write to.
    where: the directory's name in messages.
    cleaning: one of `tokenizer.CLEANINGS`; None if the files do not say it.
  """
  found = tokenizer_files.describe(
    files, cleaning=cleaning or "none", where=where, report=report
  )
  said = "config" if cleaning else "format"
  report.infer("tokenizer.cleaning", found["cleaning"], said)
  check_pad(text, found, where)
  return found


def check_pad(text: dict[str, Any], tokenizer: dict, where: str) -> None:
  """Raises UserError if tokenizer and model have different padding ids.

  The model would not mask padding with another id.
  """
  if tokenizer["pad_id"] != text["pad_id"]:
    raise errors.UserError(
      f"{where}: the tokenizer pads with {tokenizer['pad_id']}, the model "
      f"masks {text['pad_id']} (pad_token_id of its config). Correct the one "
      "that is wrong."
    )
  tokenizer_files.check_ids(tokenizer, text["vocab_size"], where)


def describe(
  config: dict[str, Any],
  report: report_lib.Report,
  where: str,
  overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the text tower of a BERT's config, without its pooling.

  Args:
    config: the content of the file.
    report: the report to write to.
    where: the file's name in messages.
    overrides: the user's values of fields.

  Raises:
    UserError: a field has a value that is not supported.
  """
  source = fields.ConfigReader(
    config,
    DEFAULTS,
    where={"": where},
    report=report,
    overrides=overrides,
    towers=("text",),
  )
  return FAMILY.describe(source)["text"]


def naming(names: Iterable[str]) -> dict[str, Any]:
  """Returns the prefix and the kind of norms in a checkpoint of a BERT."""
  names = list(names)
  prefix = "bert." if any(n.startswith("bert.") for n in names) else ""
  legacy = any(n.endswith("LayerNorm.gamma") for n in names)
  return {"prefix": prefix, "norms": "gamma" if legacy else "norm"}


FORMAT = Format(
  NAME,
  read,
  recognise=recognise,
  recognise_names=recognise_names,
  tower="text",
)
