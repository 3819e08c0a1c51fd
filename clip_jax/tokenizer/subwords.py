"""Tokenizers that come with a model, read from their files."""

from collections.abc import Iterator, Sequence

import tokenizers

from clip_jax import errors, json_text, versions

_UNKNOWN = "[UNK]"  # BERT's, which a vocab.txt must have.


class Subwords:
  """Encodes with the `tokenizers` library.

  A caption cannot forge control tokens: typed ones are text, as far as the
  model can spell them, and are left out where they are a piece of it.

  Attributes:
    engine: the library's.
    padding: how the file pads, if it says.
    vocab_size: one more than the largest id; some below it may be no token's.
  """

  def __init__(self, engine: tokenizers.Tokenizer, *, unknown: str | None):
    self.padding = engine.padding
    engine.no_padding()
    engine.no_truncation()
    engine.encode_special_tokens = True
    self.engine = engine
    self.vocab_size = 1 + max(engine.get_vocab().values(), default=-1)
    self._control = {
      i
      for i, token in engine.get_added_tokens_decoder().items()
      if token.special and token.content != unknown
    }

  def encode(self, lines: Iterator[str], *, room: int) -> list[int]:
    """Returns at most `room` ids of the text."""
    text = " ".join(lines)
    ids = self.engine.encode(text, add_special_tokens=False).ids
    return [i for i in ids if i not in self._control][:room]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`."""
    return self.engine.decode(list(ids))

  def controls(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids that the file puts before and after a text."""
    probe = "a"
    bare = self.engine.encode(probe, add_special_tokens=False).ids
    full = self.engine.encode(probe, add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
      if full[start : start + len(bare)] == bare:
        return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


class SentencePiece:
  """Encodes with the `sentencepiece` library, the format's own."""

  def __init__(self, data: bytes):
    try:
      import sentencepiece
    except ImportError:
      raise errors.UserError(
        "A SentencePiece vocabulary needs the library that reads it: "
        f"{versions.install('sentencepiece')}."
      ) from None
    self._model = sentencepiece.SentencePieceProcessor()
    self._model.LoadFromSerializedProto(data)
    if not self._model.get_piece_size():
      raise ValueError("it has no pieces")

  @property
  def vocab_size(self) -> int:
    """The number of ids."""
    return self._model.get_piece_size()

  def encode(self, lines: Iterator[str], *, room: int) -> list[int]:
    """Returns at most `room` ids of the text."""
    return self._model.encode(" ".join(lines))[:room]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`."""
    return self._model.decode([int(i) for i in ids])


def read_sentencepiece(data: bytes, **_: object) -> SentencePiece:
  """Returns the tokenizer of a SentencePiece `.model`."""
  return SentencePiece(data)


def read_json(data: bytes, **_: object) -> Subwords:
  """Returns the tokenizer of a HuggingFace `tokenizer.json`."""
  engine = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
  if isinstance(engine.model, tokenizers.models.Unigram):
    # The library does not tell this model's.
    unknown_id = json_text.parse(data)["model"].get("unk_id")
    unknown = None if unknown_id is None else engine.id_to_token(unknown_id)
  else:
    unknown = engine.model.unk_token
  return Subwords(engine, unknown=unknown)


def read_wordpiece(data: bytes, *, lowercase: bool) -> Subwords:
  """Returns BERT's tokenizer of a `vocab.txt`, a token a line.

  `lowercase` also takes accents off, as in the original BERT.
  """
  # Python's readers end a line at these; splitlines() would at others, too.
  text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
  tokens = text.removesuffix("\n").split("\n")
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if _UNKNOWN not in vocabulary:
    raise ValueError(f"there is no token {_UNKNOWN} in it")
  engine = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocabulary, unk_token=_UNKNOWN)
  )
  engine.normalizer = tokenizers.normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=True,
    strip_accents=None,  # If it lowers the case.
    lowercase=lowercase,
  )
  engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  engine.decoder = tokenizers.decoders.WordPiece(prefix="##")
  return Subwords(engine, unknown=_UNKNOWN)
