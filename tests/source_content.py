"""All that a source tells, to compare the same data at two places."""

from clip_jax.data import account, sources


def content(address):
  """Returns records, fingerprint, classes and what is told of files."""
  source = sources.open_source(address)
  records = [source[index] for index in range(len(source))]
  told = account.of(source)
  return (
    [(x.key, x.image, x.texts, x.label, x.labels) for x in records],
    source.fingerprint,
    source.class_names,
    told.left_out.as_json(),
    [(path.rpartition("/")[2], *rest) for path, *rest in told.damages],
  )


def at_both(address, scheme, data):
  """Returns the address in the bucket data-1, and the one on the disk."""
  both = (f"{scheme}://data-1", str(data))
  return [address.replace("{}", place) for place in both]
