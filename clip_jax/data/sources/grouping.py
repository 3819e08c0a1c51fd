"""Groups rows that bear equal names, in a few bytes a row.

Names are compared by hashes of 128 bits, so that none of them is kept: among
400 million names the chance that two are taken for one is below 1e-21.
"""

import hashlib

import numpy as np

_WORD_BYTES = 8
_AT_ONCE = 2**16  # Names hashed at a time, for bounded memory.
# Longer names are hashed one by one.
_MOST_WORDS = 64
# Odd and without a pattern: the fractions of the roots of 2 and 3.
_FACTORS = (np.uint64(0x6A09E667F3BCC909), np.uint64(0xBB67AE8584CAA73B))


def hash_names(
  data: bytes, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
  """Returns two hashes of each name, uint64 (2, names).

  The second is odd, and so none of those of `hash_numbers`.

  Args:
    data: has the names.
    starts: where they begin, int64 (names,).
    sizes: their bytes, int64 (names,).
  """
  # Padded, for names at the end: a word may reach over two aligned ones.
  padding = b"\0" * (2 * _WORD_BYTES - len(data) % _WORD_BYTES)
  words = np.frombuffer(data + padding, "<u8")
  found = np.empty((2, len(starts)), np.uint64)
  found[:] = sizes
  short = sizes <= _MOST_WORDS * _WORD_BYTES
  rows = np.flatnonzero(short)
  whole = short.all()
  for word in range(_MOST_WORDS):
    rest = sizes[rows] - _WORD_BYTES * word
    if (going := rest > 0).any():
      if not going.all():
        rows, rest, whole = rows[going], rest[going], False
    else:
      break
    at = starts[rows] + _WORD_BYTES * word
    slot, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
    value = words[slot] >> shift
    value |= words[slot + 1] << (np.uint64(63) - shift) << np.uint64(1)
    if (rest < _WORD_BYTES).any():
      unused = (8 * np.maximum(_WORD_BYTES - rest, 0)).astype(np.uint64)
      value = value << unused >> unused
    for hashes, factor, fold in zip(found, _FACTORS, (29, 32), strict=True):
      mixed = ((hashes if whole else hashes[rows]) ^ value) * factor
      mixed ^= mixed >> np.uint64(fold)
      hashes[rows] = mixed
  for row in np.flatnonzero(~short):
    name = data[starts[row] : starts[row] + sizes[row]]
    digest = hashlib.blake2b(name, digest_size=16).digest()
    found[:, row] = np.frombuffer(digest, "<u8")
  found[1] |= np.uint64(1)
  return found


def hash_numbers(numbers: np.ndarray) -> np.ndarray:
  """Returns hashes of rows that are groups by themselves."""
  found = np.zeros((2, len(numbers)), np.uint64)
  found[0] = numbers
  return found


def group(hashes: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
  """Returns the rows in an order where those of a group are together.

  Groups stand in the order of their first rows, rows of a group in their own.

  Args:
    hashes: of each row, uint64 (2, rows).

  Returns:
    The order, int64 (rows,), None where it is that of the rows; and where each
    group begins in it, and the end of all, int64 (groups + 1,).
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
  if (np.diff(heads[0][by_hash]) == 0)[new[1:]].any():  # Half a hash is equal.
    by_hash = np.lexsort((heads[1], heads[0]))
    new = _differ(heads[:, by_hash])
  first = np.empty(len(runs), np.int64)  # Run of the same name.
  first[by_hash] = by_hash[new][np.cumsum(new) - 1]
  order = np.argsort(first, kind="stable")
  lengths = np.diff(bounds)[order]
  ends = np.cumsum(lengths)
  starts = np.flatnonzero(np.diff(first[order], prepend=-1))
  of_rows = np.repeat(runs[order] - (ends - lengths), lengths)
  of_rows += np.arange(rows)
  return of_rows, np.append((ends - lengths)[starts], rows)


def are_different(data: np.ndarray, ends: np.ndarray) -> bool:
  """Whether no two names are equal.

  Args:
    data: the bytes of all names, uint8.
    ends: where each name ends in them, int64 (names,).
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
  """Returns whether each row's hashes differ from those before it."""
  differ = np.ones(hashes.shape[1], bool)
  if len(differ):
    np.not_equal(hashes[0, 1:], hashes[0, :-1], out=differ[1:])
    differ[1:] |= hashes[1, 1:] != hashes[1, :-1]
  return differ
