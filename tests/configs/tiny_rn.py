"""The smallest run with batch norms, on real scans."""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {"width": 8, "image_size": 16},
    "text": {"width": 16, "depth": 1, "heads": 2},
  }
  config.data.train = "builtin:two_digits/train"
  config.batch_size = 16
  config.steps = 40
  config.precision = "float32"
  config.optim.warmup_steps = 5
  config.optim.peak_lr = 2e-3
  config.checkpoint.every_steps = 3
  config.log_every_steps = 1
  return config
