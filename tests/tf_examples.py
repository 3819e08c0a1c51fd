"""TFRecord files of `tf.train.Example`, bit by bit."""

import struct


def crc(data: bytes) -> int:
  """CRC-32C bit by bit (RFC 3720, appendix B.4)."""
  state = 0xFFFFFFFF
  for byte in data:
    state ^= byte
    for _ in range(8):
      state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
  state ^= 0xFFFFFFFF
  return ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number: int) -> bytes:
  out = b""
  while number > 127:
    out, number = out + bytes([number & 127 | 128]), number >> 7
  return out + bytes([number])


def _field(number: int, data: bytes) -> bytes:
  return bytes([number << 3 | 2]) + _varint(len(data)) + data


def example(**features) -> bytes:
  """A `tf.train.Example`, written by the rules of protobuf's encoding."""
  entries = b""
  for name, values in features.items():
    values = values if isinstance(values, list) else [values]
    if isinstance(values[0], bytes):
      feature = _field(1, b"".join(_field(1, value) for value in values))
    else:
      packed = b"".join(_varint(v & (1 << 64) - 1) for v in values)
      feature = _field(3, _field(1, packed))
    entry = _field(1, name.replace("__", "/").encode()) + _field(2, feature)
    entries += _field(1, entry)
  return _field(1, entries)


def framed(data: bytes) -> bytes:
  """A record of a TFRecord file."""
  length = struct.pack("<Q", len(data))
  head, tail = (struct.pack("<I", crc(each)) for each in (length, data))
  return length + head + data + tail


def write(path, *examples: bytes) -> str:
  """Writes a file; returns its address."""
  path.write_bytes(b"".join(map(framed, examples)))
  return f"tfrecord:{path}"
