"""The paper's ViT-B/32 recipe: batch 32,768, 32 epochs (Tables 18 and 20).

Give your own pairs as a DATA address and the devices that split parameters:

  clip-jax train --config configs/vit_b32.py --workdir /mnt/bucket/vit_b32 \
    --config.data.train=arrayrecord:/data/prepared --config.mesh.fsdp=8

Warm-up, weight decay, temperature and Adam's betas are the schema's defaults,
which are the paper's.
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "ViT-B-32"
  config.batch_size = 32_768
  config.epochs = 32
  config.precision = "bfloat16"
  config.data.workers = 16
  config.data.threads = 8
  config.optim.peak_lr = 5e-4  # Table 20.
  config.checkpoint.every_steps = 1000
  return config
