"""The paper's comparison of objectives (section 2.3, Figure 2), in small.

The same ResNet, data, order, crops, batch and optimizer; what training asks is
the only difference:

  for kind in contrastive bow_contrastive bow lm; do
    clip-jax train --config configs/objectives.py --workdir runs/$kind \
      --config.objective.kind=$kind
  done

`python tools/objectives.py` runs all four, and draws the figure.
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides.image = {"image_size": 24}
  # Captioning computes the logits of the whole vocabulary at every place.
  config.model_overrides.text = {"width": 32, "context_length": 12}
  config.batch_size = 256
  config.steps = 400
  config.precision = "float32"
  config.data.threads = 1  # More would take the cores from the model.
  config.data.train = "builtin:tinted_digits/train"
  config.optim.peak_lr = 2e-3
  config.optim.warmup_steps = 40
  config.optim.beta2 = 0.98
  config.optim.weight_decay = 0.1
  config.eval_every_steps = 50
  config.log_every_steps = 50
  config.evals.all = {"data": "builtin:tinted_digits/test"}
  config.evals.unseen = {"data": "builtin:tinted_digits/unseen"}
  config.checkpoint.every_steps = 200
  return config
