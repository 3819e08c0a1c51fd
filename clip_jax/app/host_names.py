"""The host names by which the page may be asked: only those of this machine."""

import functools
import ipaddress
import socket

_LOCAL = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("", "0.0.0.0", "::")


def is_ours(asked: str, host: str) -> bool:
  """Whether a page may be asked by this name.

  Args:
    asked: the Host header of a request, with or without a port.
    host: what the server is bound to. If that is every network of the machine,
      addresses are its names too, and so are the machine's own.
  """
  name = _name(asked)
  if not name:
    return False
  if name in (*_LOCAL, host.lower()):
    return True
  return host in _EVERYWHERE and (
    _is_address(name) or name in _names_of_machine()
  )


def _name(asked: str) -> str:
  """Returns the name in a Host header, without the port, in lower case."""
  if asked.startswith("["):
    return asked[1:].partition("]")[0].lower()
  return asked.partition(":")[0].lower()


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


@functools.cache
def _names_of_machine() -> frozenset[str]:
  """Returns the names that this machine knows itself by, in lower case."""
  found = (socket.gethostname(), socket.getfqdn())
  return frozenset(name.lower() for name in found if name)
