"""What stands here for the flags and config fields of other trainers.

`docs/open_clip.md` has the table of open_clip's flags, too.
"""

from collections.abc import Sequence

from clip_jax import terminal

_C = "--config."
_ROWS = "nothing: captions share rows, or stand in short ones"
_AUDIO = (
  "pretrained-audio",
  "audio-ext",
  "audio-fill",
  "audio-trunc",
  "audio-fusion",
  "audio-int16-normalize",
  "audio-zeroshot-dataset",
  "audio-zeroshot-split",
  "audio-zeroshot-audio-key",
  "audio-zeroshot-target-key",
  "audio-zeroshot-class-key",
  "audio-zeroshot-template",
  "audio-zeroshot-workers",
  "audio-zeroshot-multiprocessing-context",
  "audio-multiprocessing-context",
  "audio-layer-decay",
)
_NAFLEX = (
  "use-naflex",
  "force-naflex-vision",
  "naflex-num-train-image-tokens",
  "naflex-patch-sizes",
  "naflex-patch-size-probs",
  "naflex-seq-lens",
  "naflex-seq-len-probs",
  "naflex-max-tokens-per-batch",
  "naflex-max-text-tokens",
  "naflex-batch-divisor",
  "naflex-loss-scale",
  "naflex-pad-multiple",
)

# What to write in place of a flag of open_clip's training command, with "{}"
# for its value.
FLAGS = {
  "train-data": f"{_C}data.train=wds:{{}}, or csv:{{}} for a table",
  "dataset-type": "wds: or csv: in front of the path",
  "csv-img-key": "?image={} at the end of the address",
  "csv-caption-key": "?caption={} at the end of the address",
  "image-key": "nothing: images are known by their suffix and first bytes",
  "text-key": "nothing: captions are KEY.txt, or caption in KEY.json",
  "json-text-key": "nothing: captions are KEY.txt, or caption in KEY.json",
  "json-text-key-probs": "nothing: captions are KEY.txt, or caption in "
  "KEY.json",
  "max-image-pixels": f"{_C}data.max_pixels={{}}; there is always a limit",
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
  "val-retrieval-chunk-size": "nothing: scores are ranked in parts, in float32",
  "val-retrieval-precision": "nothing: scores are ranked in parts, in float32",
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
  "epochs-cooldown": f"{_C}optim.cooldown_steps=N, in updates",
  "model": f"{_C}model={{}}; with GELU, ViT-B-32 is ViT-B-32-gelu",
  "precision": f"{_C}precision=bfloat16 for any amp or bf16, or float32",
  "seed": f"{_C}seed={{}}",
  "workers": f"{_C}data.workers={{}}",
  "lr": f"{_C}optim.peak_lr={{}}",
  "wd": f"{_C}optim.weight_decay={{}}, which the learning rate multiplies, as "
  "in PyTorch's AdamW",
  "beta1": f"{_C}optim.beta1={{}}",
  "beta2": f"{_C}optim.beta2={{}}",
  "eps": f"{_C}optim.epsilon={{}}",
  "momentum": f"{_C}optim.beta1={{}}",
  "opt": f"{_C}optim.name={{}}",
  "opt-kwargs": f"{_C}optim.beta1 and others: docs/train.md",
  "opt-fallback-list": "nothing: muon turns all matrices of the towers' "
  "layers, and Adam moves the rest",
  "image-layer-decay": f"{_C}optim.layer_decay={{}}, of both towers",
  "visual-layer-decay": f"{_C}optim.layer_decay={{}}, of both towers",
  "text-layer-decay": f"{_C}optim.layer_decay={{}}, of both towers",
  "text-pooler-own-group": "nothing",
  "wd-exclude": "nothing: it cannot be chosen; gains and biases do not decay",
  "warmup": f"{_C}optim.warmup_steps={{}}",
  "grad-clip-norm": f"{_C}optim.clip_norm={{}}",
  "lr-scheduler": f"{_C}optim.schedule={{}}, with constant for const and "
  "const-cooldown",
  "skip-scheduler": f"{_C}optim.schedule=constant {_C}optim.warmup_steps=0",
  "lr-cooldown-end": f"nothing: {_C}optim.cooldown_steps end at 0",
  "lr-cooldown-power": f"nothing: {_C}optim.cooldown_steps are linear",
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
  "force-image-size": f"{_C}model_overrides.image.image_size=N, of a square",
  "force-context-length": f"{_C}model_overrides.text.context_length={{}}",
  "force-custom-text": "nothing: the towers are apart in all models",
  "image-mean": f"{_C}model_overrides.image_mean='[RED, GREEN, BLUE]'",
  "image-std": f"{_C}model_overrides.image_std='[RED, GREEN, BLUE]'",
  "image-interpolation": f"{_C}model_overrides.interpolation=bicubic, or "
  "bilinear",
  "image-resize-mode": f"{_C}model_overrides.resize={{}}",
  "force-quick-gelu": "nothing: ViT-B-32 and OpenAI's others have it",
  "aug-cfg": f"{_C}augment.scale=0.9 and others: docs/train.md",
  "report-to": f"{_C}tracker=wandb; TensorBoard's events are always written",
  "wandb-project-name": f"WANDB_PROJECT={{}} in the environment, with "
  f"{_C}tracker=wandb",
  "wandb-notes": f"WANDB_NOTES={{}} in the environment, with {_C}tracker=wandb",
  "log-every-n-steps": f"{_C}log_every_steps={{}}",
  "log-metric-every-n-steps": f"{_C}log_every_steps={{}}",
  "train-loss-ema-samples": "nothing: the loss of each line is that of its "
  "step",
  "log-local": "nothing: the first process logs",
  "debug": "nothing",
  "remote-sync": "--workdir gs://BUCKET/RUN or s3://BUCKET/RUN",
  "remote-sync-frequency": "nothing: all that a run saves goes to its "
  "bucket at once",
  "remote-sync-protocol": "nothing: gs:// and s3:// say it",
  "torchcompile": "nothing: every step is compiled",
  "torchcompile-strategy": "nothing: every step is compiled",
  "torchcompile-backend": "nothing: every step is compiled",
  "torchcompile-mode": "nothing: every step is compiled",
  "fsdp": f"{_C}mesh.fsdp=N, the devices that split the parameters",
  "fsdp-no-reshard-after-forward": f"nothing beside {_C}mesh.fsdp",
  "fsdp-checkpoint": f"nothing beside {_C}mesh.fsdp",
  "fsdp-offload-cpu": "nothing: parameters stay on the devices",
  "ddp-static-graph": "nothing",
  "horovod": "nothing",
  "no-set-device-rank": "nothing",
  "use-bn-sync": "nothing: batch norms see the whole batch",
  "dist-url": "--coordinator HOST:PORT --processes N --process-id I",
  "dist-backend": "nothing",
  "device": "nothing: JAX takes the accelerator that is there",
  "cache-dir": "nothing: HF_HOME says where the Hub's files are kept",
  "distill-model": "nothing: distillation is not here",
  "distill-pretrained": "nothing: distillation is not here",
  "use-bnb-linear": "nothing: training with int8 is not here",
  "length-bucketing": _ROWS,
  "bucket-pool": _ROWS,
  "bucket-chunk": _ROWS,
  "bucket-prefetch-pools": _ROWS,
  "text-pad-multiple": _ROWS,
  "copy-codebase": "nothing",
  **dict.fromkeys(_AUDIO, "nothing: audio is not here"),
  **dict.fromkeys(_NAFLEX, "nothing: NaFlex is not here"),
}

# What other trainers (HuggingFace, big_vision, timm, PyTorch) call these.
_OTHER_NAMES = {
  "accum-freq": "accumulation-steps accumulate-grad-batches grad-accum "
  "gradient-accumulation grad-accum-steps gradient-accumulation-steps "
  "update-freq",
  "aug-cfg": "auto-augment color-jitter randaug",
  "beta1": "adam-beta1 b1",
  "beta2": "adam-beta2 b2",
  "epochs": "max-epochs num-epochs num-train-epochs total-epochs",
  "eps": "adam-epsilon adam-eps opt-eps",
  "force-context-length": "context-length max-length max-seq-length "
  "max-text-len max-token-len",
  "force-image-size": "image-size img-size input-size resolution",
  "force-patch-dropout": "patch-dropout",
  "grad-checkpointing": "activation-checkpointing gradient-checkpointing "
  "grad-ckpt remat remat-policy",
  "grad-clip-norm": "clip-grad clip-grad-norm grad-clip gradient-clip "
  "gradient-clip-val max-grad-norm",
  "image-interpolation": "interpolation train-interpolation",
  "image-layer-decay": "layer-wise-decay llrd",
  "image-mean": "mean",
  "image-std": "std",
  "log-every-n-steps": "log-interval log-steps log-training-steps "
  "logging-steps",
  "lr": "learning-rate max-lr",
  "lr-scheduler": "lr-scheduler-type lr-schedule sched schedule scheduler "
  "schedule-decay-type",
  "model": "arch architecture model-name",
  "name": "experiment exp-name run-name",
  "opt": "optax-name optimizer optimizer-name",
  "precision": "amp bf16 dtype fp16 half mixed-precision",
  "pretrained": "initial-checkpoint model-init model-name-or-path "
  "pretrained-path",
  "report-to": "log-wandb logger use-wandb wandb",
  "resume": "resume-from resume-from-checkpoint",
  "save-frequency": "checkpoint-every ckpt-steps save-every save-interval "
  "save-steps",
  "seed": "data-seed manual-seed random-seed rng-seed",
  "torchcompile": "compile torch-compile",
  "train-data": "data-dir data-path dataset dataset-name input-data-name "
  "train-dir train-file",
  "val-data": "eval-data val-dir val-file validation-file",
  "val-frequency": "eval-every eval-frequency eval-interval eval-steps",
  "warmup": "num-warmup-steps schedule-warmup-steps warmup-iters",
  "wd": "weight-decay",
  "workers": "dataloader-num-workers loader-workers num-workers nworkers",
}
# Names for which open_clip has no flag.
MORE = {
  **dict.fromkeys(
    ("adam-betas", "betas", "opt-betas"),
    f"{_C}optim.beta1=BETA1 {_C}optim.beta2=BETA2",
  ),
  **dict.fromkeys(
    ("base-lr", "lr-base"),
    f"{_C}optim.peak_lr=N, as it is after it was scaled by the batch size",
  ),
  **dict.fromkeys(
    ("checkpoint-hist", "save-total-limit"), f"{_C}checkpoint.keep={{}}"
  ),
  "checkpoint-dir": "--workdir {}",
  "drop-path": "nothing: layers are not dropped",
  "dropout": "nothing: the towers have no dropout",
  "ema": f"{_C}optim.ema_decay=DECAY, such as 0.9999",
  "global-batch-size": f"{_C}batch_size={{}}",
  "hflip": f"{_C}augment.flip={{}}",
  "label-smoothing": "nothing: labels are not smoothed",
  "max-steps": f"{_C}steps={{}}",
  "mixup": "nothing: images are not mixed",
  "model-ema-decay": f"{_C}optim.ema_decay={{}}",
  "input-batch-size": f"{_C}batch_size={{}}",
  "num-classes": "nothing: texts are the classes",
  "num-steps": f"{_C}steps={{}}",
  "per-device-batch-size": f"{_C}batch_size=N, {{}} times the devices",
  "per-device-train-batch-size": f"{_C}batch_size=N, {{}} times the devices",
  "shuffle-buffer-size": "nothing: the order of all pairs is new in every "
  "epoch",
  "temperature": f"{_C}model_overrides.init_logit_scale=N, one over it",
  "log-dir": "--workdir {}",
  "output": "--workdir {}",
  "output-dir": "--workdir {}",
  "save-dir": "--workdir {}",
  "workdir": "--workdir {}",
  "init-logit-scale": f"{_C}model_overrides.init_logit_scale=N, no logarithm",
  "total-steps": f"{_C}steps={{}}",
  "train-batch-size": f"{_C}batch_size=N, of all devices together",
  "train-steps": f"{_C}steps={{}}",
  "warmup-epochs": f"{_C}optim.warmup_steps=N, in updates",
  "warmup-fraction": f"{_C}optim.warmup_steps=N, in updates",
  "warmup-ratio": f"{_C}optim.warmup_steps=N, in updates",
}
_OF_OTHERS = MORE | {
  other: FLAGS[flag]
  for flag, others in _OTHER_NAMES.items()
  for other in others.split()
}


def meant(name: str, value: str = "") -> str | None:
  """Returns what to write for a flag or field of other trainers.

  Args:
    name: of the flag or field, such as "accum_freq", without dashes in front.
    value: that it was given; "" where that is not known.

  Returns:
    the flags to write, or "nothing" with the reason; None for other names.
  """
  name = name.casefold().replace("_", "-").replace(".", "-")
  text = FLAGS.get(name) or _OF_OTHERS.get(name)
  if text is None:
    return None
  return text.replace("{}", terminal.escaped(value or "VALUE", limit=200))


def translation(words: Sequence[str]) -> list[tuple[str, str]]:
  """Returns the flags of others among `words`, and what to write instead."""
  found = []
  for i, word in enumerate(words):
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
      continue
    following = words[i + 1] if i + 1 < len(words) else ""
    if not equals and not following.startswith("-"):
      value = following
    if text := meant(flag.removeprefix("--"), value):
      found.append((flag, text))
  return found
