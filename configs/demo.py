"""CLIP on real handwritten digits, on a CPU, in under two minutes.

Two scans side by side, "a photo of the number three seven". Twenty of the
hundred numbers are never seen in training, neither as image nor as text; the
trained model names them all the same.

  clip-jax train --config configs/demo.py --workdir runs/demo
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-rn"
  # A scan has 8 pixels: more of them only cost time.
  config.model_overrides.image = {"image_size": 24}
  config.batch_size = 256
  config.steps = 430
  config.precision = "float32"
  config.data.threads = 1  # More would take the cores from the model.
  config.data.train = "builtin:two_digits/train"
  config.optim.peak_lr = 3e-3
  config.optim.warmup_steps = 50
  config.optim.beta2 = 0.98
  config.optim.weight_decay = 0.1
  config.evals.seen = {"data": "builtin:two_digits/test"}
  config.evals.unseen = {"data": "builtin:two_digits/unseen"}
  config.checkpoint.every_steps = 200
  config.report = "builtin:two_digits/unseen"
  return config
