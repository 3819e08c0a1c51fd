"""Tar files are indexed member by member, also where they are damaged."""

import io
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.data import record as record_lib
from clip_jax.data import sources
from clip_jax.data.sources import shard, tar


def _split(path):
  items = list(tar.scan(path))
  found = [item for item in items if isinstance(item, tar.Member)]
  damages = [item for item in items if isinstance(item, tar.Damage)]
  return found, damages


def _contents(path, found):
  data = path.read_bytes()
  return [(m.name, data[m.offset : m.offset + m.size]) for m in found]


@pytest.mark.parametrize(
  "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_the_scan_equals_python_s_tarfile(tmp_path, write_tar, tar_format):
  members = [
    ("a.txt", b""),
    ("directory with space/b.jpg", b"x" * 512),
    ("d/" * 30 + "c" * 60 + ".txt", b"y" * 513),  # Needs prefix or extension.
    ("last.json", b"z"),
  ]
  if tar_format != tarfile.USTAR_FORMAT:
    members += [("n" * 200 + "é.txt", b"long name"), ("after.txt", b"plain")]
  path = write_tar(tmp_path / "a.tar", members, tar_format)
  found, damages = _split(path)
  assert damages == []
  assert _contents(path, found) == members
  with tarfile.open(path) as archive:
    expected = [(m.name, m.offset_data, m.size) for m in archive]
  assert [(m.name, m.offset, m.size) for m in found] == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.lists(
    st.tuples(
      st.text(
        st.characters(codec="utf-8", exclude_characters="\0/"),
        min_size=1,
        max_size=130,
      ),
      st.binary(max_size=1100),
    ),
    max_size=8,
  ),
  st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_contents_come_back(
  tmp_path_factory, members, tar_format
):
  path = tmp_path_factory.mktemp("tar") / "a.tar"
  with tarfile.open(path, "w", format=tar_format) as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  found, damages = _split(path)
  assert [d.reason for d in damages] == ["empty"] * (not members)
  assert _contents(path, found) == members


def test_archives_put_one_after_the_other_are_read_whole(tmp_path, write_tar):
  one = write_tar(tmp_path / "1.tar", [("a.txt", b"1")]).read_bytes()
  two = write_tar(tmp_path / "2.tar", [("b.txt", b"2")]).read_bytes()
  both = tmp_path / "both.tar"
  both.write_bytes(one + two)
  found, damages = _split(both)
  assert _contents(both, found) == [("a.txt", b"1"), ("b.txt", b"2")]
  assert damages == []


def test_links_devices_and_sparse_files_cannot_be_used(tmp_path):
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as archive:
    for name, kind in [
      ("symbolic.jpg", tarfile.SYMTYPE),
      ("hard.jpg", tarfile.LNKTYPE),
      ("device.jpg", tarfile.CHRTYPE),
      ("pipe.jpg", tarfile.FIFOTYPE),
      ("directory", tarfile.DIRTYPE),
      ("sparse.jpg", tarfile.GNUTYPE_SPARSE),
    ]:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, "/etc/hostname"
      archive.addfile(info)
    info = tarfile.TarInfo("GNUSparseFile.1/sparse.png")
    info.pax_headers = {"GNU.sparse.name": "sparse.png"}
    archive.format = tarfile.PAX_FORMAT
    archive.addfile(info)
    archive.addfile(tarfile.TarInfo("good.txt"))
  found, damages = _split(path)
  assert [(m.name, m.problem) for m in found] == [
    ("symbolic.jpg", "not_a_file"),
    ("hard.jpg", "not_a_file"),
    ("device.jpg", "not_a_file"),
    ("pipe.jpg", "not_a_file"),
    ("sparse.jpg", "not_a_file"),
    ("sparse.png", "not_a_file"),
    ("good.txt", ""),
  ]
  assert damages == []


def test_sizes_are_limited(tmp_path, write_tar, monkeypatch):
  monkeypatch.setattr(tar, "MAX_MEMBER_BYTES", 600)
  path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 601), ("b.jpg", b"y")])
  found, damages = _split(path)
  assert [(m.name, m.problem) for m in found] == [
    ("a.jpg", "too_large"),
    ("b.jpg", ""),
  ]
  assert damages == []


@pytest.mark.parametrize("size", [2**40, 2**80])
def test_a_size_beyond_the_end_costs_one_member(tmp_path, size):
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as archive:
    archive.addfile(tarfile.TarInfo("a.txt"))
    liar = tarfile.TarInfo("liar.txt")
    liar.size = size
    archive.fileobj.write(liar.tobuf(tarfile.GNU_FORMAT))
    archive.offset += 512
    archive.addfile(tarfile.TarInfo("b.txt"))
  found, _ = _split(path)
  assert [(m.name, m.problem) for m in found] == [
    ("a.txt", ""),
    ("liar.txt", "truncated"),
    ("b.txt", ""),
  ]
  assert len(shard.index_shard(str(path)).keys) == 3


def test_a_hostile_long_name_does_not_fill_the_memory(tmp_path, write_tar):
  path = write_tar(tmp_path / "a.tar", [("n" * 150, b"x"), ("b.txt", b"y")])
  data = bytearray(path.read_bytes())
  header = tarfile.TarInfo("././@LongLink")
  header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33  # 8 GiB
  data[:512] = header.tobuf(tarfile.GNU_FORMAT)
  path.write_bytes(data)
  found, damages = _split(path)
  assert [m.name for m in found] == ["n" * 100, "b.txt"]
  assert [d[:2] for d in damages] == [(0, "damaged_header")]


@pytest.mark.parametrize(
  "payload",
  [b"", b"no record", b"99 path=a\n", b"9999999999 path=a\n", b"-3 a=b\n"],
)
def test_a_damaged_pax_header_costs_no_other_member(tmp_path, payload):
  path = tmp_path / "a.tar"
  header = tarfile.TarInfo("pax")
  header.type, header.size = tarfile.XHDTYPE, len(payload)
  body = payload.ljust(-(-len(payload) // 512) * 512, b"\0")
  with tarfile.open(path, "w") as archive:
    archive.fileobj.write(header.tobuf(tarfile.USTAR_FORMAT) + body)
    archive.offset += 512 + len(body)
    archive.addfile(tarfile.TarInfo("a.txt"))
    archive.addfile(tarfile.TarInfo("b.txt"))
  found, damages = _split(path)
  assert [m.name for m in found] == ["a.txt", "b.txt"]
  assert [d.reason for d in damages] == ["damaged_header"] * bool(payload)


@pytest.mark.parametrize(
  ("told", "stated", "problem"),
  [
    (b"5", 0, ""),  # As of a size that the header has no digits for.
    (b"5", 5, ""),
    (b"4", 5, "damaged_header"),
    (b"0", 5, "damaged_header"),
    (b"-5", 5, ""),  # No size, so that the header's stays.
    (b"1_0", 5, ""),
    (b"9" * 5000, 5, "truncated"),
  ],
)
def test_a_pax_size_that_contradicts_the_header_costs_one_record(
  tmp_path, told, stated, problem
):
  length = len(told) + len(" size=\n")
  length += len(str(length + len(str(length))))
  pax = tarfile.TarInfo("pax")
  line = b"%d size=%s\n" % (length, told)
  pax.type, pax.size = tarfile.XHDTYPE, len(line)
  liar = tarfile.TarInfo("a.txt")
  liar.size = stated
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as archive:
    for header, body in ((pax, line), (liar, b"12345")):
      data = header.tobuf(tarfile.USTAR_FORMAT) + body
      data += bytes(-len(data) % 512)
      archive.fileobj.write(data)
      archive.offset += len(data)
    for name, body in (("a.jpg", b"6"), ("b.jpg", b"7"), ("b.txt", b"8")):
      info = tarfile.TarInfo(name)
      info.size = 1
      archive.addfile(info, io.BytesIO(body))
  found, _ = _split(path)
  assert [m.problem for m in found] == [problem, "", "", ""]
  source = sources.open_source(f"wds:{path}")
  assert len(source) == 2
  if problem:
    with pytest.raises(record_lib.BadRecord, match=problem):
      source[0]
  else:
    assert (source[0].image, source[0].texts) == (b"6", ("12345",))
  assert (source[1].image, source[1].texts) == (b"7", ("8",))


@pytest.mark.parametrize("member", [0, 3, 6])
def test_a_damaged_header_costs_one_member(tmp_path, write_tar, member):
  members = [(f"{i}.txt", bytes([65 + i]) * 700) for i in range(7)]
  path = write_tar(tmp_path / "a.tar", members)
  position = member * (512 + 1024)
  data = bytearray(path.read_bytes())
  data[position + 3] ^= 1
  path.write_bytes(data)
  found, damages = _split(path)
  assert _contents(path, found) == members[:member] + members[member + 1 :]
  assert [d[:2] for d in damages] == [(position, "damaged_header")]


@pytest.mark.parametrize("count", [1, 3, 511, 512, 700])
@pytest.mark.parametrize("at", [0, 50, 300, 512, 600, 1212, 1300, 1500])
def test_the_next_header_is_found_at_any_byte(tmp_path, write_tar, at, count):
  members = [(f"{i}.txt", bytes([65 + i]) * 700) for i in range(7)]
  path = write_tar(tmp_path / "a.tar", members)
  clean = path.read_bytes()
  start = 2 * (512 + 1024)  # Of the third member.
  for changed in (
    clean[: start + at] + b"?" * count + clean[start + at :],
    clean[: start + at] + clean[start + at + count :],
  ):
    path.write_bytes(changed)
    found, damages = _split(path)
    whole = [m for m in found if not m.problem]
    good = _contents(path, whole)
    # Of the member that was hit and those beside it one or two may be lost.
    assert set(good) <= set(members)
    assert {*members[:2], *members[4:]} <= set(good)
    assert damages


def test_zeros_are_an_end_only_where_one_is_due(tmp_path, write_tar):
  members = [(f"{i}.txt", bytes([65 + i]) * 700) for i in range(20)]
  path = write_tar(tmp_path / "a.tar", members)
  clean = path.read_bytes()
  at, size = 4 * 1536, 3 * 1536
  path.write_bytes(clean[:at] + bytes(size) + clean[at + size :])
  found, damages = _split(path)
  assert _contents(path, found) == members[:4] + members[7:]
  assert damages == [(at, "zeros", size, 0, False)]
  path.write_bytes(clean[:at] + bytes(len(clean) - at))
  found, damages = _split(path)
  assert _contents(path, found) == members[:4]
  assert damages == [(at, "zeros", len(clean) - at, 0, True)]


def test_a_name_whose_beginning_was_pushed_is_found(tmp_path, write_tar):
  members = [(f"{i}.txt", bytes([65 + i]) * 700) for i in range(3)]
  path = write_tar(tmp_path / "a.tar", members)
  clean = path.read_bytes()
  # Three of the zeros behind a name: the checksum does not see it.
  path.write_bytes(clean[: 1536 + 50] + clean[1536 + 53 :])
  found, _ = _split(path)
  assert _contents(path, found) == members


@pytest.mark.parametrize("length", range(1, 6 * 512, 100))
def test_a_truncated_archive_says_so(tmp_path, write_tar, length):
  path = write_tar(tmp_path / "a.tar", [("a.txt", b"1" * 700), ("b.txt", b"2")])
  path.write_bytes(path.read_bytes()[:length])
  found, damages = _split(path)
  whole = [m for m in found if not m.problem]
  assert len(whole) == (length >= 512 + 700) + (length > 4 * 512)
  assert damages or length > 5 * 512


def test_random_bytes_are_no_archive(tmp_path):
  path = tmp_path / "a.tar"
  path.write_bytes(np.random.default_rng(0).bytes(20_000))
  found, damages = _split(path)
  assert found == []
  assert damages[0][:2] == (0, "damaged_header")


def _stream_count(path):
  """Whole samples that a streaming reader in common use would give."""
  names = set()
  try:
    with tarfile.open(path, "r|*") as archive:
      for member in archive:
        stream = archive.extractfile(member)
        if stream is not None and len(stream.read()) == member.size:
          names.add(member.name)
  except (tarfile.TarError, struct.error, OSError, EOFError):
    return None  # Raised: at least not silent.
  keys = {name.partition(".")[0] for name in names}
  return sum(f"{k}.png" in names and f"{k}.txt" in names for k in keys)


def test_bit_flips_cost_only_the_samples_they_hit(
  tmp_path, write_tar, members, pairs, read_all
):
  records = pairs(20)
  path = write_tar(tmp_path / "a.tar", members(records))
  clean = path.read_bytes()
  index = shard.index_shard(str(path))
  # Where each sample's headers and payloads lie: up to its last part's end.
  starts = [0, *(-(-int(b.sum(-1).max()) // 512) * 512 for b in index.bounds)]
  used = starts[-1]
  rng = np.random.default_rng(0)
  lost = silent = stream_silent = stream_lost = 0
  for _ in range(200):
    position, bit = int(rng.integers(used)), int(rng.integers(8))
    data = bytearray(clean)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    source = sources.open_source(f"wds:{path}")
    hit = int(np.searchsorted(starts, position, side="right")) - 1
    items = read_all(source)
    good = {i.key: i for i in items if not isinstance(i, str)}
    for slot, record in enumerate(records):
      if slot != hit:
        assert good[record.key] == record
    gone = records[hit].key not in good
    lost += gone
    # A lost sample leaves a bad slot; nothing is lost without a word.
    silent += gone and len(good) == len(items) and not source.account.damages
    streamed = _stream_count(path)
    if streamed is not None:
      stream_silent += streamed < len(records)
      stream_lost += len(records) - streamed
  assert silent == 0
  assert lost <= 200
  # Python's streaming reader ends at a damaged header as if all were well.
  assert stream_silent > 10
  assert stream_lost > 4 * lost, (stream_lost, lost)


def _told(index):
  """Returns all that an index says, to compare."""
  return (
    *(index.keys.tobytes(), index.bounds.tolist(), index.problems),
    *(index.sites, index.left_out.as_json(), index.unread.as_json()),
    *(index.members, index.size),
  )


def test_samples_closed_one_by_one_are_those_of_all_members(
  tmp_path, write_tar, monkeypatch
):
  rng = np.random.default_rng(0)
  grouped, rows = shard._grouped, []

  def both(path, items, *, in_a_row):
    rows.append(in_a_row)
    return grouped(path, items, in_a_row=in_a_row)

  monkeypatch.setattr(shard, "_grouped", both)
  suffixes = ("jpg", "txt", "json", "cls", "heic", "png", "md")
  regular = 0
  for number in range(150):
    names = []
    for sample in range(8):
      key = f"../{sample}" if rng.random() < 0.05 else f"{sample}"
      key = f"{int(rng.integers(8))}" if rng.random() < 0.1 else key
      key += ".x" if rng.random() < 0.02 else ""
      some = rng.permutation(suffixes)[: rng.integers(1, 5)]
      names += [f"{key}.{suffix}" for suffix in some]
    members = [(x, rng.bytes(rng.integers(0, 700))) for x in names]
    path = write_tar(tmp_path / "a.tar", members)
    data = bytearray(path.read_bytes())
    if number % 3 == 1:
      for position in rng.integers(len(data), size=3):
        data[position] ^= 255
    elif number % 3 == 2:
      del data[int(rng.integers(len(data))) :]
    path.write_bytes(data)
    rows.clear()
    found = _told(shard.index_shard(str(path)))
    regular += rows == [True]
    with monkeypatch.context() as patch:
      # None is regular, so that all are grouped at the end.
      patch.setattr(shard.naming, "is_dotted", lambda key: True)
      assert _told(shard.index_shard(str(path))) == found
  assert 40 < regular < 110


@pytest.mark.parametrize("kinds", [("jpg", "txt"), ("jpg", "txt", "heic")])
def test_a_regular_shard_takes_few_bytes_a_sample(tmp_path, write_tar, kinds):
  number = 4000
  members = [(f"{i:08d}.{kind}", b"x") for i in range(number) for kind in kinds]
  path = write_tar(tmp_path / "a.tar", members)
  tracemalloc.start()
  index = shard.index_shard(str(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(index.keys) == number and not index.problems
  assert index.left_out.counts.total() == number * (len(kinds) - 2)
  # What reads ahead holds up to a megabyte. It took 1.9 kB.
  assert (peak - 2**20) / number < 150
