"""What stands for the flags of open_clip's training command here.

`docs/open_clip.md` has the same table.
"""

from collections.abc import Sequence

from clip_jax import terminal

_C = "--config."

# What to write in place of a flag, with "{}" for its value.
FLAGS = {
  "train-data": f"{_C}data.train=wds:{{}}, or csv:{{}} for a table",
  "dataset-type": "wds: or csv: in front of the path",
  "csv-img-key": "?image={} at the end of the address",
  "csv-caption-key": "?caption={} at the end of the address",
  "csv-separator": "?sep=tab (comma, pipe, semicolon), where the header "
  "does not tell it",
  "train-num-samples": "nothing: the data are counted",
  "val-num-samples": "nothing: the data are counted",
  "dataset-resampled": "nothing: every epoch is a new order of all pairs",
  "train-data-upsampling-factors": f'{_C}data.train=\'{{"wds:A": 2, '
  '"wds:B": 1}\'',
  "val-data": f"{_C}evals.NAME.data=wds:{{}} {_C}evals.NAME.task=retrieval",
  "imagenet-val": f"{_C}evals.imagenet.data=folder:{{}} "
  f"{_C}evals.imagenet.labels=FILE, a name for each folder in their order",
  "imagenet-v2": f"{_C}evals.imagenet_v2.data=folder:{{}} "
  f"{_C}evals.imagenet_v2.labels=FILE, a name for each folder in their order",
  "zeroshot-frequency": f"{_C}eval_every_steps=N, in updates",
  "val-frequency": f"{_C}eval_every_steps=N, in updates",
  "save-frequency": f"{_C}checkpoint.every_steps=N, in updates",
  "save-most-recent": f"{_C}checkpoint.keep=1",
  "delete-previous-checkpoint": f"{_C}checkpoint.keep=1",
  "logs": "--workdir {}/NAME",
  "name": "--workdir LOGS/{}",
  "resume": "nothing: the same command goes on by itself; from a file of "
  f"open_clip, {_C}init.model=FILE",
  "pretrained": f"{_C}init.model=MODEL",
  "pretrained-image": f"{_C}init.image=MODEL",
  "batch-size": f"{_C}batch_size=N, {{}} times the processes and "
  "the accum-freq of open_clip",
  "accum-freq": f"{_C}micro_batches={{}}, parts of the batch",
  "epochs": f"{_C}epochs={{}}",
  "model": f"{_C}model={{}}; with GELU, ViT-B-32 is ViT-B-32-gelu",
  "precision": f"{_C}precision=bfloat16 for any amp or bf16, or float32",
  "seed": f"{_C}seed={{}}",
  "workers": f"{_C}data.workers={{}}",
  "lr": f"{_C}optim.peak_lr={{}}",
  "wd": f"{_C}optim.weight_decay={{}}",
  "beta1": f"{_C}optim.beta1={{}}",
  "beta2": f"{_C}optim.beta2={{}}",
  "eps": f"{_C}optim.epsilon={{}}",
  "opt": f"{_C}optim.name={{}}",
  "warmup": f"{_C}optim.warmup_steps={{}}",
  "grad-clip-norm": f"{_C}optim.clip_norm={{}}",
  "lr-scheduler": "nothing: a cosine follows the warm-up",
  "grad-checkpointing": f"{_C}model_overrides.image.remat=full "
  f"{_C}model_overrides.text.remat=full",
  "lock-image": f"{_C}optim.frozen=^image",
  "lock-text": f"{_C}optim.frozen=^text",
  "lock-image-unlocked-groups": f"a longer {_C}optim.frozen: docs/finetune.md",
  "lock-image-freeze-bn-stats": f"nothing: norms that {_C}optim.frozen "
  "matches keep their statistics",
  "lock-text-unlocked-layers": f"a longer {_C}optim.frozen: docs/finetune.md",
  "lock-text-freeze-layer-norm": f"nothing: {_C}optim.frozen matches norms, "
  "too",
  "siglip": f"{_C}model=ViT-B-16-SigLIP {_C}loss.kind=sigmoid",
  "loss-dist-impl": f"{_C}loss.method=ring, or nothing",
  "coca-caption-loss-weight": f"{_C}objective.captioning_weight={{}}",
  "coca-contrastive-loss-weight": "nothing: its weight is 1",
  "local-loss": "nothing: logits of all devices are never held at once",
  "gather-with-grad": "nothing: gradients are those of the whole batch",
  "force-patch-dropout": f"{_C}model_overrides.image.patch_dropout={{}}",
  "force-image-size": f"{_C}model_overrides.image.image_size={{}}",
  "force-quick-gelu": "nothing: ViT-B-32 and OpenAI's others have it",
  "aug-cfg": f"{_C}augment.scale=0.9 and others: docs/train.md",
  "report-to": f"{_C}tracker=wandb; TensorBoard's events are always written",
  "log-every-n-steps": f"{_C}log_every_steps={{}}",
  "remote-sync": "--workdir gs://BUCKET/RUN or s3://BUCKET/RUN",
  "torchcompile": "nothing: every step is compiled",
  "use-bn-sync": "nothing: batch norms see the whole batch",
  "dist-url": "--coordinator HOST:PORT --processes N --process-id I",
  "dist-backend": "nothing",
  "device": "nothing: JAX takes the accelerator that is there",
  "cache-dir": "nothing: HF_HOME says where the Hub's files are kept",
  "distill-model": "nothing: distillation is not here",
  "copy-codebase": "nothing",
}


def translation(words: Sequence[str]) -> list[tuple[str, str]]:
  """Returns the flags of open_clip among `words`, and what to write instead."""
  found = []
  for i, word in enumerate(words):
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("_", "-")
    if not flag.startswith("--") or name not in FLAGS:
      continue
    following = words[i + 1] if i + 1 < len(words) else ""
    if not equals and not following.startswith("-"):
      value = following
    value = terminal.escaped(value or "VALUE", limit=200)
    found.append((flag, FLAGS[name].replace("{}", value)))
  return found
