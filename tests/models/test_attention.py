"""Attention against its definition; what a GPU is asked for instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import attention


def slow_attention(query, key, value, *, causal):
  b, queries, heads, head_dim = query.shape
  out = np.zeros_like(query)
  for i in range(b):
    for q in range(queries):
      for h in range(heads):
        seen = q + 1 if causal else key.shape[1]
        scores = key[i, :seen, h] @ query[i, q, h] / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[i, q, h] = weights @ value[i, :seen, h] / weights.sum()
  return out


@pytest.mark.parametrize("causal", [False, True])
def test_attention_matches_its_definition(causal):
  rng = np.random.default_rng(0)
  query, key, value = rng.standard_normal((3, 2, 5, 3, 4))
  got = attention.attend(*map(jnp.float32, (query, key, value)), causal=causal)
  want = slow_attention(query, key, value, causal=causal)
  # float32 sums of five terms against float64.
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("masking", ["none", "causal", "memory", "both"])
def test_fused_attention_gets_the_same_question(masking):
  """What cuDNN is asked for on a GPU, answered by XLA."""
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 2, 5, 3, 8)).astype(np.float32)
  mask = None
  if masking == "memory":
    mask = rng.random((2, 5)) < 0.5
    mask[:, 0] = True
  elif masking == "both":
    mask = (rng.random((2, 5, 5)) < 0.5) | np.eye(5, dtype=bool)
  causal = masking in ("causal", "both")
  want = attention.attend(q, k, v, causal=causal, mask=mask)
  got = attention.fused_attend(
    q, k, v, causal=causal, mask=mask, implementation="xla"
  )
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
  ("backend", "dtype", "head_dim", "fused"),
  [
    ("gpu", jnp.bfloat16, 64, True),
    ("gpu", jnp.float16, 88, True),
    ("gpu", jnp.float32, 64, False),
    ("gpu", jnp.bfloat16, 60, False),
    ("gpu", jnp.bfloat16, 256, False),
    ("tpu", jnp.bfloat16, 64, False),
    ("cpu", jnp.bfloat16, 64, False),
  ],
)
def test_fused_attention_is_for_half_precision_on_gpus(
  backend, dtype, head_dim, fused
):
  query = jax.ShapeDtypeStruct((2, 5, 3, head_dim), dtype)
  assert attention.is_fused(query, backend=backend) == fused
