"""Reads the tokenizer's files of a HuggingFace directory."""

import pathlib
from collections.abc import Mapping
from typing import Any

from clip_jax import errors, json_text
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import report as report_lib
from clip_jax.tokenizer import tokenizer_file

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FAST, WORDS = "tokenizer.json", "vocab.txt"
VOCAB, MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
# All files that `AutoTokenizer` looks for.
NAMES = (
  *(FAST, CONFIG, SPECIAL, "added_tokens.json"),
  *(WORDS, VOCAB, MERGES, *SENTENCEPIECE),
)
# CLIP's own tokenizer.
CLIP = {
  "kind": "clip_bpe",
  "start_id": tokenizer_lib.START_ID,
  "end_id": tokenizer_lib.END_ID,
}
# BERT's own, by the vocabulary.
_WORDPIECE = {"start_id": "[CLS]", "end_id": "[SEP]", "pad_id": "[PAD]"}
_MAX_DIGITS = 9  # Of an id.


def carry(directory: pathlib.Path) -> dict[str, bytes]:
  """Returns the tokenizer's files in a directory, by name."""
  return {
    name: file.read()
    for name in NAMES
    if (file := tokenizer_file.find(name, directory=directory)) is not None
  }


def describe(
  files: Mapping[str, bytes],
  *,
  cleaning: str,
  where: str,
  strip_end: bool = False,
  report: report_lib.Report | None = None,
) -> dict[str, Any]:
  """Returns the description of the tokenizer in `files`.

  Args:
    files: the result of `carry`.
    cleaning: one of `tokenizer.CLEANINGS`.
    where: the directory's name in messages.
    strip_end: whether zeros take the place of the end token, as in CLIPA.
    report: gets all fields but the cleaning, and where they come from.

  Raises:
    UserError: the files are not a tokenizer, or not one that is supported.
  """
  settings = read_object(files, CONFIG, where)
  if settings.get("padding_side", "right") != "right":
    raise errors.UserError(
      f"{where}: the tokenizer pads on the "
      f"{settings['padding_side']!r:.20} side; towers here want padding on the "
      "right. Correct padding_side in tokenizer_config.json if it is wrong."
    )
  if FAST in files:
    found = _from_json(files, where)
  elif WORDS in files:
    found = _from_vocabulary(files, settings, where)
  else:
    raise errors.UserError(
      f"{where} has no tokenizer that can be read: it needs tokenizer.json (or "
      f"vocab.txt); it has {', '.join(files) or 'none of its files'}. Put the "
      "tokenizer's files there, as they were published with the model."
    )
  if strip_end and found["end_id"] is not None:
    found["end_id"] = 0
  report = report or report_lib.Report("")
  for field, value in found.items():
    silent = field == "lowercase" and "do_lower_case" not in settings
    report.infer(f"tokenizer.{field}", value, "format" if silent else "config")
  return {**found, "cleaning": cleaning}


def check_ids(tokenizer: dict[str, Any], vocab_size: int, where: str) -> None:
  """Raises UserError if a start, end or padding id is not below `vocab_size`.

  Those of CLIP's own tokenizer are not checked: in a model with another
  vocabulary they are reported when a text is encoded.
  """
  fields = ["pad_id"]
  if tokenizer["kind"] != "clip_bpe":
    fields += ["start_id", "end_id"]
  elif tokenizer["pad_id"] in (0, tokenizer_lib.END_ID):
    fields = []
  for field in fields:
    if tokenizer[field] is not None and tokenizer[field] >= vocab_size:
      raise errors.UserError(
        f"{where}: {field}={tokenizer[field]} is not one of the model's "
        f"{vocab_size} ids (vocab_size); the tokenizer belongs to another "
        "model."
      )


def read_object(
  files: Mapping[str, bytes], name: str, where: str = ""
) -> dict[str, Any]:
  """Returns the JSON object in a file; {} if there is no such file.

  Raises:
    UserError: it is damaged.
  """
  if name not in files:
    return {}
  return json_text.parse(
    files[name], what=f"{where}: {name}" if where else name
  )


def controls(data: bytes, where: str) -> tuple[int | None, int | None]:
  """Returns the ids that a tokenizer.json adds before and after a text.

  Raises:
    UserError: it adds several on one side.
  """
  before, after = tokenizer_lib.read_json(data).controls()
  if len(before) > 1 or len(after) > 1:
    raise errors.UserError(
      f"{where} puts {len(before)} ids before a text and {len(after)} after "
      "it; rows here have one of each at most."
    )
  return before[0] if before else None, after[0] if after else None


def pad_token(files: Mapping[str, bytes], where: str = "") -> Any:
  """Returns the files' value for the padding token: its text, if valid."""
  special, config = (read_object(files, x, where) for x in (SPECIAL, CONFIG))
  token = {**special, **config}.get("pad_token")
  return token.get("content") if isinstance(token, dict) else token


def token_id(files: Mapping[str, bytes], token: str) -> int | None:
  """Returns the id of a token in the files; None if it has none."""
  added = read_object(files, CONFIG).get("added_tokens_decoder")
  for i, entry in added.items() if isinstance(added, dict) else ():
    named = isinstance(entry, dict) and entry.get("content") == token
    if named and i.isdecimal() and len(i) <= _MAX_DIGITS:
      return int(i)
  if FAST in files:
    try:
      return tokenizer_lib.read_json(files[FAST]).engine.token_to_id(token)
    except UnicodeEncodeError:  # Half a character is in no vocabulary.
      return None
  found = read_object(files, VOCAB).get(token)
  return found if type(found) is int else None


def _from_json(files, where) -> dict[str, Any]:
  start, end = controls(files[FAST], f"{where}: the tokenizer")
  token = pad_token(files, where)
  if token is None:
    padding = tokenizer_lib.read_json(files[FAST]).padding
    pad = padding["pad_id"] if padding else None
  else:
    pad = token_id(files, str(token))
  if pad is None:
    raise errors.UserError(
      f"{where}: nothing says which id pads (pad_token={token!r:.50} in "
      "tokenizer_config.json); name a token of the vocabulary there."
    )
  return {
    **{"kind": "hf_json", "file": FAST, "pad_id": pad},
    **{"start_id": start, "end_id": end},
  }


def _from_vocabulary(files, settings, where) -> dict[str, Any]:
  try:
    # Of bytes: those of a text would end at letters of some words, too.
    lines = [line.decode("utf-8") for line in files[WORDS].splitlines()]
  except UnicodeDecodeError as error:
    raise errors.DamagedError(
      f"{where}: vocab.txt is no text ({error}); fetch or make it again."
    ) from None
  missing = [token for token in _WORDPIECE.values() if token not in lines]
  if missing:
    raise errors.UserError(
      f"{where}: vocab.txt lacks {', '.join(missing)}, so it is not BERT's; "
      "put the model's own there."
    )
  lowercase = settings.get("do_lower_case", True)
  if not isinstance(lowercase, bool):
    raise errors.UserError(
      f"{where}: do_lower_case={lowercase!r:.20} must be true or false."
    )
  return {
    **{"kind": "wordpiece", "file": WORDS, "lowercase": lowercase},
    **{field: lines.index(token) for field, token in _WORDPIECE.items()},
  }
