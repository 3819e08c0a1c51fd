"""Small models of every kind that a MODEL may be, made without PyTorch.

Each function writes one under a new directory and returns its path. What is
written equals what the libraries write, as the tests of each format show.
"""

import functools
import json
import shutil

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import sentencepiece

from clip_jax import config as config_lib
from clip_jax import convert, loading
from clip_jax.checkpoints import run_model, saving
from clip_jax.checkpoints import state as state_lib
from clip_jax.convert import engine, portable
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import bert, timm, timm_vit
from clip_jax.convert.source_reading import SourceReading
from clip_jax.models import variants

# All of CLIP's formats hold this: heads are 64 wide, as OpenAI's.
_VIT = {"width": 64, "depth": 1, "heads": 1, "activation": "quick_gelu"}
CLIP = {
  "embed_dim": 24,
  "image": {"kind": "vit", "image_size": 16, "patch_size": 8, **_VIT},
  "text": {
    "kind": "transformer",
    "context_length": 12,
    "vocab_size": 49408,
    **_VIT,
  },
}
_SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 40}


def _variables(module):
  """Random numbers: a module's own initialisers take long to compile."""
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.2).astype(x.dtype),
    variants.abstract_variables(module),
  )
  for path, leaf in flax.traverse_util.flatten_dict(variables).items():
    if path[-1] == "var":  # Of a batch norm.
      np.abs(leaf, out=leaf)
  if "log_scale" in variables["params"]:
    variables["params"]["log_scale"] = np.float32(np.log(12))
  if "logit_bias" in variables["params"]:
    variables["params"]["logit_bias"] = np.float32(-9)
  return variables


def _save(spec, path, files=()):
  module = variants.create_model(spec)
  clip = loading.assemble(
    module, _variables(module), spec=spec, files=dict(files)
  )
  clip.save(path)
  return path


def workdir(directory, *, loss="softmax", steps=(3,), **objective):
  """A run that saved parameters at some steps, none of them the same."""
  config = config_lib.default_config()
  config.model, config.precision = "tiny-vit", "float32"
  config.model_overrides.update(
    {
      "embed_dim": 12,
      "image": {"image_size": 16, "patch_size": 8, "width": 24, "depth": 1},
      "text": {"context_length": 12, "width": 20, "depth": 1},
    }
  )
  if loss == "sigmoid":
    config.model_overrides.init_logit_bias = -10.0
  config.loss.kind = loss
  config.objective.update(objective)
  config.data.train, config.steps = "builtin:digits/train", 4
  directory.mkdir()
  (directory / "config.json").write_text(config_lib.to_json(config))
  variables = _variables(run_model.make(config))
  with saving.Checkpoints(directory) as checkpoints:
    for number, step in enumerate(steps):
      state = state_lib.TrainState(
        step=np.int32(step),
        params=jax.tree.map(lambda x, n=number: x + n, variables["params"]),
        batch_stats={},
        opt_state={},
        skipped=np.int32(0),
      )
      checkpoints.save(state, step=step, config=config, counters={})
      checkpoints.wait()
  return directory


def _sentencepiece(directory):
  corpus = directory / "corpus.txt"
  words = ("a photo of the cat", "two dogs run", "snow leopard in grass")
  corpus.write_text("\n".join(words * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus),
    model_prefix=str(directory / "pieces"),
    vocab_size=49,
    unk_id=2,
    eos_id=1,
    pad_id=0,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=9,
  )
  return (directory / "pieces.model").read_bytes()


def clip_directory(directory, **changes):
  """Our own directory of a CLIP; every format of CLIPs can hold it."""
  return _save(variants.spec(CLIP, changes), directory)


def resnet_directory(directory):
  """Our own directory of a CLIP with a ResNet, whose heads are 64 wide."""
  sizes = {"width": 4, "depths": [1, 1, 1, 1], "image_size": 32}
  changes = {"embed_dim": 24, "image": sizes, "text": CLIP["text"]}
  return _save(variants.spec("RN50", changes), directory)


def siglip_directory(
  directory, *, cleaning="lower_ascii", vocab_size=32_000, **changes
):
  """Our own directory of a SigLIP with its tokenizer."""
  spec = variants.spec(
    "ViT-B-16-SigLIP-256",
    {
      "embed_dim": 32,
      "image": {"image_size": 16, "patch_size": 8, **_SMALL},
      "text": {"context_length": 24, "vocab_size": vocab_size, **_SMALL},
      "tokenizer": {"cleaning": cleaning},
    },
  )
  spec |= changes
  room = directory.with_name(f"{directory.name}-pieces")
  room.mkdir()
  return _save(spec, directory, {"tokenizer.model": _sentencepiece(room)})


# How big_vision and transformers prepare SigLIP's images.
_BILINEAR = {
  "antialias": False,
  "interpolation": "bilinear",
  "convert_rgb": "before",
}


def converted(make, to, name="model", **changes):
  """Returns a function that makes a model and writes it in another format."""

  def build(directory):
    directory.mkdir()
    source = make(directory / "source", **changes)
    convert.convert(source, directory / name, to=to)
    return directory / name

  return build


def npz_with_tokenizer(directory, **changes):
  """A SigLIP of big_vision with its tokenizer beside it."""
  build = converted(
    siglip_directory, "big-vision", "model.npz", **_BILINEAR, **changes
  )
  path = build(directory)
  shutil.copy(directory / "source" / "tokenizer.model", directory)
  return path


def flax_clip(directory):
  """A FlaxCLIPModel, which transformers no longer has."""
  converted(clip_directory, "huggingface")(directory)
  model = directory / "model"
  tree = {}
  for name, tensor in safetensors_file.read(
    model / "model.safetensors"
  ).tensors.items():
    *parents, last = name.split(".")
    array = tensor.read()
    if last == "weight" and "embedding" in parents[-1]:
      last = "kernel" if array.ndim == 4 else "embedding"
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    elif last == "weight" and array.ndim == 2:
      last, array = "kernel", array.T
    elif last == "weight":
      last = "scale"
    tree[(*parents, last)] = np.array(array)
  data = flax.serialization.msgpack_serialize(
    flax.traverse_util.unflatten_dict(tree)
  )
  (model / "model.safetensors").unlink()
  (model / "flax_model.msgpack").write_bytes(data)
  return model


def _tensors(entries, spec):
  """Writes random numbers for `entries` of the tower that `spec` describes."""
  rng = np.random.default_rng(1)
  arrays = {
    path: rng.normal(size=shape, scale=0.2).astype(np.float32)
    for path, shape in engine.leaf_shapes(spec).items()
  }
  tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
  model = portable.from_variables(tree, spec, files={}, source={"format": "x"})
  return engine.to_theirs(entries, model.leaves)


def timm_directory(directory):
  """An image tower as timm saves it."""
  directory.mkdir()
  config = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {
      "img_size": 16,
      "patch_size": 8,
      "embed_dim": 24,
      "depth": 1,
      "num_heads": 2,
    },
  }
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "model.safetensors").write_bytes(b"")
  reading = SourceReading("x", "timm")
  spec = timm.describe(config, directory / "config.json", reading)
  safetensors_file.write(
    directory / "model.safetensors",
    _tensors(timm_vit.NAMES.entries(spec), spec),
  )
  return directory


_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "red", "cat"]


def bert_directory(directory):
  """A BERT, which does not say how its tokens become one vector."""
  directory.mkdir()
  config = {
    "model_type": "bert",
    "vocab_size": len(_WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
  }
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
  text = {
    "kind": "bert",
    "context_length": 12,
    "vocab_size": len(_WORDS),
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 24,
    "positions": 12,
    "token_types": 2,
    "pooling": "mean",
  }
  spec = engine.resolve({"text": text, "tokenizer": {"kind": "clip_bpe"}})
  safetensors_file.write(
    directory / "model.safetensors",
    _tensors(bert.FAMILY.entries({"text": text}), spec),
  )
  return directory


def sentence_directory(directory):
  """A sentence encoder: a BERT and the mean of its tokens."""
  bert_directory(directory)
  modules = [
    {"idx": i, "name": str(i), "path": path, "type": f"x.models.{kind}"}
    for i, (path, kind) in enumerate(
      (("", "Transformer"), ("1_Pooling", "Pooling"))
    )
  ]
  (directory / "modules.json").write_text(
    json.dumps(modules).replace("x.models", "sentence_transformers.models")
  )
  (directory / "1_Pooling").mkdir()
  pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
  (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
  (directory / "sentence_bert_config.json").write_text(
    json.dumps({"max_seq_length": 12})
  )
  return directory


def timm_file(directory):
  """The weights of a timm tower alone, which do not say what they mean."""
  return timm_directory(directory) / "model.safetensors"


def _sigmoid_workdir(directory):
  return workdir(directory, loss="sigmoid")


def _unknown_vocabulary(directory):
  return npz_with_tokenizer(directory, vocab_size=50)


MAKERS = {
  "workdir": workdir,
  "workdir, sigmoid": _sigmoid_workdir,
  "clip-jax": clip_directory,
  "clip-jax, SigLIP": siglip_directory,
  "clip-jax of an image tower": converted(timm_directory, "clip-jax"),
  "clip-jax of a text tower": converted(sentence_directory, "clip-jax"),
  "huggingface, CLIP": converted(clip_directory, "huggingface"),
  "huggingface, SigLIP": converted(
    siglip_directory, "huggingface", cleaning="hf_siglip", **_BILINEAR
  ),
  "open-clip": converted(clip_directory, "open-clip"),
  "open-clip, with a bias": converted(
    clip_directory, "open-clip", init_logit_bias=-10.0
  ),
  "open-clip, ResNet": converted(resnet_directory, "open-clip"),
  "openai": converted(clip_directory, "openai", "model.pt"),
  "big-vision": npz_with_tokenizer,
  "big-vision, unknown vocabulary": _unknown_vocabulary,
  "timm": timm_directory,
  "timm, bare file": timm_file,
  "bert": bert_directory,
  "sentence-transformers": sentence_directory,
  "flax-clip": flax_clip,
}


def maker(tmp_path_factory):
  """Returns a function from a kind to the path of a model, made once."""

  @functools.cache
  def make(kind):
    return MAKERS[kind](tmp_path_factory.mktemp("kind") / "it")

  return make
