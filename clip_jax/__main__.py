"""`python -m clip_jax` is the `clip-jax` command."""

from clip_jax import cli

if __name__ == "__main__":
  cli.main()
