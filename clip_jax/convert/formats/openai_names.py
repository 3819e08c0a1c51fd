"""The names of OpenAI's tensors, some of which OpenCLIP has as well."""

from collections.abc import Iterable

import numpy as np

from clip_jax.convert.engine.names import Names
from clip_jax.convert.tensor import Tensor

TEXT = """
-        token_embedding.weight      token_embedding/embedding
-        positional_embedding        position_embedding
stack    transformer.resblocks.{i}.  blocks  block
norm     ln_final                    ln_final
"""
VIT = """
-        class_embedding             class_embedding  if class_token
-        positional_embedding        position_embedding
conv     conv1.weight                patch_kernel
norm     ln_pre                      ln_pre  if pre_norm
stack    transformer.resblocks.{i}.  blocks  block
norm     ln_post                     ln_post
"""
BLOCK = """
norm     ln_1           ln_1
in_proj  attn.in_proj   attention/query,key,value
out      attn.out_proj  attention/out
norm     ln_2           ln_2
linear   mlp.c_fc       mlp/fc_in
linear   mlp.c_proj     mlp/fc_out
"""
RESNET = """
conv        conv1.weight             stem_1/conv/kernel
batch_norm  bn1                      stem_1/norm
conv        conv2.weight             stem_2/conv/kernel
batch_norm  bn2                      stem_2/norm
conv        conv3.weight             stem_3/conv/kernel
batch_norm  bn3                      stem_3/norm
stages      layer{stage}.{block}.    blocks          bottleneck
part        attnpool.                attention_pool  pool
"""
# The first block of a stage changes the number of channels, so it projects.
BOTTLENECK = """
conv        conv1.weight         conv_1/conv/kernel
batch_norm  bn1                  conv_1/norm
conv        conv2.weight         conv_2/conv/kernel
batch_norm  bn2                  conv_2/norm
conv        conv3.weight         conv_3/conv/kernel
batch_norm  bn3                  conv_3/norm
conv        downsample.0.weight  downsample/conv/kernel  if first
batch_norm  downsample.1         downsample/norm         if first
"""
POOL = """
-      positional_embedding  position_embedding
heads  q_proj                attention/query
heads  k_proj                attention/key
heads  v_proj                attention/value
out    c_proj                attention/out
"""
TABLES = {
  **{"text": TEXT, "vit": VIT, "block": BLOCK},
  **{"resnet": RESNET, "bottleneck": BOTTLENECK, "pool": POOL},
}
WHOLE = """
-        logit_scale      log_scale
part     visual.          image  vit     if image.kind=vit
part     visual.          image  resnet  if image.kind=resnet
-        visual.proj      image_projection/kernel  if image.kind=vit
part     .                text   text
-        text_projection  text_projection/kernel
"""
NAMES = Names({"whole": WHOLE, **TABLES})


def running_counts(names: Iterable[str]) -> dict[str, Tensor]:
  """Returns a count for each norm of a ResNet, which torch needs to load it."""
  zero = Tensor.from_array(np.zeros((), np.int64))
  return {
    name.replace("running_var", "num_batches_tracked"): zero
    for name in names
    if name.endswith("running_var")
  }
