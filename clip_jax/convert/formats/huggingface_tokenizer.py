"""Reads and writes the tokenizers of HuggingFace's CLIP and SigLIP directories.

Many models use the class of CLIP's tokenizer with other tables: a tokenizer is
taken for CLIP's only if every step in its files is the same.
"""

import json
from collections.abc import Iterator
from typing import Any

from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import report as report_lib
from clip_jax.convert import tokenizer_files
from clip_jax.convert.tokenizer_files import (
  CONFIG,
  FAST,
  MERGES,
  SENTENCEPIECE,
  SPECIAL,
  VOCAB,
  WORDS,
  read_object,
)

_SIGLIP_END_ID = 1
_GEMMA_VOCAB = 256_000  # SigLIP 2's, which pads with 0; SigLIP's pads with 1.
_START, _END = "<|startoftext|>", "<|endoftext|>"
# A difference that changes no ids: transformers 5 has the control tokens in
# front of CLIP's pieces; texts never become control tokens here.
_SILENT = (
  (json.dumps(r"<\|startoftext\|>|<\|endoftext\|>|")[1:-1], ""),
  ('"trim_offsets":false', '"trim_offsets":true'),
)


def clip(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of CLIP's tokenizer, or of the one in the files.

  Args:
    files: the result of `tokenizer_files.carry`.
    text: the description of the text tower.
    report: the report to write to.
  """
  known = is_clips(files)
  if known is False:
    if FAST not in files:
      raise errors.UserError(
        f"{VOCAB} and {MERGES} are not CLIP's, and there is no {FAST}. Load "
        "the tokenizer with transformers and save it again: that writes one."
      )
    start, end = tokenizer_files.controls(files[FAST], FAST)
    found = {
      "kind": "hf_json",
      "cleaning": "none",  # The file has its own.
      "pad_id": _pad_id(files, 0, report),
      "start_id": start,
      "end_id": end,
      "file": FAST,
    }
    return _checked(found, files, text, report)
  if known is None:
    small = text["vocab_size"] < tokenizer_lib.VOCAB_SIZE
    report.warnings.append(
      "There are no tokenizer files: texts are tokenized as CLIPTokenizer "
      f"does with CLIP's own vocabulary of {tokenizer_lib.VOCAB_SIZE}"
      + (f", but this model has {text['vocab_size']}." if small else ".")
    )
  found = dict(tokenizer_files.CLIP)
  for field, value in found.items():
    report.infer(f"tokenizer.{field}", value, "config" if known else "format")
  found["cleaning"] = "hf_clip"
  # Padding after the end token has no effect in a causal tower.
  found["pad_id"] = _pad_id(files, tokenizer_lib.END_ID, report)
  return _checked(found, files, text, report)


def siglip(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of SigLIP's tokenizer; arguments as of `clip`."""
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
  start, end = None, None
  if name == FAST and name in files:
    start, end = tokenizer_files.controls(files[FAST], FAST)
  if start is None:
    report.infer("tokenizer.start_id", start, "format")
  if end is None:
    end = report.infer("tokenizer.end_id", _SIGLIP_END_ID, "format")
  found = {
    "kind": "hf_json" if name == FAST else "sentencepiece",
    # SigLIP 2 was trained on lower case, whatever older files say
    # (transformers#43101).
    "cleaning": "hf_lower" if second else "hf_siglip",
    "pad_id": _pad_id(files, 0 if second else 1, report),
    "start_id": start,
    "end_id": end,
    "file": name,
  }
  return _checked(found, files, text, report)


def _checked(found, files, text, report) -> dict[str, Any]:
  """Returns `found`, after its fields were checked and reported."""
  if read_object(files, CONFIG).get("padding_side") == "left":
    report.warnings.append(
      f"{CONFIG} says padding_side='left'; rows are padded on the right here, "
      "as every CLIP and SigLIP was trained."
    )
  report.infer("tokenizer.cleaning", found["cleaning"], "format")
  source = "config" if found.get("file", VOCAB) in files else "format"
  for field, value in found.items():
    if f"tokenizer.{field}" not in report.inferred:
      report.infer(f"tokenizer.{field}", value, source)
  tokenizer_files.check_ids(found, text["vocab_size"], "The tokenizer")
  return found


def _pad_id(files, default: int, report: report_lib.Report) -> int:
  """Returns the id of the padding token, and reports its source."""
  token = tokenizer_files.pad_token(files)
  if isinstance(token, str):
    found = tokenizer_files.token_id(files, token)
    if found is not None:
      return report.infer("tokenizer.pad_id", found, "config")
    if files.keys() & {FAST, VOCAB}:
      report.warnings.append(
        f"The padding token {token!r:.50} has no id in the tokenizer's files; "
        f"rows are padded with {default}."
      )
  return report.infer("tokenizer.pad_id", default, "format")


def is_clips(files: dict[str, bytes]) -> bool | None:
  """Whether the files give CLIP's ids; None if none of them can say."""
  if FAST in files:
    return _is_clips_engine(files[FAST])
  found = []
  if VOCAB in files:
    found.append(read_object(files, VOCAB) == tokenizer_lib.vocabulary())
  if MERGES in files:
    lines = [x.decode("utf-8", "replace") for x in files[MERGES].splitlines()]
    lines = [line for line in lines if line.strip()]
    found.append(lines[1:] == _merges())  # The first names a version.
  return all(found) if found else None


def _is_clips_engine(data: bytes) -> bool:
  file = tokenizer_lib.read_json(data)
  theirs = _steps(file.engine.to_str())
  ours = _steps(tokenizer_lib.huggingface_clip())
  added = {token["content"] for token in theirs["added_tokens"]}
  return (
    all(theirs[x] == ours[x] for x in ("normalizer", "pre_tokenizer", "model"))
    and added <= {_START, _END}
    and file.controls() == ((tokenizer_lib.START_ID,), (tokenizer_lib.END_ID,))
  )


def _steps(text: str) -> dict[str, Any]:
  """Returns the relevant parts of a tokenizer.json in a normal form."""
  for spelling, usual in _SILENT:
    text = text.replace(spelling, usual)
  found = json.loads(text)
  model = found["model"]
  # Each byte is a token, so there are no unknown tokens.
  model |= {"unk_token": None, "fuse_unk": False}
  for field in ("dropout", "continuing_subword_prefix"):
    model[field] = model.get(field) or None
  return found


def _merges() -> list[str]:
  return tokenizer_lib.merges_text().splitlines()[1:]


def files_for(
  spec: dict[str, Any], files: dict[str, bytes], report: report_lib.Report
) -> dict[str, bytes]:
  """Returns the tokenizer's files for a directory of transformers.

  They are the files that came with the model, if transformers reads them; else
  new ones for CLIP's own vocabulary.
  """
  names = tokenizer_files.NAMES
  kept = {name: data for name, data in files.items() if name in names}
  described = spec["tokenizer"]
  length = spec["text"]["context_length"]
  if described["kind"] == "clip_bpe" and not kept.keys() & {FAST, VOCAB}:
    if (cleaning := described.get("cleaning", "clip")) != "hf_clip":
      report.warnings.append(
        f"tokenizer.cleaning={cleaning!r} here, 'hf_clip' in HuggingFace's "
        "CLIPTokenizer: HTML entities and mis-decoded letters give other ids "
        "there."
      )
    return clips_files(length)
  source = described.get("file")
  if not kept.keys() & {FAST, WORDS, *SENTENCEPIECE} and source in files:
    kept[SENTENCEPIECE[0]] = files[source]
  if CONFIG not in kept and kept:
    kept[CONFIG] = _to_json(_config(described, length))
  if not kept:
    report.warnings.append(
      "The tokenizer's files are not part of the source: the directory has "
      "none, and transformers needs some from elsewhere."
    )
  return kept


def deviations(spec: dict[str, Any], there: dict[str, Any]) -> Iterator[str]:
  """Yields where a tokenizer, written and read as `there`, gives other ids.

  `files_for` has told what CLIP's own cleans otherwise.
  """
  here = spec["tokenizer"]
  if here["kind"] == "clip_bpe":
    usual = {**tokenizer_files.CLIP, "pad_id": 0}
    here = {**usual, **here, "cleaning": there["cleaning"]}
  text = spec["text"]
  if text.get("causal") and text["pooling"] in ("argmax", "eos"):
    # Nothing after the end token reaches the embedding.
    here = {**here, "pad_id": there["pad_id"]}
  for field in ("cleaning", "start_id", "end_id", "pad_id"):
    if here[field] != there[field]:
      yield (
        f"tokenizer.{field}={here[field]!r} here, {there[field]!r} as "
        "HuggingFace's tokenizer has it: texts get other ids there."
      )


def _config(tokenizer: dict[str, Any], length: int) -> dict[str, Any]:
  found = {"model_max_length": length, "padding_side": "right"}
  if tokenizer["kind"] == "wordpiece":
    lower = tokenizer["lowercase"]
    return {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, **found}
  if tokenizer["kind"] == "sentencepiece":
    return {
      **{"tokenizer_class": "SiglipTokenizer", "do_lower_case": True},
      "model_input_names": ["input_ids"],
      **{"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
      **found,
    }
  return {"tokenizer_class": "PreTrainedTokenizerFast", **found}


def clips_files(context_length: int) -> dict[str, bytes]:
  """Returns a CLIPTokenizer's files, made from the byte-pair table."""
  import transformers  # Imported only here, since it takes a second.

  vocabulary, merges = tokenizer_lib.vocabulary(), _merges()
  special = {"bos_token": _START}
  special |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), _END)
  config = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": context_length,
    "do_lower_case": True,
    "errors": "replace",
    **special,
  }
  pairs: Any = [tuple(line.split(" ")) for line in merges]
  engine = transformers.CLIPTokenizer(
    vocab=vocabulary, merges=pairs
  ).backend_tokenizer
  return {
    VOCAB: _to_json(vocabulary),
    # transformers skips the first line, the table's version.
    MERGES: "\n".join(["#version: 0.2", *merges, ""]).encode(),
    FAST: engine.to_str().encode(),
    CONFIG: _to_json(config),
    SPECIAL: _to_json(special),
  }


def _to_json(value: Any) -> bytes:
  return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
