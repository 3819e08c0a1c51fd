"""The run that compiles fastest: one block sees, a bag of words reads."""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {
      "kind": "vit",
      "patch_size": 16,
      "width": 8,
      "depth": 1,
      "heads": 2,
    },
    "text": {"width": 8},
  }
  config.data.train = "builtin:two_digits/test"
  config.batch_size = 16
  config.steps = 3
  config.precision = "float32"
  config.optim.warmup_steps = 2
  config.checkpoint.every_steps = 1
  config.log_every_steps = 1
  return config
