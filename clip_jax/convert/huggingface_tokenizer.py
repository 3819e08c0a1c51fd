"""Tokenizer files of a HuggingFace directory, both ways."""

import json
import pathlib
from typing import Any

import tokenizers

from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import huggingface_config
from clip_jax.convert import report as report_lib
from clip_jax.convert.containers import datafile

CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
FAST = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
FILES = (
  FAST,
  CONFIG,
  SPECIAL,
  "added_tokens.json",
  VOCAB,
  MERGES,
  *SENTENCEPIECE,
)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SIGLIP_END_ID = 1
_GEMMA_VOCAB = 256_000  # SigLIP 2's, which pads with 0; SigLIP's pads with 1.

# CLIPTokenizer's pieces: letters, single digits, signs, English contractions.
_PIECES = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def read_files(directory: pathlib.Path) -> dict[str, bytes]:
  """Returns the tokenizer's files by name."""
  found = {}
  for name in FILES:
    if (directory / name).is_file():
      file = datafile.DataFile(directory / name)
      with datafile.checked(file.path, "a tokenizer's file"):
        if file.size > huggingface_config.MAX_BYTES:
          raise ValueError(f"it has {file.size} bytes")
        found[name] = file.read(0, file.size)
  return found


def describe(
  files: dict[str, bytes],
  family: str,
  text: dict[str, Any],
  report: report_lib.Report,
) -> dict[str, Any]:
  """Returns the tokenizer's description.

  Args:
    files: of `read_files`.
    family: of `huggingface_config.FAMILIES`.
    text: the description of the text tower.
    report: takes the fields and where they come from.
  """
  config = _object(files, CONFIG)
  if config.get("padding_side") == "left":
    report.warnings.append(
      f"{CONFIG} says padding_side='left'; rows are padded on the right here, "
      "as every CLIP and SigLIP was trained."
    )
  siglip = family.startswith("siglip")
  found = (_describe_siglip if siglip else _describe_clip)(
    files, family, text, report
  )
  source = "config" if files else "format"
  for field, value in found.items():
    report.infer(f"tokenizer.{field}", value, source)
  return found


def _describe_clip(files, family, text, report) -> dict[str, Any]:
  ids, ours = _vocabulary(files), tokenizer_lib.vocabulary()
  other = ids != ours if ids is not None else family != "clip"
  if other and FAST in files:
    start, end = _controls(files)
    return {
      "kind": "hf_json",
      "cleaning": "none",  # The file has its own.
      "pad_id": _pad_id(files, default=0, report=report),
      "start_id": start,
      "end_id": end,
      "file": FAST,
    }
  if ids is not None and other:
    raise errors.UserError(
      f"{VOCAB} is not CLIP's vocabulary, and there is no {FAST}. Load the "
      "tokenizer with transformers and save it again: that writes one."
    )
  if ids is None:
    small = text["vocab_size"] < len(ours)
    report.warnings.append(
      "There are no tokenizer files: texts are tokenized as CLIPTokenizer "
      f"does with CLIP's own vocabulary of {len(ours)}"
      + (f", but this model has {text['vocab_size']}." if small else ".")
    )
  return {
    "kind": "clip_bpe",
    "cleaning": "hf_clip",
    # What follows the end token changes nothing in a causal tower.
    "pad_id": _pad_id(files, default=tokenizer_lib.END_ID, report=report),
    "start_id": tokenizer_lib.START_ID,
    "end_id": tokenizer_lib.END_ID,
  }


def _describe_siglip(files, family, text, report) -> dict[str, Any]:
  del family
  second = text["vocab_size"] == _GEMMA_VOCAB
  model = next((name for name in SENTENCEPIECE if name in files), None)
  name = model or (FAST if FAST in files else SENTENCEPIECE[0])
  if second and (FAST in files or not model):
    name = FAST
  if name not in files:
    report.warnings.append(
      "There are no tokenizer files: SigLIP's are part of its checkpoint. Put "
      f"{name} beside the weights to encode texts."
    )
  start, end = None, _SIGLIP_END_ID
  if name == FAST and name in files:
    start, end = _controls(files)
  return {
    "kind": "hf_json" if name == FAST else "sentencepiece",
    # SigLIP 2 was trained on lower case, whatever older files say
    # (transformers#43101).
    "cleaning": "hf_lower" if second else "hf_siglip",
    "pad_id": _pad_id(files, default=0 if second else 1, report=report),
    "start_id": start,
    "end_id": _SIGLIP_END_ID if end is None else end,
    "file": name,
  }


def _controls(files) -> tuple[int | None, int | None]:
  """Returns the ids that tokenizer.json puts before and after a text."""
  before, after = tokenizer_lib.file_controls("hf_json", files[FAST])
  if len(before) > 1 or len(after) > 1:
    raise errors.UserError(
      f"{FAST} puts {len(before)} ids before a text and {len(after)} after it; "
      "at most one each is known here."
    )
  return before[0] if before else None, after[0] if after else None


def _object(files, name) -> dict[str, Any]:
  if name not in files:
    return {}
  try:
    found = json.loads(files[name])
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f"{name} is no valid JSON ({error}).") from None
  if not isinstance(found, dict):
    raise errors.UserError(f"{name} must hold a JSON object.")
  return found


def _vocabulary(files) -> dict[str, int] | None:
  """Returns the ids of the byte-pair encoding's tokens, if a file has them."""
  if VOCAB in files:
    return _object(files, VOCAB)
  model = _object(files, FAST).get("model")
  found = model.get("vocab") if isinstance(model, dict) else None
  return found if isinstance(found, dict) else None


def _pad_id(files, *, default: int, report: report_lib.Report) -> int:
  """Returns the id of the padding token."""
  config = _object(files, CONFIG)
  token = config.get("pad_token", _object(files, SPECIAL).get("pad_token"))
  if isinstance(token, dict):
    token = token.get("content")
  if isinstance(token, str):
    for known in _token_ids(files, config):
      if type(known.get(token)) is int:
        return known[token]
    if files.keys() & {FAST, VOCAB}:
      report.warnings.append(
        f"The padding token {token!r:.50} has no id in the tokenizer's files; "
        f"rows are padded with {default}."
      )
  return default


def _token_ids(files, config):
  """Yields tables of tokens' ids, the most specific first."""
  added = config.get("added_tokens_decoder")
  if isinstance(added, dict):
    yield {
      entry.get("content"): int(i)
      for i, entry in added.items()
      if isinstance(entry, dict) and i.isdecimal()
    }
  listed = _object(files, FAST).get("added_tokens")
  if isinstance(listed, list):
    yield {
      entry.get("content"): entry.get("id")
      for entry in listed
      if isinstance(entry, dict)
    }
  yield _vocabulary(files) or {}


def files_for(
  spec: dict[str, Any], files: dict[str, bytes], report: report_lib.Report
) -> dict[str, bytes]:
  """Returns the tokenizer's files of a directory for transformers.

  Those that came with the model, where transformers knows them; else new ones
  for CLIP's own vocabulary.
  """
  kept = {name: data for name, data in files.items() if name in FILES}
  described = spec["tokenizer"]
  length = spec["text"]["context_length"]
  if described["kind"] == "clip_bpe" and not kept.keys() & {FAST, VOCAB}:
    if (cleaning := described.get("cleaning", "clip")) != "hf_clip":
      report.warnings.append(
        f"tokenizer.cleaning={cleaning!r} here, 'hf_clip' in HuggingFace's "
        "CLIPTokenizer: HTML entities and mis-decoded letters give other ids "
        "there."
      )
    return clip_files(length)
  source = described.get("file")
  if not kept.keys() & {FAST, *SENTENCEPIECE} and source in files:
    kept[SENTENCEPIECE[0]] = files[source]
  if CONFIG not in kept and kept:
    kept[CONFIG] = _json(_config(described["kind"], length))
  if not kept:
    report.warnings.append(
      "The tokenizer's files are not part of the source: the directory has "
      "none, and transformers needs some from elsewhere."
    )
  return kept


def _config(kind: str, length: int) -> dict[str, Any]:
  found = {"model_max_length": length, "padding_side": "right"}
  if kind == "sentencepiece":
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return {
      "tokenizer_class": "SiglipTokenizer",
      "do_lower_case": True,
      "model_input_names": ["input_ids"],
      **special,
      **found,
    }
  return {"tokenizer_class": "PreTrainedTokenizerFast", **found}


def clip_files(context_length: int) -> dict[str, bytes]:
  """Returns a CLIPTokenizer's files, made from the byte-pair table."""
  vocabulary = tokenizer_lib.vocabulary()
  merges = tokenizer_lib.merges_text().splitlines()
  special = {
    "bos_token": _START,
    "eos_token": _END,
    "pad_token": _END,
    "unk_token": _END,
  }
  config = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": context_length,
    "do_lower_case": True,
    "errors": "replace",
    **special,
  }
  engine = _clip_engine(vocabulary, merges[1:])
  return {
    VOCAB: _json(vocabulary),
    # transformers skips the first line, the table's version.
    MERGES: "\n".join(["#version: 0.2", *merges[1:], ""]).encode(),
    FAST: engine.to_str().encode(),
    CONFIG: _json(config),
    SPECIAL: _json(special),
  }


def _clip_engine(vocabulary, merges) -> tokenizers.Tokenizer:
  engine = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=vocabulary,
      merges=[tuple(line.split(" ")) for line in merges],
      continuing_subword_prefix="",
      end_of_word_suffix="</w>",
      unk_token=_END,
    )
  )
  engine.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.NFC(),
      tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
      tokenizers.normalizers.Lowercase(),
    ]
  )
  engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(_PIECES), behavior="removed", invert=True
      ),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  engine.decoder = tokenizers.decoders.ByteLevel()
  engine.post_processor = tokenizers.processors.RobertaProcessing(
    (_END, vocabulary[_END]),
    (_START, vocabulary[_START]),
    trim_offsets=False,
    add_prefix_space=False,
  )
  engine.add_special_tokens(
    [
      tokenizers.AddedToken(token, normalized=False, special=True)
      for token in (_START, _END)
    ]
  )
  return engine


def _json(value: Any) -> bytes:
  return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
