"""The task of configs/demo.py with a Vision Transformer.

Without convolutions the model must learn from few scans what neighbours are,
and learns many times slower than the ResNet at this size.

  clip-jax train --config configs/demo_vit.py --workdir runs/demo_vit
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.batch_size = 256
  config.steps = 3000
  config.precision = "float32"
  config.data.train = "builtin:two_digits/train"
  config.optim.peak_lr = 2e-3
  config.optim.warmup_steps = 200
  config.optim.weight_decay = 0.1
  config.evals.seen = {"data": "builtin:two_digits/test"}
  config.evals.unseen = {"data": "builtin:two_digits/unseen"}
  config.checkpoint.every_steps = 500
  config.report = "builtin:two_digits/unseen"
  return config
