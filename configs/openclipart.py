"""A dual encoder on real drawings and their titles, on two cores.

The image tower is a small ResNet that begins from nothing, the text tower the
real MiniLM.
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides = {
    "embed_dim": 256,
    "image": {"image_size": 64, "width": 32, "depths": (1, 1, 1, 1)},
  }
  config.init.text = "minilm"
  config.data.train = "wds:data/openclipart/train-*.tar?captions=lines"
  config.data.threads = 1
  config.batch_size = 128
  config.steps = 200
  config.precision = "float32"
  config.loss.duplicates = "ignore"
  config.optim.peak_lr = 2e-3
  config.optim.weight_decay = 0.1
  config.optim.frozen = "^text/"
  config.evals.validation = {"task": "retrieval", "data": "wds:data/openclipart/validation-00000.tar"}
  config.log_every_steps = 10
  config.eval_every_steps = 50
  return config
