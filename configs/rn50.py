"""The paper's ResNet-50 recipe: batch 32,768, 32 epochs (Tables 18 and 19).

  clip-jax train --config configs/rn50.py --workdir /mnt/bucket/rn50 \
    --config.data.train=arrayrecord:/data/prepared --config.mesh.fsdp=8

Batch norms see the global batch, as many devices as there are.
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "RN50"
  config.batch_size = 32_768
  config.epochs = 32
  config.precision = "bfloat16"
  config.data.workers = 16
  config.data.threads = 8
  config.optim.peak_lr = 5e-4  # Table 19.
  config.checkpoint.every_steps = 1000
  return config
