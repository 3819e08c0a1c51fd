"""Golden outputs of small OpenCLIP models, and the shapes of the shipped ones.

    python tools/golden/open_clip_models.py

writes tests/golden/open_clip.npz (outputs in float64) and
tests/golden/open_clip_shipped.json (a digest of each shipped config's names
and shapes). It needs what tests/oracles.txt lists; torchvision is not used.
"""

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import sys
import tempfile
import types
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
OUTPUTS = GOLDEN / "open_clip.npz"
SHIPPED = GOLDEN / "open_clip_shipped.json"

_VISION = {
  "image_size": 20,
  "patch_size": 5,
  "width": 48,
  "layers": 2,
  "head_width": 12,
  "mlp_ratio": 2.5,
}
_TEXT = {
  "context_length": 9,
  "vocab_size": 50,
  "width": 36,
  "heads": 3,
  "layers": 3,
}
_SIGLIP_TEXT = {
  **_TEXT,
  "mlp_ratio": 3.7362,
  "no_causal_mask": True,
  "pool_type": "last",
  "proj_bias": True,
  "norm_kwargs": {"eps": 1e-6},
}
_TANH = {"act_kwargs": {"approximate": "tanh"}}
_BERT_TEXT = {
  "context_length": 9,
  "hf_model_name": "tiny-bert",
  "hf_tokenizer_name": "tiny-bert",
}
# Small towers of timm's, by names that timm does not have: the arguments of
# its VisionTransformer, and what else our table says of them.
TIMM = {
  "vit_nano_patch5_siglip_20": {
    "class_token": False,
    "global_pool": "map",
  },
  "vit_nano_patch5_siglip_tanh_22": {
    "class_token": False,
    "global_pool": "map",
    "act_layer": "gelu_tanh",
    "img_size": 22,
  },
  "vit_nano_patch5_20": {},
  "vit_nano_patch5_clip_20": {"pre_norm": True, "norm_layer": "torch"},
  "vit_nano_patch5_reg4_gap_20": {
    "class_token": False,
    "no_embed_class": True,
    "reg_tokens": 4,
    "global_pool": "avg",
  },
  "flexivit_nano": {"no_embed_class": True},
}
_TIMM_ARGS = {
  "img_size": 20,
  "patch_size": 5,
  "embed_dim": 48,
  "depth": 2,
  "num_heads": 4,
  "mlp_ratio": 2.5,
}
BERT = {
  "model_type": "bert",
  "vocab_size": 50,
  "hidden_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 5,
  "intermediate_size": 88,
  "max_position_embeddings": 13,
  "type_vocab_size": 3,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "pad_token_id": 0,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "##s", "dog")


def _timm(name, pool, proj, **more):
  size = int(name.split("_")[-1]) if name[-1].isdigit() else 20
  return {
    "image_size": size,
    "timm_model_name": name,
    "timm_pool": pool,
    "timm_proj": proj,
    **more,
  }


# `model_cfg` by dialect.
CASES = {
  "vit_gelu": {"embed_dim": 22, "vision_cfg": _VISION, "text_cfg": _TEXT},
  "vit_quick_gelu": {
    "embed_dim": 22,
    "quick_gelu": True,
    "vision_cfg": _VISION,
    "text_cfg": {**_TEXT, "pool_type": "eos", "eos_id": 7},
  },
  "vit_tanh": {
    "embed_dim": 22,
    "vision_cfg": {
      **_VISION,
      **_TANH,
      "image_size": 23,
      "norm_kwargs": {"eps": 1e-3},
    },
    "text_cfg": {**_TEXT, **_TANH, "norm_kwargs": {"eps": 1e-4}},
  },
  "resnet": {
    "embed_dim": 22,
    "quick_gelu": True,
    "vision_cfg": {
      "image_size": 64,
      "layers": [1, 2, 1, 1],
      "width": 8,
      "patch_size": None,
    },
    "text_cfg": _TEXT,
  },
  "clipa": {
    "embed_dim": 22,
    "vision_cfg": {
      **_VISION,
      "no_ln_pre": True,
      "pool_type": "avg",
      "final_ln_after_pool": True,
    },
    "text_cfg": {**_TEXT, "pool_type": "last", "no_causal_mask": True},
  },
  "mean_before_norm": {
    "embed_dim": 22,
    "vision_cfg": {**_VISION, "pool_type": "avg", "mlp_ratio": 4.9231},
    "text_cfg": {**_TEXT, "pool_type": "last", "proj_bias": True},
  },
  "custom_text": {
    "embed_dim": 22,
    "custom_text": True,
    "init_logit_scale": 2.0,
    "init_logit_bias": -3,
    "nonscalar_logit_scale": True,
    "vision_cfg": _VISION,
    "text_cfg": _SIGLIP_TEXT,
  },
  "no_text_projection": {
    "embed_dim": 36,
    "vision_cfg": _VISION,
    "text_cfg": {**_TEXT, "proj_type": "none"},
  },
  "siglip": {
    "embed_dim": 48,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": _timm("vit_nano_patch5_siglip_20", "map", "none"),
    "text_cfg": _SIGLIP_TEXT,
  },
  "siglip_tanh": {
    "embed_dim": 22,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": _timm(
      "vit_nano_patch5_siglip_tanh_22", "", "linear", timm_proj_bias=True
    ),
    "text_cfg": {**_SIGLIP_TEXT, **_TANH},
  },
  "timm_classifier": {
    "embed_dim": 22,
    "quick_gelu": True,
    "vision_cfg": _timm("vit_nano_patch5_clip_20", "token", None),
    "text_cfg": _TEXT,
  },
  "timm_mean": {
    "embed_dim": 48,
    "vision_cfg": _timm("vit_nano_patch5_20", "avg", "none"),
    "text_cfg": _TEXT,
  },
  "timm_bert_mean": {
    "embed_dim": 22,
    "vision_cfg": _timm("vit_nano_patch5_20", "token", "linear"),
    "text_cfg": {**_BERT_TEXT, "hf_proj_type": "linear"},
  },
  "timm_bert_pooler": {
    "embed_dim": 22,
    "vision_cfg": _timm("vit_nano_patch5_20", "avg", "linear"),
    "text_cfg": {**_BERT_TEXT, "hf_pooler_type": "cls_pooler"},
  },
}


class _AnyType(type):
  def __getattr__(cls, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return cls()


class _Anything(metaclass=_AnyType):
  def __init__(self, *args, **kwargs):
    pass

  def __call__(self, *args, **kwargs):
    return self

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return self


class _Module(types.ModuleType):
  __path__ = ()

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return _AnyType(name, (_Anything,), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds names of torchvision, which open_clip and timm only mention."""

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] != "torchvision":
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec):
    return _Module(spec.name)

  def exec_module(self, module):
    pass


def import_libraries():
  """Returns open_clip and timm, or raises ImportError."""
  # It must not take the stand-in for torchvision itself, so it comes first.
  from transformers import AutoModel, AutoTokenizer, BertModel

  del AutoModel, AutoTokenizer, BertModel
  if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.append(_StandIn())
  try:
    import open_clip
    import timm
  finally:
    sys.meta_path[:] = [f for f in sys.meta_path if type(f) is not _StandIn]
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
      if isinstance(sys.modules[name], _Module):
        del sys.modules[name]
  _register(timm)
  return open_clip, timm


def _register(timm):
  """Teaches timm the names of `TIMM`."""
  from timm.models import _registry, vision_transformer
  from torch import nn

  def maker(name, more):
    def make(pretrained=False, **kwargs):
      del pretrained
      kwargs.pop("pretrained_cfg", None)
      kwargs.pop("pretrained_cfg_overlay", None)
      kwargs.pop("cache_dir", None)
      arguments = {**_TIMM_ARGS, **more, **kwargs}
      if arguments.get("norm_layer") == "torch":
        arguments["norm_layer"] = nn.LayerNorm  # Its epsilon is 1e-5.
      model = vision_transformer.VisionTransformer(**arguments)
      model.default_cfg = model.pretrained_cfg = {}
      return model

    make.__name__ = name
    make.__module__ = vision_transformer.__name__
    return make

  for name, more in TIMM.items():
    if name not in _registry._model_entrypoints:
      _registry._model_entrypoints[name] = maker(name, more)


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a tensor's numbers: the same everywhere, and far from neutral.

  RandomState's streams are frozen. Norms and biases leave ones and zeros,
  matrices are large enough for activations to leave their linear range.
  """
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  if name.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  if name in ("logit_scale", "logit_bias"):
    value = np.full(shape, 2.3 if name == "logit_scale" else -1.7)
  elif name.endswith("running_var"):
    value = 1e-3 + 2 * rng.random_sample(shape)
  elif len(shape) <= 1:
    scale = name.endswith((".weight", ".gamma"))
    value = float(scale) + 0.2 * rng.standard_normal(shape)
  elif "embed" in name or "token" in name or "latent" in name:
    value = 0.5 * rng.standard_normal(shape)
  else:
    value = 2 * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
  return value.astype(np.float32)


def inputs(model_cfg) -> tuple[np.ndarray, np.ndarray]:
  """Returns images (3, size, size, 3), normalised, and tokens (3, length)."""
  rng = np.random.RandomState(5)
  size = model_cfg["vision_cfg"]["image_size"]
  images = rng.standard_normal((3, size, size, 3))
  length = model_cfg["text_cfg"]["context_length"]
  tokens = rng.randint(1, 40, size=(3, length))
  tokens[tokens == 7] = 8
  # Ends early, in the middle and last; once 7 stands where 49 does not.
  for row, end in enumerate((2, 5, length - 1)):
    tokens[row, end] = 49
    tokens[row, end + 1 :] = 0
    tokens[row, 1] = 7
  return images, tokens


def write_config(model_cfg, directory: pathlib.Path) -> None:
  """Writes the config, and what a BERT needs beside it."""
  directory.mkdir(parents=True, exist_ok=True)
  config = {"model_cfg": model_cfg, "preprocess_cfg": {}}
  (directory / "open_clip_config.json").write_text(json.dumps(config))
  if "hf_model_name" in model_cfg["text_cfg"]:
    write_bert(directory)


def write_bert(directory: pathlib.Path) -> None:
  """Writes the small BERT's config and vocabulary."""
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "config.json").write_text(json.dumps(BERT))
  (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
  (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@contextlib.contextmanager
def bert_by_name():
  """Works in a directory where the name of the small BERT leads to it."""
  here = os.getcwd()
  with tempfile.TemporaryDirectory() as directory:
    write_bert(pathlib.Path(directory) / "tiny-bert")
    os.chdir(directory)
    try:
      yield
    finally:
      os.chdir(here)


def load(open_clip, directory: pathlib.Path):
  """Returns open_clip's model of a directory, in float64."""
  directory = directory.absolute()
  with bert_by_name():
    model = open_clip.create_model(
      f"local-dir:{directory}", pretrained_text=False
    )
  return model.double().eval()


def shapes(open_clip, model_cfg) -> dict[str, list[int]]:
  """Returns the names and shapes of a model's tensors."""
  with tempfile.TemporaryDirectory() as directory:
    write_config(model_cfg, pathlib.Path(directory))
    state = load(open_clip, pathlib.Path(directory)).state_dict()
  return {name: list(tensor.shape) for name, tensor in state.items()}


def outputs(model, images, tokens) -> list[np.ndarray]:
  """Returns unit embeddings of images and of texts, and logits."""
  import torch

  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits, _ = model.get_logits(pixels, ids)
    found = [
      model.encode_image(pixels, normalize=True),
      model.encode_text(ids, normalize=True),
      logits,
    ]
  return [x.numpy() for x in found]


def digest(names_and_shapes: dict[str, list[int]]) -> str:
  """Returns a digest of names and shapes in any order."""
  lines = sorted(f"{k} {list(v)}" for k, v in names_and_shapes.items())
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _golden_outputs(open_clip) -> dict[str, np.ndarray]:
  import torch
  from safetensors.numpy import save_file

  found = {}
  for case, model_cfg in CASES.items():
    names = shapes(open_clip, model_cfg)
    with tempfile.TemporaryDirectory() as temporary:
      directory = pathlib.Path(temporary)
      write_config(model_cfg, directory)
      save_file(
        {name: fill(name, tuple(shape)) for name, shape in names.items()},
        directory / "open_clip_model.safetensors",
      )
      model = load(open_clip, directory)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    for part, value in zip(
      ("image", "text", "logits"),
      outputs(model, *inputs(model_cfg)),
      strict=True,
    ):
      found[f"{case}/{part}"] = value
    found[f"{case}/shapes"] = np.array(json.dumps(names))
  return found


def _shipped(open_clip):
  import torch

  found = {}
  for name in open_clip.list_models():
    config = open_clip.get_model_config(name)
    entry = {"model_cfg": json.loads(json.dumps(config))}
    # Towers of other kinds are refused here, and are slow to make.
    tower = config["vision_cfg"].get("timm_model_name", "vit_base_patch16")
    if "hf_model_name" not in config["text_cfg"] and "vit_" in tower[:4]:
      with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
        try:
          state = open_clip.create_model(name, device="meta").state_dict()
        except Exception as error:
          print(f"{name}: {error!r:.100}")
        else:
          entry["digest"] = digest({k: list(v.shape) for k, v in state.items()})
    found[name] = entry
  return found


def main():
  """Writes both files."""
  open_clip, _ = import_libraries()
  np.savez_compressed(OUTPUTS, **_golden_outputs(open_clip))
  shipped = _shipped(open_clip)
  lines = [
    f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
    for k, v in shipped.items()
  ]
  SHIPPED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
  for path in (OUTPUTS, SHIPPED):
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
