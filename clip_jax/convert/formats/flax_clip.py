"""The retired FlaxCLIPModel of HuggingFace: `flax_model.msgpack`, to read.

transformers 5 has no Flax models any more, but their files are on the Hub
beside or instead of PyTorch's. Description, preprocessing and tokenizer are
those of `huggingface`; only names and layouts differ: flax's, like ours.
"""

import pathlib

from clip_jax import errors
from clip_jax.convert import portable, tokenizer_files, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.names import FLAX, Names
from clip_jax.convert.formats import huggingface
from clip_jax.convert.formats import huggingface_weights as weights

NAME = "flax-clip"
FILE = "flax_model.msgpack"
WHOLE = """
-       logit_scale        log_scale
weight  visual_projection  image_projection
weight  text_projection    text_projection
part    vision_model/      image  image
part    text_model/        text   text
"""
IMAGE = """
-       embeddings/class_embedding               class_embedding
-       embeddings/patch_embedding/kernel        patch_kernel
-       embeddings/position_embedding/embedding  position_embedding
norm    pre_layrnorm                             ln_pre
stack   encoder/layers/{i}/                      blocks  block
norm    post_layernorm                           ln_post
"""
TEXT = """
-       embeddings/token_embedding/embedding     token_embedding/embedding
-       embeddings/position_embedding/embedding  position_embedding
stack   encoder/layers/{i}/                      blocks  block
norm    final_layer_norm                         ln_final
"""
BLOCK = """
norm    layer_norm1         ln_1
norm    layer_norm2         ln_2
heads   self_attn/q_proj    attention/query
heads   self_attn/k_proj    attention/key
heads   self_attn/v_proj    attention/value
out     self_attn/out_proj  attention/out
linear  mlp/fc1             mlp/fc_in
linear  mlp/fc2             mlp/fc_out
"""
NAMES = Names(
  {"whole": WHOLE, "image": IMAGE, "text": TEXT, "block": BLOCK}, kinds=FLAX
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` has such weights, and none for PyTorch."""
  return (
    (path / FILE).is_file()
    and huggingface.model_type(path) is not None
    and weights.find(path) is None
  )


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a directory.

  Raises:
    UserError: it is damaged, or holds another model than a CLIP's two towers.
  """
  report = report_lib.Report(NAME)
  config = huggingface.read_config(path, report, options.activation)
  if config.family.name != "clip" or config.tower:
    raise errors.UserError(
      f"{path}: {FILE} is read for model_type='clip' only; this is "
      f"{huggingface.model_type(path)!r}."
    )
  tensors = weights_file.read(path / FILE, options, report).tensors
  spec = huggingface.describe(path, config)
  huggingface.check_depths(spec, tensors, f"{path}: {FILE}")
  return portable.assemble(
    NAMES.entries(spec),
    tensors,
    spec,
    report=report,
    name=str(path),
    options=options,
    configs=[path / huggingface.CONFIG],
    weights=[path / FILE],
    files=tokenizer_files.carry(path),
  )


FORMAT = Format(NAME, read, recognise=recognise)
