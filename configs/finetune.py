"""Fine-tunes any MODEL on your own pictures: a folder, or a table of captions.

  clip-jax train --config configs/finetune.py --workdir runs/mine \
    --config.init.model=MODEL --config.data.train=folder:PICTURES

Architecture, tokenizer, image size and loss come from the model. A fifth of
the pictures is held out, and measured before and after: PICTURES/CLASS/*.jpg by
zero-shot classification, captioned pictures by retrieval. What is forgotten
shows on other data, such as --config.evals.other.data=DATA.

A picture of a class has its name in `data.template` as its caption. Pairs of a
batch with the same caption are positives of each other, so that a batch may
hold a class, and a picture, more than once. The batch norms of a ResNet are
best locked, with --config.optim.frozen=/norm/: statistics of few pictures move
it far from what it knew.

  --config.optim.peak_lr=3e-4         a small model, such as the demo's
  --config.optim.layer_decay=0.75     layers below the top learn more slowly
                                      (Transformers)
  --config.optim.frozen='^text/'      locks a tower; '^image/' the other one
  --config.epochs=3                   for more than some thousand pictures
  --config.precision=bfloat16         on a TPU or a GPU
"""

from clip_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.model = "from_init"
  config.data.held_out = 0.2
  config.data.template = "a photo of a {}."
  config.data.max_bad_fraction = 0.1  # One of ten: few pictures are few.
  config.batch_size = 32
  config.epochs = 10.0
  config.min_steps = 100
  config.precision = "float32"
  config.loss.kind = "auto"
  config.loss.duplicates = "positive"
  config.optim.peak_lr = 1e-5
  config.optim.weight_decay = 0.1
  config.evals.own = {"task": "auto", "data": "held_out"}
  config.report = "held_out"
  config.log_every_steps = 10
  config.checkpoint.every_steps = 500
  config.checkpoint.keep = 2
  return config
