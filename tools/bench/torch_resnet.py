"""CLIP's ResNet in PyTorch, with any number of stages, to time against ours.

open_clip's has four stages, and transformers has none. The layers are torch's,
put together as the paper (section 2.4) and OpenAI's release do; nothing is read
from a checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv_norm(inputs, outputs, size, stride=1, *, relu=True):
  """Returns a convolution, its norm, and a ReLU if wanted."""
  return nn.Sequential(
    nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
    nn.BatchNorm2d(outputs),
    nn.ReLU(inplace=True) if relu else nn.Identity(),
  )


class Bottleneck(nn.Module):
  """A residual block whose strides are average pools."""

  def __init__(self, inputs, features, stride):
    super().__init__()
    pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
    outputs = 4 * features
    self.block = nn.Sequential(
      conv_norm(inputs, features, 1),
      conv_norm(features, features, 3),
      pool,
      conv_norm(features, outputs, 1, relu=False),
    )
    self.skip = nn.Identity()
    if stride > 1 or inputs != outputs:
      self.skip = nn.Sequential(pool, conv_norm(inputs, outputs, 1, relu=False))

  def forward(self, x):
    return F.relu(self.skip(x) + self.block(x), inplace=True)


class Tower(nn.Module):
  """The image tower of `model`, a `clip_jax.models.clip.CLIP` with a ResNet."""

  def __init__(self, model):
    super().__init__()
    tower = model.image
    width, half = tower.width, tower.width // 2
    layers = [
      conv_norm(3, half, 3, stride=2),
      conv_norm(half, half, 3),
      conv_norm(half, width, 3),
      nn.AvgPool2d(2),
    ]
    inputs = width
    for i, depth in enumerate(tower.depths):
      for j in range(depth):
        features = width * 2**i
        layers.append(Bottleneck(inputs, features, 2 if i and not j else 1))
        inputs = 4 * features
    self.layers = nn.Sequential(*layers)
    side = tower.image_size // 2 ** (1 + len(tower.depths))
    self.positions = nn.Parameter(
      torch.randn(1 + side**2, inputs) / inputs**0.5
    )
    self.heads = inputs // 64
    self.projections = nn.ModuleList(
      nn.Linear(inputs, n) for n in (inputs, inputs, inputs, model.embed_dim)
    )

  def forward(self, pixels):
    x = self.layers(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions
    query, key, value, out = self.projections

    def heads(x):  # (batch, heads, length, 64)
      return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    x = F.scaled_dot_product_attention(
      heads(query(x[:, :1])), heads(key(x)), heads(value(x))
    )
    return out(x.transpose(1, 2).flatten(1))
