"""Files that hold named arrays, read without trusting them.

Each module here is one container: `read(path)` returns its tensors by name,
`write(path, tensors)` makes one. Reading executes nothing, allocates nothing
because a header says so, and gives what the file holds or a `DamagedError`.
"""

from clip_jax import errors


class DamagedError(errors.UserError):
  """A file that does not hold what its kind of file must hold."""
