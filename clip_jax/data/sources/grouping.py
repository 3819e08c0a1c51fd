"""Groups rows that have equal names, in a few bytes of memory a row.

Names are compared by hashes of 128 bits, so that they need not be kept: among
400 million names the chance that two have equal hashes is below 1e-21.
"""

import hashlib

import numpy as np

_WORD_BYTES = 8
_AT_ONCE = 2**16  # Names hashed at a time, for bounded memory.
# Longer names are hashed one by one.
_MOST_WORDS = 64
# Odd numbers without a pattern: digits of the square roots of 2 and 3.
_FACTORS = (np.uint64(0x6A09E667F3BCC909), np.uint64(0xBB67AE8584CAA73B))


def hash_names(
  data: bytes, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
  """Returns two hashes of each name, uint64 (2, names).

  The second is odd, so that no name has the hashes that `hash_numbers` returns.

  Args:
    data: bytes among which the names are.
    starts: where each name begins in them, int64 (names,).
    sizes: the number of bytes of each name, int64 (names,).
  """
  # Two aligned words are read for each word of a name: padding at the end.
  padding = b"\0" * (2 * _WORD_BYTES - len(data) % _WORD_BYTES)
  words = np.frombuffer(data + padding, "<u8")
  found = np.empty((2, len(starts)), np.uint64)
  found[:] = sizes
  short = sizes <= _MOST_WORDS * _WORD_BYTES
  rows = np.flatnonzero(short)  # Names that have such a word.
  are_all = short.all()
  for word in range(_MOST_WORDS):
    rest = sizes[rows] - _WORD_BYTES * word
    if not (goes_on := rest > 0).any():
      break
    if not goes_on.all():
      rows, rest, are_all = rows[goes_on], rest[goes_on], False
    at = starts[rows] + _WORD_BYTES * word
    slot, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
    value = words[slot] >> shift
    value |= words[slot + 1] << (np.uint64(63) - shift) << np.uint64(1)
    if (rest < _WORD_BYTES).any():
      unused = (8 * np.maximum(_WORD_BYTES - rest, 0)).astype(np.uint64)
      value = value << unused >> unused
    for hashes, factor, fold in zip(found, _FACTORS, (29, 32), strict=True):
      mixed = ((hashes if are_all else hashes[rows]) ^ value) * factor
      mixed ^= mixed >> np.uint64(fold)
      hashes[rows] = mixed
  for row in np.flatnonzero(~short):
    name = data[starts[row] : starts[row] + sizes[row]]
    digest = hashlib.blake2b(name, digest_size=16).digest()
    found[:, row] = np.frombuffer(digest, "<u8")
  found[1] |= np.uint64(1)
  return found


def hash_numbers(numbers: np.ndarray) -> np.ndarray:
  """Returns hashes of rows without a name, each a group by itself.

  They are uint64 (2, rows), and differ from those of all names.

  Args:
    numbers: of the rows, int64 (rows,).
  """
  found = np.zeros((2, len(numbers)), np.uint64)
  found[0] = numbers
  return found


def group(hashes: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
  """Returns an order of the rows in which those of a group are neighbours.

  Groups are in the order of their first rows, the rows of a group in theirs.

  Args:
    hashes: of each row, uint64 (2, rows).

  Returns:
    The order, int64 (rows,), or None where the rows are in this order already;
    and where each group begins in it, with the end of the last one, int64
    (groups + 1,).
  """
  rows = hashes.shape[1]
  runs = np.flatnonzero(_differ(hashes))
  bounds = np.append(runs, rows)
  heads = hashes if len(runs) == rows else hashes[:, runs]
  in_order = np.sort(heads[0])
  if not (in_order[1:] == in_order[:-1]).any():
    return None, bounds
  del in_order
  by_hash = np.argsort(heads[0], kind="stable")
  new = _differ(heads[:, by_hash])
  # Different names may have equal first hashes; then both hashes sort.
  if (np.diff(heads[0][by_hash]) == 0)[new[1:]].any():
    by_hash = np.lexsort((heads[1], heads[0]))
    new = _differ(heads[:, by_hash])
  first = np.empty(len(runs), np.int64)  # The first run of the same name.
  first[by_hash] = by_hash[new][np.cumsum(new) - 1]
  order = np.argsort(first, kind="stable")
  lengths = np.diff(bounds)[order]
  ends = np.cumsum(lengths)
  starts = np.flatnonzero(np.diff(first[order], prepend=-1))
  row_order = np.repeat(runs[order] - (ends - lengths), lengths)
  row_order += np.arange(rows)
  return row_order, np.append((ends - lengths)[starts], rows)


def are_different(data: np.ndarray, ends: np.ndarray) -> bool:
  """Whether all names differ from each other.

  Args:
    data: the bytes of all names, uint8.
    ends: where each name ends in them and the next begins, int64 (names,).
  """
  hashes = np.empty((2, len(ends)), np.uint64)
  for first in range(0, len(ends), _AT_ONCE):
    last = ends[first : first + _AT_ONCE]
    begin = int(ends[first - 1]) if first else 0
    sizes = np.diff(last, prepend=begin)
    own = data[begin : int(last[-1])].tobytes()
    hashes[:, first : first + len(last)] = hash_names(
      own, last - sizes - begin, sizes
    )
  order = np.argsort(hashes[0])
  hashes = hashes[:, order]
  return not (hashes[:, 1:] == hashes[:, :-1]).all(axis=0).any()


def _differ(hashes: np.ndarray) -> np.ndarray:
  """Whether each row's hashes differ from the row before, (rows,)."""
  differ = np.ones(hashes.shape[1], bool)
  if len(differ):
    np.not_equal(hashes[0, 1:], hashes[0, :-1], out=differ[1:])
    differ[1:] |= hashes[1, 1:] != hashes[1, :-1]
  return differ
