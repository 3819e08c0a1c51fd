"""The smallest run: single digits, a tiny ResNet and a bag of words (CBOW).

The paper's simpler text tower (section 2.3) is enough where the order of the
words does not matter. Half a minute on a CPU.

  clip-jax train --config configs/digits.py --workdir runs/digits
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  config.batch_size = 128
  config.steps = 300
  config.precision = "float32"
  config.data.train = "builtin:digits/train"
  config.optim.peak_lr = 2e-3
  config.optim.warmup_steps = 30
  config.optim.beta2 = 0.98
  config.optim.weight_decay = 0.1
  config.evals.test = {"data": "builtin:digits/test"}
  config.checkpoint.every_steps = 100
  config.report = "builtin:digits/test"
  return config
