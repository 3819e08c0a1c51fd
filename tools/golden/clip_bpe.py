"""Golden hashes of OpenAI's tokenizer on 20,000 odd captions.

    PYTHONPATH=DIRECTORY python tools/golden/clip_bpe.py

with DIRECTORY from `pip install --no-deps --target DIRECTORY openai-clip`,
writes tests/golden/clip_bpe_fuzz.json.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import random
from collections.abc import Callable

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden/clip_bpe_fuzz.json"
COUNT = 20_000
CHUNK = 100  # Captions a hash.
CONTEXT_LENGTH = 77
START_ID, END_ID = 49406, 49407

_WORDS = (
  "a photo of the cat Dogs running HOUSE zebra skateboard Schwarzwälder "
  "café naïve İstanbul Ὀδυσσεύς ΣΑΣ straße ﬁne ﬂour ½ ² Ⅷ 42 3.14 2,000 "
  "1e-5 don't DON'T we'll They'RE i'm 's '\u017f it\u2018s "
  "\u2018quoted\u2019 \u201cdouble\u201d http://example.com/a?b=c&d=e #tag "
  "@user C++ :-) ... -- _under_score_ $5 50% Ã©tÃ© â€œmojibakeâ€\x9d "
  "schÃ¶n Â£5 ï»¿bom ЊÐ¾Ð² \uff26\uff35\uff2c\uff2c width\uff11\uff12 👍🏽 "
  "👨\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 漢字 ひらがな 한국어 ไทย हिन्दी العربية "
  "עברית &amp; &lt; &gt; &quot; &amp;amp; &amp;lt;b&amp;gt; &#39; &#x27; "
  "&#65 &eacute &nbsp; &notanentity; &#0; &#1114112; <b> </i> <br/> <|x|> "
  "<| |> < > \x1b[1m \x00 \x7f \x85 \ufeff \u200b \u200d \xad \ufffd "
  "e\u0301 A\u030a"
)
WORDS = _WORDS.split(" ")
SPACES = (*[" "] * 9, "", "  ", "\n", "\r\n", "\t", "\xa0", "\u2028", "\u3000")
# Blocks whose letters, digits and marks no newer Unicode adds to.
RANGES = (
  *[(0x20, 0x7E)] * 4,
  (0x00, 0x1F),
  (0x7F, 0xFF),
  (0x100, 0x17F),
  (0x300, 0x33F),
  (0x391, 0x3A1),
  (0x3A3, 0x3C9),
  (0x400, 0x45F),
  (0x5D0, 0x5EA),
  (0x620, 0x652),
  (0x905, 0x939),
  (0xE01, 0xE3A),
  (0x2010, 0x2027),
  (0x2030, 0x205E),
  (0x2160, 0x217F),
  (0x3041, 0x3096),
  (0x4E00, 0x9FA5),
  (0xAC00, 0xD7A3),
  (0xFB00, 0xFB06),
  (0xFF01, 0xFF5E),
  (0x1F600, 0x1F64F),
)


def captions() -> list[str]:
  """Returns the same captions everywhere: `random()` alone has that promise."""
  draw = random.Random(0).random
  return [_caption(draw) for _ in range(COUNT)]


def _caption(draw: Callable[[], float]) -> str:
  parts = []
  # Most are short; one in eight is longer than a row.
  for _ in range(int(draw() * (12 if draw() < 0.875 else 150))):
    if draw() < 0.75:
      parts.append(WORDS[int(draw() * len(WORDS))])
    else:
      low, high = RANGES[int(draw() * len(RANGES))]
      length = 1 + int(draw() * 4)
      parts += [
        chr(low + int(draw() * (high - low + 1))) for _ in range(length)
      ]
    parts.append(SPACES[int(draw() * len(SPACES))])
  return "".join(parts)


def openai_rows(texts: list[str]) -> list[list[int]]:
  """Returns the rows of `clip.tokenize(texts, truncate=True)`.

  That function is in a module that wants torchvision; the tokenizer is not.
  """
  package = importlib.util.find_spec("clip").submodule_search_locations[0]
  path = pathlib.Path(package) / "simple_tokenizer.py"
  spec = importlib.util.spec_from_file_location("simple_tokenizer", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  encode = module.SimpleTokenizer().encode
  rows = []
  for text in texts:
    ids = [START_ID, *encode(text), END_ID]
    if len(ids) > CONTEXT_LENGTH:
      ids = [*ids[: CONTEXT_LENGTH - 1], END_ID]
    rows.append(ids + [0] * (CONTEXT_LENGTH - len(ids)))
  return rows


def digests(rows: list[list[int]]) -> list[str]:
  """Returns a hash for each `CHUNK` rows."""
  return [
    hashlib.sha256(repr(rows[i : i + CHUNK]).encode()).hexdigest()[:12]
    for i in range(0, len(rows), CHUNK)
  ]


def text_digest(texts: list[str]) -> str:
  """Returns the hash of what was drawn, to tell that it is the same."""
  data = "\n\0".join(texts).encode("utf-8", "surrogatepass")
  return hashlib.sha256(data).hexdigest()[:12]


def main():
  texts = captions()
  versions = [
    f"{name} {importlib.metadata.version(name)}"
    for name in ("openai-clip", "ftfy", "regex")
  ]
  golden = {
    "made_by": ", ".join(versions),
    "captions": text_digest(texts),
    "rows": " ".join(digests(openai_rows(texts))),
  }
  GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main()
