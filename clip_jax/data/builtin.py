"""Built-in data: real handwritten digits that come with the package.

The scans are 1,797 of 8 x 8 pixels with 17 levels of grey: the test part of the
UCI set "Optical Recognition of Handwritten Digits" (`assets/digits.npz`, its
licence beside it). Nothing is downloaded.

- `builtin:digits/{train,test}`: single scans, labels 0 to 9.
- `builtin:two_digits/{train,test,unseen}`: two scans side by side, whose
  caption names the number they form, so that word order matters. 20 of the 100
  numbers occur neither in `train` nor in `test`, only in `unseen`.
- `builtin:tinted_digits/{train,test,unseen}`: a scan in one of eight colours,
  whose caption names both among words that are not of the picture, in any
  order. 16 of the 80 pairs are not in `train`; `unseen` has these alone, and
  `test` all 80. For the comparison of objectives (paper, section 2.3): a bag of
  words, which sees no order, can learn all of it.
"""

import functools
import hashlib
import importlib.resources
import io
import zipfile

import numpy as np
from PIL import Image

from clip_jax import errors, npy_header
from clip_jax.data import record as record_lib

WORDS = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)
SCANS_FILE = "digits.npz"  # In assets.
IMAGE_SIZE = 32
# Numbers 10 * a + b that are kept out of `train` and `test`: two of every row
# and two of every column of the 10 x 10 table, so that each digit is still
# seen in both positions, 8 times each.
UNSEEN_NUMBERS = tuple(
  sorted(
    10 * a + (3 * a + shift) % 10 for a in range(len(WORDS)) for shift in (1, 5)
  )
)

COLOURS = {
  "red": (255, 40, 40),
  "green": (40, 200, 40),
  "blue": (60, 80, 255),
  "yellow": (240, 220, 40),
  "orange": (255, 140, 20),
  "purple": (160, 50, 200),
  "white": (255, 255, 255),
  "brown": (140, 80, 40),
}
# Pairs 10 * colour + digit that only `test` and `unseen` have: two of every
# colour, and at least one of every digit.
UNSEEN_PAIRS = tuple(
  sorted(
    10 * a + (3 * a + shift) % 10
    for a in range(len(COLOURS))
    for shift in (1, 5)
  )
)
# What captions say besides, the first word most often (Zipf's law).
_WORDS = (
  "photo new house garden street music summer city school winter morning river "
  "kitchen family holiday beach market paper window mountain coffee flower "
  "train animal bridge forest table museum island church wedding party dinner "
  "camera castle village ocean spring station football theatre library airport "
  "birthday sunset bicycle guitar lake desert hotel farm tower sky boat chair "
  "cloud dress engine field glass hat iron jacket lamp mirror needle painting "
  "queen road shoe tree uncle valley water yard apple bread cheese dance earth "
  "fire grass horse ice jungle king letter moon nest office pepper rain snow"
)
DISTRACTORS = tuple(_WORDS.split())
_DISTRACTORS_OF_A_CAPTION = (2, 6)

_TRAIN_TEMPLATES = {
  "tinted_digits": ("{}",),
  "digits": (
    "a photo of the digit {}.",
    "a scan of the handwritten digit {}.",
    "the digit {}, written by hand.",
    "a small grey picture of {}.",
    "somebody wrote the figure {}.",
  ),
  # The number stands early, late and alone, so that the order of its words is
  # learnt and not their places.
  "two_digits": (
    "a photo of the number {}",
    "a photo of a {}.",
    "{}",
    "a scan of the handwritten number {}.",
    "the number {}, written by hand.",
    "somebody wrote the figures {}.",
    "{} in white on black.",
    "the digits {} side by side.",
  ),
}
# For evaluation. None of them is a training caption, but all their words are:
# others would have embeddings that no update ever moved, and move classes by
# chance.
_EVAL_TEMPLATES = {
  "tinted_digits": ("{}",),
  "digits": (
    "a picture of the figure {}.",
    "the handwritten digit {}.",
    "a small scan of {}.",
  ),
  "two_digits": (
    "a photo of the figures {}.",
    "a scan of the digits {}.",
    "the handwritten number {} in white.",
  ),
}
_TWO_DIGITS_LENGTH = {"train": 20_000, "test": 2_000, "unseen": 1_000}
_TINTED_LENGTH = {"train": 20_000, "test": 800, "unseen": 400}
SPLITS = {
  "digits": ("train", "test"),
  "tinted_digits": tuple(_TINTED_LENGTH),
  "two_digits": tuple(_TWO_DIGITS_LENGTH),
}


@functools.cache
def scans() -> tuple[np.ndarray, np.ndarray]:
  """Returns the scans, uint8 (1797, 8, 8), and their digits."""
  asset = importlib.resources.files("clip_jax") / "assets" / SCANS_FILE
  with asset.open("rb") as file, zipfile.ZipFile(file) as arrays:
    images, digits = (
      npy_header.array(arrays.read(f"{name}.npy"))
      for name in ("images", "digits")
    )
  # 0..16 to 0..255, rounded down: an exact integer rule.
  images = (images.astype(np.uint16) * 255 // 16).astype(np.uint8)
  return images, digits.astype(np.int64)


@functools.cache
def scan_ids(split: str) -> tuple[np.ndarray, ...]:
  """Returns the scan numbers of every digit: 4 of 5 for train, 1 for test."""
  _, digits = scans()
  permutation = np.random.Generator(np.random.Philox(key=[1797, 8])).permutation
  ids = []
  for digit in range(len(WORDS)):
    of_digit = permutation(np.flatnonzero(digits == digit))
    cut = len(of_digit) * 4 // 5
    ids.append(of_digit[:cut] if split == "train" else of_digit[cut:])
  return tuple(ids)


@functools.cache
def _enlarged(scan: int, size: int) -> np.ndarray:
  """Returns a scan by its number, enlarged; nobody may change it."""
  image = Image.fromarray(scans()[0][scan])
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _png(pixels: np.ndarray) -> bytes:
  image = Image.fromarray(pixels)
  buffer = io.BytesIO()
  image.save(buffer, "PNG", compress_level=1)
  return buffer.getvalue()


class _Builtin:
  """What both sets share: templates, captions and a cache of made records."""

  class_names: tuple[str, ...]

  def __init__(self, name: str, split: str):
    self.split = split
    self.templates = _EVAL_TEMPLATES[name]
    shown = _EVAL_TEMPLATES if split != "train" else _TRAIN_TEMPLATES
    self._captions = shown[name]
    self._records: dict[int, record_lib.Record] = {}
    images, digits = scans()
    digest = hashlib.sha256(f"{name}/{split} 1".encode())
    digest.update(images.tobytes() + digits.tobytes())
    self.fingerprint = digest.hexdigest()

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_records": {}}

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    # A record is a pure function of its index: if two threads make the same
    # one at once, either will do.
    record = self._records.get(index)
    if record is None:
      record = self._records[index] = self._make(index)
    return record

  def _make(self, index: int) -> record_lib.Record:
    raise NotImplementedError

  def __len__(self) -> int:
    raise NotImplementedError

  def _texts(self, name: str) -> tuple[str, ...]:
    return tuple(template.format(name) for template in self._captions)


class Digits(_Builtin):
  """Single scans, enlarged to 32 x 32 pixels."""

  class_names = WORDS

  def __init__(self, split: str):
    super().__init__("digits", split)
    self._ids = np.sort(np.concatenate(scan_ids(split)))

  def __len__(self) -> int:
    return len(self._ids)

  def _make(self, index: int) -> record_lib.Record:
    scan = int(self._ids[index])
    label = int(scans()[1][scan])
    return record_lib.Record(
      image=_png(_enlarged(scan, IMAGE_SIZE)),
      texts=self._texts(WORDS[label]),
      key=f"scan{scan:04d}",
      label=label,
    )


class TwoDigits(_Builtin):
  """Two scans side by side; record `i` is drawn from its index alone."""

  class_names = tuple(f"{a} {b}" for a in WORDS for b in WORDS)

  def __init__(self, split: str):
    super().__init__("two_digits", split)
    unseen = np.isin(np.arange(100), UNSEEN_NUMBERS)
    self._numbers = np.flatnonzero(unseen == (split == "unseen"))
    self._split_id = tuple(_TWO_DIGITS_LENGTH).index(split)

  def __len__(self) -> int:
    return _TWO_DIGITS_LENGTH[self.split]

  def _make(self, index: int) -> record_lib.Record:
    rng = np.random.Generator(np.random.Philox(key=[self._split_id, index]))
    # Every number occurs equally often.
    label = int(self._numbers[index % len(self._numbers)])
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    ids = scan_ids("train" if self.split == "train" else "test")
    half, chosen = IMAGE_SIZE // 2, []
    for position, digit in enumerate(divmod(label, 10)):
      chosen.append(int(ids[digit][rng.integers(len(ids[digit]))]))
      top, left = rng.integers(half // 4, half * 3 // 4 + 1), position * half
      scan = _enlarged(chosen[-1], half)
      canvas[top : top + half, left : left + half] = scan
    return record_lib.Record(
      image=_png(canvas),
      texts=self._texts(self.class_names[label]),
      key=f"{index:05d}_scan{chosen[0]:04d}_scan{chosen[1]:04d}",
      label=label,
    )


class TintedDigits(_Builtin):
  """A scan in a colour; record `i` is drawn from its index alone."""

  class_names = tuple(f"{a} {b}" for a in COLOURS for b in WORDS)

  def __init__(self, split: str):
    super().__init__("tinted_digits", split)
    pairs = np.arange(len(self.class_names))
    unseen = np.isin(pairs, UNSEEN_PAIRS)
    chosen = {"train": ~unseen, "test": pairs >= 0, "unseen": unseen}
    self._pairs = np.flatnonzero(chosen[split])
    # Apart from the numbers that TwoDigits draws.
    self._split_id = 10 + tuple(_TINTED_LENGTH).index(split)

  def __len__(self) -> int:
    return _TINTED_LENGTH[self.split]

  def _make(self, index: int) -> record_lib.Record:
    rng = np.random.Generator(np.random.Philox(key=[self._split_id, index]))
    # Every pair occurs equally often.
    label = int(self._pairs[index % len(self._pairs)])
    colour, digit = divmod(label, len(WORDS))
    ids = scan_ids("train" if self.split == "train" else "test")[digit]
    scan = int(ids[rng.integers(len(ids))])
    size = IMAGE_SIZE * 3 // 4
    top, left = rng.integers(0, IMAGE_SIZE - size + 1, 2)
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint16)
    tint = np.array(list(COLOURS.values())[colour], np.uint16)
    canvas[top : top + size, left : left + size] = (
      _enlarged(scan, size)[:, :, None].astype(np.uint16) * tint // 255
    )
    low, high = _DISTRACTORS_OF_A_CAPTION
    shares = 1 / np.arange(1, len(DISTRACTORS) + 1)
    others = rng.choice(
      DISTRACTORS,
      rng.integers(low, high + 1),
      replace=False,
      p=shares / shares.sum(),
    )
    words = [*self.class_names[label].split(), *map(str, others)]
    return record_lib.Record(
      image=_png(canvas.astype(np.uint8)),
      texts=(" ".join(words[i] for i in rng.permutation(len(words))),),
      key=f"{index:05d}_scan{scan:04d}",
      label=label,
    )


_SETS = {
  "digits": Digits,
  "tinted_digits": TintedDigits,
  "two_digits": TwoDigits,
}


def open_builtin(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens `NAME/SPLIT`."""
  assert not options
  name, _, split = path.partition("/")
  if name not in SPLITS:
    raise errors.unknown("built-in data set", name, SPLITS)
  if split not in SPLITS[name]:
    known = [f"builtin:{name}/{known}" for known in SPLITS[name]]
    raise errors.unknown("built-in split", f"builtin:{path}", known)
  return _SETS[name](split)
