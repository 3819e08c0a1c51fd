"""Containers of named arrays: reads untrusted files, and writes files.

Each module here is about one container: `read(path)` returns its tensors by
name, `write(path, tensors)` writes one. Reading never executes code of the file
and never allocates memory only because a header says so; it returns the file's
content or raises `clip_jax.errors.DamagedError`.
"""
