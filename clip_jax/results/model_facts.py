"""Facts about a model for its card: architecture, data and training."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from clip_jax import config as config_lib
from clip_jax import inference, json_lines, terminal
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.results import addresses, collected
from clip_jax.train import metric_log

Facts = list[tuple[str, str]]


def architecture(clip: inference.Clip) -> Facts:
  """Returns the towers and sizes of a model."""
  params, spec = clip.variables["params"], clip.spec
  facts = [("parameters", f"{_count(params):,}")]
  if clip.preprocess:
    image = spec["image"]
    size = clip.preprocess.image_size
    facts += [
      ("image tower", _tower(image, params.get("image"))),
      ("image size", f"{size} x {size} pixels"),
    ]
  if clip.tokenizer:
    if clip.module.contrastive:
      facts.append(("text tower", _tower(spec["text"], params.get("text"))))
    facts += [
      ("context", f"{clip.tokenizer.context_length} tokens"),
      ("tokenizer", str(spec["tokenizer"].get("kind", "?"))),
    ]
  if "embed_dim" in spec:
    facts.append(("embedding", f"{spec['embed_dim']} numbers, unit length"))
  if "log_scale" in params:
    facts.append(("logit scale", f"{clip.logit_scale:.2f}"))
  if clip.logit_bias is not None:
    facts.append(("logit bias", f"{clip.logit_bias:.2f}"))
  return facts


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _tower(tower: Mapping[str, Any], params: Any) -> str:
  parts = [str(tower.get("kind", "?"))]
  for name in ("width", "depth", "depths", "heads", "patch_size"):
    value = tower.get(name)
    if isinstance(value, list | tuple):
      value = "-".join(map(str, value))
    if value is not None:
      parts.append(f"{name.replace('_', ' ')} {value}")
  if params is not None:
    parts.append(f"{_count(params):,} parameters")
  return ", ".join(parts)


def data(settings: config_lib.Data, counters: Mapping[str, Any]) -> Facts:
  """Returns the data that a run was trained on, without directories."""
  facts = [("training data", addresses.shown(settings.train))]
  if isinstance(records := counters.get("records"), int):
    facts.append(("records", f"{records:,}"))
  if settings.held_out:
    share = terminal.percent(settings.held_out)
    facts.append(("held out", f"{share} of it, not trained on"))
  if settings.template:
    facts.append(("captions", addresses.last(settings.template)))
  if bad := counters.get("bad_records"):
    facts.append(
      ("bad records", f"met {terminal.counted(bad, 'time')} and replaced")
    )
  return facts


def _optimizer(optim: config_lib.Optim) -> str:
  rate = f"{optim.name}, peak learning rate {optim.peak_lr:g}"
  if optim.warmup_steps is not None:
    rate += f" after {terminal.counted(optim.warmup_steps, 'step')}"
  rate += f", then {optim.schedule}"
  if optim.cooldown_steps:
    count = optim.cooldown_steps
    steps = "step" if count == 1 else f"{count} steps"
    rate += f", the last {steps} to 0"
  return f"{rate}, weight decay {optim.weight_decay:g}"


def of_workdir(path: pathlib.Path, step: int) -> tuple[Facts, Facts]:
  """Returns the data and the training of a workdir's checkpoint."""
  config = workdir_lib.load_config(path)
  counters = workdir_lib.load_counters(path, step)
  facts = [
    ("steps", f"{step:,}"),
    (
      "batch size",
      f"{config.batch_size:,} {terminal.noun(config.batch_size, 'pair')}",
    ),
    ("pairs seen", f"{step * config.batch_size:,}"),
    ("objective", config.objective.kind),
    ("loss", config.loss.kind),
    ("optimizer", _optimizer(config.optim)),
    ("precision", config.precision),
    ("seed", str(config.seed)),
  ]
  init = config.init
  began = [x for x in (init.model, init.image, init.text) if x]
  if began:
    facts.append(("began with", " and ".join(map(addresses.last, began))))
  if frozen := config.optim.frozen:
    facts.append(("not trained", frozen))
  plain = vars(config_lib.Augment())
  if changed := [
    f"{name} {value:g}"
    for name, value in vars(config.augment).items()
    if value != plain[name]
  ]:
    facts.append(("augmentation", ", ".join(changed)))
  if isinstance(devices := counters.get("devices"), str):
    facts.append(("devices", devices))
  if seconds := _seconds(path / metric_log.METRICS, config.batch_size):
    facts.append(
      (
        "time",
        f"{terminal.duration(seconds)} of updates, without compiling and "
        "evaluating",
      )
    )
  return data(config.data, counters), facts


def _seconds(path: pathlib.Path, batch_size: int) -> float:
  """Returns the seconds of updates, from the rates that were logged."""
  seconds, previous = 0.0, 0
  for _, entry in json_lines.read(path, {"step": int}):
    if entry is None or "loss" not in entry:
      continue
    rate = collected.number(entry.get("images_per_second"))
    if rate is not None and rate > 0 and entry["step"] > previous:
      seconds += (entry["step"] - previous) * batch_size / rate
    previous = entry["step"]
  return seconds
