"""Image towers, text towers and the two-tower model, as linen modules."""

from clip_jax import versions

versions.check()
