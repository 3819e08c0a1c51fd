"""Who asks the servers: clients of Arrow and TensorStore, one a process."""

import datetime
import functools
import os
import urllib.parse
from typing import Any

from clip_jax import errors

# A request that has not ended by then is given up.
TIMEOUT_SECONDS = 60.0
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_GS_VARIABLE = "STORAGE_EMULATOR_HOST"
_GS_READS = "TENSORSTORE_GCS_HTTP_URL"


class GsReader:
  """An object in Cloud Storage, as it was at the first read."""

  def __init__(self, address: str):
    self._bucket, _, self._name = place(address).partition("/")
    self._generation = b""

  def read(self, offset: int, size: int) -> bytes:
    """Returns bytes; raises OSError where it cannot, in one attempt."""
    try:
      found = (
        _gs_store(self._bucket, os.environ.get(_GS_READS, ""))
        .read(self._name, byte_range=slice(offset, offset + size))
        .result(timeout=TIMEOUT_SECONDS)
      )
    except ValueError as error:  # Of any kind, also of the network.
      raise OSError(str(error)) from error
    generation = found.stamp.generation
    self._generation = self._generation or generation
    if found.state != "value" or generation != self._generation:
      raise FileNotFoundError(2, "No such object", self._name)
    return found.value

  def check(self) -> bool:
    """Returns whether later reads, too, are of the object of those before."""
    return True


class S3Reader:
  """An object in S3, or in a store that speaks as it does."""

  def __init__(self, address: str):
    self._address = address
    self._file: Any = None

  def read(self, offset: int, size: int) -> bytes:
    """Returns bytes; raises OSError where it cannot, in one attempt."""
    if self._file is None:
      self._file = self._opened()
    return self._file.read_at(size, offset)

  def check(self) -> bool:
    """Returns whether later reads, too, are of the object of those before.

    Raises:
      FileNotFoundError: those before may be of two objects.
    """
    if self._file and self._opened().metadata() != self._file.metadata():
      raise FileNotFoundError(2, "No such object", self._address)
    return False  # No read says which object's bytes it has.

  def _opened(self) -> Any:
    return client(self._address).open_input_file(place(self._address))


READERS: dict[str, Any] = {"gs": GsReader, "s3": S3Reader}


def place(address: str) -> str:
  """Returns "BUCKET/NAME"."""
  place = address.partition("://")[2].strip("/")
  if not place:
    raise errors.UserError(
      f"{address!r} names no bucket; give {address[:2]}://BUCKET/NAME."
    )
  if "//" in place:
    raise errors.UserError(
      f"{address!r} has an empty name between two slashes, which cannot be "
      "read or written; give it without one."
    )
  return place


def client(address: str) -> Any:
  """Returns the client for a bucket; each process has its own."""
  bucket = place(address).partition("/")[0]
  found = (os.environ.get(name) for name in _S3_VARIABLES)
  try:
    if address.startswith("gs://"):
      return _gs_client(os.environ.get(_GS_VARIABLE, ""))
    return _s3_client(next(filter(None, found), ""), bucket)
  except ImportError as error:
    raise errors.UserError(
      f"{address}: this pyarrow has no client for it ({error}); install that "
      "of PyPI: `pip install --force-reinstall pyarrow`."
    ) from None


@functools.cache
def _gs_client(endpoint: str) -> Any:
  from pyarrow import fs

  # The least that allows an attempt: `attempts.retried` makes further ones.
  limit = datetime.timedelta(seconds=1)
  if not endpoint:
    return fs.GcsFileSystem(retry_time_limit=limit)
  scheme, host = _endpoint(endpoint)
  return fs.GcsFileSystem(
    anonymous=True,
    scheme=scheme,
    endpoint_override=host,
    retry_time_limit=limit,
  )


@functools.cache
def _gs_store(bucket: str, endpoint: str) -> Any:
  """Returns TensorStore's view of a bucket; it looks for the endpoint, too."""
  del endpoint
  import tensorstore

  once = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
  context = tensorstore.Context({"gcs_request_retries": once})
  spec = {"driver": "gcs", "bucket": bucket}
  return tensorstore.KvStore.open(spec, context=context).result()


@functools.cache
def _s3_client(endpoint: str, bucket: str) -> Any:
  from pyarrow import fs

  once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
  if not endpoint:
    # The bucket's region, whatever the profile's is.
    region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(region=region, retry_strategy=once)
  scheme, host = _endpoint(endpoint)
  return fs.S3FileSystem(
    scheme=scheme, endpoint_override=host, retry_strategy=once
  )


def _endpoint(text: str) -> tuple[str, str]:
  """Returns the scheme and the host of a server's address."""
  parts = urllib.parse.urlsplit(text if "//" in text else f"http://{text}")
  return parts.scheme, parts.netloc
