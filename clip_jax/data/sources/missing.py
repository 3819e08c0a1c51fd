"""How many records the damaged shards of a data set have lost.

Known where a file beside the shards says how many each holds (img2dataset's
`NAME_stats.json`, or `sizes.json`), where the other shards all hold the same
number, or where the keys are consecutive numbers with a gap at the damage. Else
estimated: a shard without its end held as many as the others do in the mean,
and what was passed over held as many headers, or bytes, a record as the rest of
the shard.
"""

import collections
import re
from collections.abc import Sequence

from clip_jax.data.sources import shard as shard_lib
from clip_jax.data.sources import tar

_NUMBER = re.compile(r"(.*?)(\d+)", re.DOTALL)
_LEAST_STEPS = 3  # Of keys, before they are taken for consecutive.
_NEARLY = 0.9


def lost_records(shards: Sequence[shard_lib.Shard]) -> list[int | None]:
  """Returns for each shard how many records have no slot, as estimated.

  None: nobody can know, but at least one.
  """
  if _are_written_without_end(shards):
    return [0] * len(shards)
  whole, same = _whole_counts(shards)
  lost: list[int | None] = []
  for number, shard in enumerate(shards):
    slots = len(shard.keys)
    if shard.stated is not None:
      lost.append(max(0, shard.stated - slots) if shard.sites else 0)
      continue
    mean = round(sum(whole) / len(whole)) if whole else None
    most_at_start = slots if mean is None else max(0, mean - slots)
    before = shards[number - 1] if number else None
    estimate: int | None = _within(shard, before, most_at_start)
    if any(damage.at_end for _, damage in shard.sites):
      behind = _behind(shard) if mean is None else mean - slots
      estimate = None if behind is None else max(estimate, behind)
    elif shard.sites and same and not _may_be_rest(number, shards, whole[0]):
      estimate = max(0, whole[0] - slots)
    lost.append(estimate)
  return lost


def _whole_counts(shards: Sequence[shard_lib.Shard]) -> tuple[list[int], bool]:
  """Returns the records of each undamaged shard, and whether all are equal."""
  counts = [len(s.keys) for s in shards if len(s.keys) and not s.sites]
  # The last shard holds what is left over: it is no measure of others.
  if len(counts) > 1 and not shards[-1].sites and counts[-1] < min(counts[:-1]):
    counts.pop()
  return counts, len(counts) > 1 and len(set(counts)) == 1


def _are_written_without_end(shards: Sequence[shard_lib.Shard]) -> bool:
  """Whether all shards lack their ends and are alike otherwise."""
  return (
    len(shards) > 2
    and all(map(_only_lacks_its_end, shards))
    and len({len(shard.keys) for shard in shards[:-1]}) == 1
  )


def _only_lacks_its_end(shard: shard_lib.Shard) -> bool:
  reasons = [damage.reason for _, damage in shard.sites]
  bad_end = len(shard.keys) - 1 in shard.problems
  return reasons == ["no_end_marker"] and not bad_end


def _may_be_rest(
  number: int, shards: Sequence[shard_lib.Shard], count: int
) -> bool:
  """Whether a shard is the last, and holds much less than `count`."""
  last = number == len(shards) - 1
  return last and len(shards[number].keys) < _NEARLY * count


def _behind(shard: shard_lib.Shard) -> int | None:
  """Returns the number missing at the end by its size; None without any."""
  _, damage = next(site for site in shard.sites if site[1].at_end)
  if damage.reason == "zeros" and damage.offset:
    return round(damage.size * len(shard.keys) / damage.offset)
  return None


def _within(
  shard: shard_lib.Shard, before: shard_lib.Shard | None, most_at_start: int
) -> int:
  """Returns the number lost where the shard goes on behind a damage."""
  sites = collections.defaultdict(list)
  for slot, damage in shard.sites:
    if not damage.at_end:
      sites[slot].append(damage)
  step = _step(shard, set(sites)) if sites else None
  lost = 0
  for slot, damages in sites.items():
    gap = None
    if step is not None:
      gap = (
        _gap(shard, slot, step)
        if slot
        else _gap_at_start(shard, before, step, most_at_start)
      )
    lost += _by_size(shard, slot, damages) if gap is None else gap
  return lost


def _step(shard: shard_lib.Shard, broken: set[int]) -> int | None:
  """Returns the difference of most consecutive keys; None without any."""
  differences: collections.Counter[int] = collections.Counter()
  last = None
  for slot in range(len(shard.keys)):
    number = _number(shard.keys[slot])
    if last is not None and slot not in broken and number is not None:
      differences[number[1] - last[1] if number[0] == last[0] else 0] += 1
    last = number
  if differences.total() < _LEAST_STEPS:
    return None
  ((step, count),) = differences.most_common(1)
  return step if step > 0 and 2 * count >= len(shard.keys) - 1 else None


def _gap(shard: shard_lib.Shard, slot: int, step: int) -> int | None:
  """Returns the number of keys left out before `slot`; None if unknown."""
  if slot == len(shard.keys):
    return None
  last, here = _number(shard.keys[slot - 1]), _number(shard.keys[slot])
  if last is None or here is None or last[0] != here[0]:
    return None
  return max(0, (here[1] - last[1]) // step - 1)


def _gap_at_start(
  shard: shard_lib.Shard,
  before: shard_lib.Shard | None,
  step: int,
  most: int,
) -> int | None:
  """The same before the first slot: keys go on, or begin with 0."""
  here = _number(shard.keys[0])
  if here is None:
    return None
  gaps = [here[1] // step]
  if before is not None and len(before.keys):
    last = _number(before.keys[len(before.keys) - 1])
    if last is not None and last[0] == here[0]:
      gaps.insert(0, (here[1] - last[1]) // step - 1)
  return next((gap for gap in gaps if 0 <= gap <= most), None)


def _number(key: str) -> tuple[str, int] | None:
  """Returns a key's prefix and the number that it ends in."""
  match = _NUMBER.fullmatch(key)
  return (match[1], int(match[2])) if match and len(match[2]) < 20 else None


def _by_size(
  shard: shard_lib.Shard, slot: int, damages: list[tar.Damage]
) -> int:
  """Returns the number lost by what was passed over before `slot`."""
  slots = len(shard.keys)
  if not slots:
    return 0
  records = 0.0
  for damage in damages:
    if damage.headers:
      records += damage.headers * slots / max(shard.members, 1)
    else:
      records += damage.size * slots / _used_bytes(shard)
  # Slots beside it that lack a part were counted, too.
  incomplete = sum(near in shard.problems for near in (slot - 1, slot))
  return max(0, round(records) - incomplete)


def _used_bytes(shard: shard_lib.Shard) -> int:
  """Returns the bytes that the slots take, without those passed over."""
  end = int(shard.bounds.sum(axis=2).max())
  passed = sum(damage.size for _, damage in shard.sites if damage.offset < end)
  return max(end - passed, 1)
