"""Files that hold named arrays, read without trusting them.

Each module here is one container: `read(path)` returns its tensors by name,
`write(path, tensors)` makes one. Reading executes nothing, allocates nothing
because a header says so, and gives what the file holds or a
`clip_jax.errors.DamagedError`.
"""
