"""Captions to rows of ids of one length."""

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from clip_jax import errors
from clip_jax.tokenizer import cleaning as cleaning_lib
from clip_jax.tokenizer import clip_bpe, given, subwords, tokenizer_file


class Engine(Protocol):
  """Clean text to ids and back."""

  @property
  def vocab_size(self) -> int:
    """The number of ids."""
    ...

  def encode(self, lines: Iterator[str], *, room: int) -> list[int]:
    """Returns at most `room` ids of the text."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`."""
    ...


_ENGINES: dict[tuple[str, tokenizer_file.File, bool | None], Engine] = {}
_ENGINES_KEPT = 4
_READING = threading.Lock()


def _renew_lock() -> None:
  """Opens the lock in a forked process, where the thread that has it is not."""
  global _READING
  _READING = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)

# Kind -> from a file's contents to its engine. CLIP's own needs no file.
_READERS: dict[str, Callable[..., Engine]] = {
  "sentencepiece": subwords.read_sentencepiece,
  "wordpiece": subwords.read_wordpiece,
  "hf_json": subwords.read_json,
}
KINDS = ("clip_bpe", *_READERS)

# Defaults of CLIP's own kind; the other kinds have none.
_CLIP = {
  "cleaning": "clip",
  "pad_id": 0,
  "start_id": clip_bpe.START_ID,
  "end_id": clip_bpe.END_ID,
}


@dataclasses.dataclass(frozen=True)
class Rows:
  """Texts as ids (n, length), and whether each was cut to fit, (n,)."""

  ids: np.ndarray
  cut: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Turns captions into rows of ids; a few fields, so cheap to pickle.

  A row is the start id, the text, the end id and padding, on the right. A
  longer text is cut so that the end id is the last of the `context_length` ids.

  Attributes:
    kind: one of `KINDS`.
    context_length: the number of ids in a row.
    cleaning: one of `CLEANINGS`, what is done to a text first.
    pad_id: fills up a row.
    start_id: goes before the text; None for nothing.
    end_id: goes after the text; None for nothing.
    file: the name of its file in the model's directory; None for clip_bpe.
    lowercase: of wordpiece: lower the case and take off accents; None of the
      other kinds, whose files say.
    source: the file itself; None if it is missing, so that nothing can be
      encoded.
  """

  kind: str
  context_length: int
  cleaning: str
  pad_id: int
  start_id: int | None
  end_id: int | None
  file: str | None = None
  lowercase: bool | None = None
  source: tokenizer_file.File | None = None

  def __post_init__(self) -> None:
    errors.check_known("tokenizer", self.kind, KINDS)
    errors.check_known("cleaning", self.cleaning, cleaning_lib.CLEANINGS)
    for name in ("pad_id", "start_id", "end_id"):
      value = getattr(self, name)
      optional = value is None and name != "pad_id"
      if not optional and not (type(value) is int and 0 <= value < 2**31):
        raise errors.UserError(f"{name}={value!r} must be an id, 0 or more.")
    controls = (self.start_id is not None) + (self.end_id is not None)
    length = self.context_length
    if not (type(length) is int and length > controls):
      raise errors.UserError(
        f"context_length={length!r} must be a whole number that leaves room "
        f"for text beside the start and the end token, at least {controls + 1}."
      )
    self._check_kind()

  def _check_kind(self):
    if self.kind == "clip_bpe":
      for name in ("start_id", "end_id"):
        if getattr(self, name) != _CLIP[name]:
          raise errors.UserError(
            f"{name}={getattr(self, name)} is not clip_bpe's {_CLIP[name]}."
          )
      if self.file is not None:
        raise errors.UserError(
          f"The tokenizer clip_bpe has no file, got {self.file!r}."
        )
    elif self.file is None:
      raise errors.UserError(
        f"The tokenizer {self.kind} needs the name of its file."
      )
    else:
      tokenizer_file.check_name(self.file)
    if isinstance(self.lowercase, bool) != (self.kind == "wordpiece"):
      raise errors.UserError(
        f"lowercase={self.lowercase} of the tokenizer {self.kind}: it is true "
        "or false for wordpiece, and left out for the others."
      )

  def __call__(self, texts: str | Iterable[str]) -> np.ndarray:
    """Returns int32 ids (len(texts), context_length); one string is one row.

    Raises:
      UserError: a text is no string, or the tokenizer's file is missing.
    """
    return self.rows(texts).ids

  def rows(self, texts: str | Iterable[str]) -> Rows:
    """Returns the ids, and which texts were cut at the context length.

    Raises:
      UserError: a text is no string, or the tokenizer's file is missing.
    """
    texts = given.texts(texts)
    ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
    cut = np.zeros(len(texts), bool)
    start = [] if self.start_id is None else [self.start_id]
    end = [] if self.end_id is None else [self.end_id]
    room = self.context_length - len(start) - len(end)
    for i, text in enumerate(texts):
      lines = cleaning_lib.clean(text, name=self.cleaning)
      with _blaming(self.kind, self.source):
        encoded = self._engine.encode(lines, room=room + 1)
      cut[i] = len(encoded) > room
      row = [*start, *encoded[:room], *end]
      ids[i, : len(row)] = row
    return Rows(ids, cut)

  @property
  def vocab_size(self) -> int:
    """The number of ids, the control tokens among them."""
    return self._engine.vocab_size

  @property
  def fingerprint(self) -> str:
    """The sha256 (hex) of every field and of the file or the merges."""
    fields = {**self.to_dict(), "context_length": self.context_length}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    if self.kind == "clip_bpe":
      digest.update(clip_bpe.merges_text().encode())
    elif self.source is not None:
      digest.update(self.source.sha256.encode())
    return digest.hexdigest()

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that `make_tokenizer` takes, as plain data.

    All but the context length, which is the text tower's, and the file.
    """
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ("context_length", "source")
    }

  def files(self) -> dict[str, bytes]:
    """Returns the files for a model's directory: contents by name.

    Raises:
      UserError: the file is missing.
    """
    if self.file is None:
      return {}
    return {self.file: self._found().read()}

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of one row of ids, up to its end."""
    text = []
    stop = self.pad_id if self.end_id is None else self.end_id
    for i in given.ids(ids):
      if i == stop:
        break
      if not 0 <= i < self.vocab_size:
        raise errors.UserError(
          f"Id {i} is outside the {self.vocab_size} known ids: another "
          "tokenizer made it."
        )
      if i != self.start_id:
        text.append(i)
    with _blaming(self.kind, self.source):
      return self._engine.decode(text)

  @property
  def _engine(self) -> Engine:
    if self.kind == "clip_bpe":
      return _CLIP_ENGINES.get(self.cleaning, _CLIP_ENGINE)
    return _read_engine(self.kind, self._found(), self.lowercase)

  def _found(self) -> tokenizer_file.File:
    if self.source is None:
      raise errors.UserError(
        f"The tokenizer's file {self.file!r} ({self.kind}) is missing: nothing "
        "can be tokenized without it. It lies in the directory that the "
        "checkpoint was published in; put it beside the model's weights, or "
        "convert that directory with `clip-jax convert`."
      )
    return self.source


_CLIP_ENGINE = clip_bpe.ClipBpe()
_CLIP_ENGINES = {"hf_clip": clip_bpe.HuggingFaceClipBpe()}


def make_tokenizer(
  kind: str = "clip_bpe",
  *,
  context_length: int = 77,
  directory: str | os.PathLike | None = None,
  contents: Mapping[str, bytes] | None = None,
  **fields: Any,
) -> Tokenizer:
  """Returns the tokenizer named `kind` for rows of `context_length` ids.

  Args:
    kind: one of `KINDS`.
    context_length: the number of ids in a row.
    directory: a model's, where the tokenizer's file is read from.
    contents: the file by its name, where there is no directory.
    **fields: of `Tokenizer`. "clip_bpe" may leave them out; the other kinds
      have no defaults.

  Raises:
    UserError: a field is unknown, missing or not valid, or the file cannot be
      read. A file that is not there is an error when a text is encoded.
  """
  known = [
    field.name
    for field in dataclasses.fields(Tokenizer)
    if field.name not in ("kind", "context_length", "source")
  ]
  if kind not in KINDS:
    raise errors.unknown("tokenizer", kind, KINDS)
  for name in fields:
    if name not in known:
      raise errors.unknown("tokenizer field", name, known)
  if kind == "clip_bpe":
    fields = {**_CLIP, **fields}
  required = [*_CLIP, *(["file"] if kind != "clip_bpe" else [])]
  if missing := [name for name in required if name not in fields]:
    raise errors.UserError(
      f"The tokenizer {kind} must be given its {', '.join(missing)}."
    )
  source = None
  if kind != "clip_bpe" and fields["file"] is not None:
    source = tokenizer_file.find(
      fields["file"], directory=directory, contents=contents
    )
  return Tokenizer(
    kind=kind, context_length=context_length, source=source, **fields
  )


def read_json(data: bytes) -> subwords.Subwords:
  """Returns the tokenizer of a `tokenizer.json`.

  Raises:
    UserError: it is not a valid one.
  """
  file = tokenizer_file.find(
    "tokenizer.json", contents={"tokenizer.json": data}
  )
  assert file is not None
  engine = _read_engine("hf_json", file, None)
  assert isinstance(engine, subwords.Subwords)
  return engine


def _read_engine(
  kind: str, file: tokenizer_file.File, lowercase: bool | None
) -> Engine:
  """Reads an engine, once a process and on first use."""
  key = kind, file, lowercase
  if (engine := _ENGINES.get(key)) is not None:
    return engine
  options = {} if lowercase is None else {"lowercase": lowercase}
  # Of a large file, each of a loader's threads would take many times its size.
  with _READING:
    if key not in _ENGINES:
      data = file.read()
      with _blaming(kind, file):
        engine = _READERS[kind](data, **options)
      while len(_ENGINES) >= _ENGINES_KEPT:
        del _ENGINES[next(iter(_ENGINES))]
      _ENGINES[key] = engine
    return _ENGINES[key]


@contextlib.contextmanager
def _blaming(kind: str, file: tokenizer_file.File | None) -> Iterator[None]:
  """Turns a library's failure into a UserError that names the file.

  The libraries raise bare exceptions, and a panic in Rust is no `Exception`.
  """
  try:
    yield
  except (errors.UserError, ImportError, MemoryError):
    raise
  except BaseException as error:
    panic = type(error).__name__ == "PanicException"
    if file is None or not (panic or isinstance(error, Exception)):
      raise
    raise errors.UserError(
      f"{file.path or file.name} is no valid file of the tokenizer {kind}: "
      f"{str(error).rstrip('.')}. Fetch or make it again."
    ) from error
