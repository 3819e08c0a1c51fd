"""Images as the bytes of files."""

import io
import struct
import zlib


def encode(image, file_format="PNG", **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def chunk(kind, data):
  """Returns a chunk of a PNG."""
  crc = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + crc
