"""Tokenizer files of a HuggingFace directory, both ways."""

from typing import Any

from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import report as report_lib
from clip_jax.convert import tokenizer_files
from clip_jax.convert.formats import huggingface_clip_bpe as clip_bpe

CONFIG, SPECIAL = clip_bpe.CONFIG, clip_bpe.SPECIAL
FAST, VOCAB, MERGES = clip_bpe.FAST, clip_bpe.VOCAB, clip_bpe.MERGES
WORDS = "vocab.txt"  # BERT's.
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_SIGLIP_END_ID = 1
_MAX_DIGITS = 9  # Of an id.
_GEMMA_VOCAB = 256_000  # SigLIP 2's, which pads with 0; SigLIP's pads with 1.


def _checked(found, files, text, report) -> dict[str, Any]:
  """Returns a description, after its fields are noted and compared."""
  config = clip_bpe.read_object(files, CONFIG)
  if config.get("padding_side") == "left":
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


def clip(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of CLIP's tokenizer, or of another in a file.

  Args:
    files: of `tokenizer_files.carry`.
    text: the description of the text tower.
    report: takes the fields and where they come from.
  """
  found = _describe_clip(files, text, report, clip_bpe.is_clips(files))
  return _checked(found, files, text, report)


def file_of_clip(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of a file where nothing says that it is CLIP's."""
  known = clip_bpe.is_clips(files)
  if known is None and FAST in files:
    known = False
  return _checked(
    _describe_clip(files, text, report, known), files, text, report
  )


def _describe_clip(files, text, report, known) -> dict[str, Any]:
  if known is False and FAST in files:
    start, end = tokenizer_files.controls(files[FAST], FAST)
    return {
      "kind": "hf_json",
      "cleaning": "none",  # The file has its own.
      "pad_id": _pad_id(files, default=0, report=report),
      "start_id": start,
      "end_id": end,
      "file": FAST,
    }
  if known is False:
    raise errors.UserError(
      f"{VOCAB} and {MERGES} are not CLIP's, and there is no {FAST}. Load the "
      "tokenizer with transformers and save it again: that writes one."
    )
  if known is None:
    small = text["vocab_size"] < tokenizer_lib.VOCAB_SIZE
    report.warnings.append(
      "There are no tokenizer files: texts are tokenized as CLIPTokenizer "
      f"does with CLIP's own vocabulary of {tokenizer_lib.VOCAB_SIZE}"
      + (f", but this model has {text['vocab_size']}." if small else ".")
    )
  found = {
    "kind": "clip_bpe",
    "cleaning": "hf_clip",
    # What follows the end token changes nothing in a causal tower.
    "pad_id": _pad_id(files, default=tokenizer_lib.END_ID, report=report),
    "start_id": tokenizer_lib.START_ID,
    "end_id": tokenizer_lib.END_ID,
  }
  source = "format" if known is None else "config"
  for field in ("kind", "start_id", "end_id"):
    report.infer(f"tokenizer.{field}", found[field], source)
  return found


def siglip(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of SigLIP's tokenizer, as `clip` does of CLIP's."""
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
    "pad_id": _pad_id(files, default=0 if second else 1, report=report),
    "start_id": start,
    "end_id": end,
    "file": name,
  }
  return _checked(found, files, text, report)


def _pad_id(files, *, default: int, report: report_lib.Report) -> int:
  """Returns the id of the padding token, and notes where it comes from."""
  config = clip_bpe.read_object(files, CONFIG)
  token = config.get(
    "pad_token", clip_bpe.read_object(files, SPECIAL).get("pad_token")
  )
  if isinstance(token, dict):
    token = token.get("content")
  if isinstance(token, str):
    for known in _token_ids(files, config):
      if type(known.get(token)) is int:
        return report.infer("tokenizer.pad_id", known[token], "config")
    if files.keys() & {FAST, VOCAB}:
      report.warnings.append(
        f"The padding token {token!r:.50} has no id in the tokenizer's files; "
        f"rows are padded with {default}."
      )
  return report.infer("tokenizer.pad_id", default, "format")


def _token_ids(files, config):
  """Yields tables of tokens' ids, the most specific first."""
  added = config.get("added_tokens_decoder")
  if isinstance(added, dict):
    yield {
      content: int(i)
      for i, entry in added.items()
      if (content := _content(entry)) is not None
      and i.isdecimal()
      and len(i) <= _MAX_DIGITS
    }
  listed = clip_bpe.read_object(files, FAST).get("added_tokens")
  if isinstance(listed, list):
    yield {
      content: entry.get("id")
      for entry in listed
      if (content := _content(entry)) is not None
    }
  yield clip_bpe.vocabulary(files) or {}


def _content(entry) -> str | None:
  content = entry.get("content") if isinstance(entry, dict) else None
  return content if isinstance(content, str) else None


def files_for(
  spec: dict[str, Any], files: dict[str, bytes], report: report_lib.Report
) -> dict[str, bytes]:
  """Returns the tokenizer's files of a directory for transformers.

  Those that came with the model, where transformers knows them; else new ones
  for CLIP's own vocabulary.
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
    return clip_bpe.files(length)
  source = described.get("file")
  if not kept.keys() & {FAST, WORDS, *SENTENCEPIECE} and source in files:
    kept[SENTENCEPIECE[0]] = files[source]
  if CONFIG not in kept and kept:
    kept[CONFIG] = clip_bpe.to_json(_config(described, length))
  if not kept:
    report.warnings.append(
      "The tokenizer's files are not part of the source: the directory has "
      "none, and transformers needs some from elsewhere."
    )
  return kept


def _config(tokenizer: dict[str, Any], length: int) -> dict[str, Any]:
  found = {"model_max_length": length, "padding_side": "right"}
  if tokenizer["kind"] == "wordpiece":
    lower = tokenizer["lowercase"]
    return {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, **found}
  if tokenizer["kind"] == "sentencepiece":
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return {
      "tokenizer_class": "SiglipTokenizer",
      "do_lower_case": True,
      "model_input_names": ["input_ids"],
      **special,
      **found,
    }
  return {"tokenizer_class": "PreTrainedTokenizerFast", **found}
