"""A page's parts over a model whose towers are a few sums of numpy's."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import embedder, loading, search
from clip_jax.app import answering
from clip_jax.data import sources
from clip_jax.models import variants

SPEC = {
  "embed_dim": 24,
  "image": {
    **{"kind": "vit", "image_size": 16, "patch_size": 8},
    **{"width": 64, "depth": 1, "heads": 1},
  },
  "text": {
    **{"kind": "transformer", "context_length": 12, "vocab_size": 49408},
    **{"width": 64, "depth": 1, "heads": 1},
  },
}

# Texts that would do something else than be read, if they could.
HOSTILE = (
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  '"><svg/onload=alert(1)>',
  "' onmouseover='alert(1)",
  "[click](javascript:alert(1))",
  "javascript:alert(1)",
  "![x](http://example.com/x.png)",
  "&lt;b&gt;&#x3C;script&#x3E;",
  "${alert(1)} {{alert(1)}} {{{value}}} {#if 1}",
  "</div></bdi><style>*{display:none}</style>",
  "abc\u202edcba\u202c \u2066x\u2069 \u200f\u061c",
  "\x00\x1b[31mred\x07\r\n",
  "a" * 5000,
  "\ud800 lone",
)


class Encoder:
  """Embeds by sums of pixels and tokens; counts what it is asked for."""

  image_shapes = (embedder.Shape(1), embedder.Shape(16), embedder.Shape(256))

  def __init__(self, embed_dim):
    self.embed_dim = embed_dim
    self.texts = []
    self.images = []

  def _units(self, x):
    rng = np.random.default_rng(3)
    x = np.tanh(x @ rng.normal(size=(x.shape[-1], self.embed_dim)))
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))

  def embed_images(self, variables, images, method="encode_image"):
    self.images.append(len(images))
    n, size = images.shape[:2]
    x = images.reshape(n, 2, size // 2, 2, size // 2, 3) / 255 + 0.1
    patches = self._units(x.mean(axis=(2, 4)))  # (n, 2, 2, embed)
    if method == "encode_patches":
      return patches
    mean = patches.mean(axis=(1, 2))
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)

  def embed_tokens(self, variables, tokens):
    self.texts.append(len(tokens))
    return self._units(np.sin(tokens * 1.0))


@pytest.fixture(scope="session")
def clip():
  """A model of random numbers that has not computed anything."""
  spec = variants.spec(SPEC, {})
  module = variants.create_model(spec)
  variables = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0.5), x.shape),
    variants.abstract_variables(module),
  )
  variables["params"]["log_scale"] = np.float32(np.log(10))
  made = loading.assemble(module, variables, spec=spec, path="/a/model")
  return dataclasses.replace(made, encoder=Encoder(24))


@pytest.fixture
def engine(clip):
  own = dataclasses.replace(clip, encoder=Encoder(clip.module.embed_dim))
  own.__dict__["fingerprint"] = clip.fingerprint  # Which takes a while.
  return answering.Engine(own)


@pytest.fixture(scope="session")
def hostile():
  return HOSTILE


@pytest.fixture(scope="session")
def make_image():
  return _encoded


def _encoded(seed=0, size=(20, 24), kind="PNG"):
  """Returns an encoded image of random pixels."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (*size, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Pictures with captions, three of them damaged, two in front of others."""
  root = tmp_path_factory.mktemp("pictures")
  rows = [("image", "caption")]
  for i in range(12):
    damaged = i in (2, 3, 9)
    name = f"picture{i:02}.png"
    (root / name).write_bytes(b"no image" if damaged else _encoded(i))
    rows.append((name, f"caption {i}"))
  table = root / "pairs.csv"
  table.write_text("\n".join(",".join(row) for row in rows))
  return f"csv:{table}"


@pytest.fixture(scope="module")
def index_path(folder, clip, tmp_path_factory):
  source = sources.open_source(folder)
  path = tmp_path_factory.mktemp("index") / "index"
  with search.Builder(
    path, model="/a/model", fingerprint=clip.fingerprint
  ) as builder:
    for i in range(12):
      if i in (2, 3, 9):
        continue
      record = source[i]
      pixels = clip.preprocess(record.image)[None]
      builder.add(
        clip.embed_images(pixels),
        [search.Entry(record.key, (HOSTILE[i], f"caption {i}"))],
      )
    builder.facts["data"] = folder
  return path


@pytest.fixture
def index(index_path):
  """An index of the nine good pictures, whose captions are hostile."""
  return search.Index(index_path)
