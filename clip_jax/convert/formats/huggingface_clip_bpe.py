"""CLIP's byte-pair encoding as a HuggingFace directory has it, both ways.

Many models keep CLIP's class of tokenizer with tables of their own: what the
files say is CLIP's only if every step of it is.
"""

import json
from typing import Any

from clip_jax import json_text
from clip_jax import tokenizer as tokenizer_lib

CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
FAST = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIPTokenizer's pieces: letters, single digits, signs, English contractions.
# transformers 5 has the control tokens in front, which no text here becomes.
_CONTROLS = r"<\|startoftext\|>|<\|endoftext\|>|"
_TEXT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STEPS = {
  "normalizer": [("NFC",), ("Replace", r"\s+", " "), ("Lowercase",)],
  "pre_tokenizer": [
    ("Split", _TEXT, "removed", True),
    ("ByteLevel", False, True),
  ],
}
# What the model of a tokenizer.json must say, or leave out.
_MODEL = {
  "type": ("BPE",),
  "dropout": (None, 0, 0.0),
  "continuing_subword_prefix": (None, ""),
  "end_of_word_suffix": ("</w>",),
  "byte_fallback": (None, False),
  "ignore_merges": (None, False),
}


def is_clips(files: dict[str, bytes]) -> bool | None:
  """Whether the files make CLIP's own ids; None where none of them says."""
  if FAST in files:
    return _is_clips_engine(files)
  found = []
  if VOCAB in files:
    found.append(read_object(files, VOCAB) == tokenizer_lib.vocabulary())
  if MERGES in files:
    lines = files[MERGES].decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line.strip()]
    found.append(lines[1:] == _merges())  # The first names a version.
  return all(found) if found else None


def _is_clips_engine(files) -> bool | None:
  data = read_object(files, FAST)
  model = data.get("model")
  if not isinstance(model, dict) or "vocab" not in model:
    return None
  merges = model.get("merges")
  if not isinstance(merges, list):
    return False
  spelled = [" ".join(pair) if _is_pair(pair) else pair for pair in merges]
  ours = tokenizer_lib.vocabulary()
  if model["vocab"] != ours or spelled != _merges():
    return False
  if any(model.get(key) not in known for key, known in _MODEL.items()):
    return False
  added = data.get("added_tokens") or []
  if not isinstance(added, list) or not all(
    isinstance(token, dict) and token.get("content") in (_START, _END)
    for token in added
  ):
    return False
  if any(_steps(data.get(part)) != steps for part, steps in _STEPS.items()):
    return False
  controls = tokenizer_lib.file_controls("hf_json", files[FAST])
  return controls == ((tokenizer_lib.START_ID,), (tokenizer_lib.END_ID,))


def _is_pair(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _merges() -> list[str]:
  return tokenizer_lib.merges_text().splitlines()[1:]


def _steps(part: Any) -> list[Any]:
  """Returns what counts of each step of a normalizer or a pre-tokenizer."""
  if not isinstance(part, dict):
    return [part]
  inner = part.get("normalizers", part.get("pretokenizers"))
  if part.get("type") == "Sequence" and isinstance(inner, list):
    return [step for one in inner for step in _steps(one)]
  return [_step(part)]


def _step(part: dict[str, Any]) -> Any:
  kind, pattern = part.get("type"), part.get("pattern")
  pattern = pattern.get("Regex") if isinstance(pattern, dict) else pattern
  if isinstance(pattern, str):
    pattern = pattern.removeprefix(_CONTROLS)
  if kind == "Replace":
    return kind, pattern, part.get("content")
  if kind == "Split":
    behavior = str(part.get("behavior")).lower()
    return kind, pattern, behavior, part.get("invert")
  if kind == "ByteLevel":
    return kind, part.get("add_prefix_space"), part.get("use_regex", True)
  return (kind, *(key for key in part if key != "type"))


def read_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
  """Returns the JSON object in a file, an empty one where there is none.

  Raises:
    UserError: it is damaged.
  """
  if name not in files:
    return {}
  return json_text.parse(files[name], what=name)


def vocabulary(files: dict[str, bytes]) -> dict[str, Any] | None:
  """Returns the ids of the encoding's tokens, if a file has them."""
  if VOCAB in files:
    return read_object(files, VOCAB)
  model = read_object(files, FAST).get("model")
  found = model.get("vocab") if isinstance(model, dict) else None
  return found if isinstance(found, dict) else None


def files(context_length: int) -> dict[str, bytes]:
  """Returns a CLIPTokenizer's files, made from the byte-pair table."""
  import transformers  # Takes a second, which only this is worth.

  vocabulary, merges = tokenizer_lib.vocabulary(), _merges()
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
  engine = transformers.CLIPTokenizer(
    vocab=vocabulary, merges=[tuple(line.split(" ")) for line in merges]
  ).backend_tokenizer
  return {
    VOCAB: to_json(vocabulary),
    # transformers skips the first line, the table's version.
    MERGES: "\n".join(["#version: 0.2", *merges, ""]).encode(),
    FAST: engine.to_str().encode(),
    CONFIG: to_json(config),
    SPECIAL: to_json(special),
  }


def to_json(value: Any) -> bytes:
  """Returns a value as a file's contents."""
  return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
