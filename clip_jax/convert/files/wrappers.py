"""Removes wrappers that training programs put around a state dict.

A training checkpoint is a dict with the weights under some key (`state_dict`,
`model`, `model_ema`) beside an optimizer; wrapping a module (data-parallel,
compiled, in another module) adds a prefix to its names. Safetensors and numpy's
archives have no dicts, so there a key is a prefix too.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.files import nested, state_pickle
from clip_jax.convert.tensor import Tensor

# Keys and attributes under which programs save a model.
_WEIGHTS = (
  *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
  *("module", "clip", "clip_model", "base_model", "online_model"),
  *("student", "teacher", "student_model", "teacher_model", "checkpoint"),
  *("weights", "model_weights", "model_dict", "wrapped_model"),
  *("lightning_module", "pl_module", "_model"),
  # Wrappers of torch and of DeepSpeed.
  *("_orig_mod", "_forward_module", "_fsdp_wrapped_module"),
)
# Wrappers with a moving average of the weights.
_AVERAGES = (
  *("model_ema", "ema_model", "ema", "state_dict_ema", "ema_state_dict"),
  *("model_ema_state_dict", "ema_model_state_dict", "averaged_model"),
  *("avg_model", "swa_model", "params_ema", "ema_params", "ema_weights"),
)
WRAPPERS = frozenset((*_WEIGHTS, *_AVERAGES))
# Prefixes of other parts of a training state, in containers without dicts.
_TRAINING = frozenset(
  (
    *("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict"),
    *("optim", "lr_scheduler", "lr_schedulers", "scheduler", "scaler"),
    *("epoch", "step", "global_step", "iteration", "rng_state"),
    "n_averaged",  # The counter of torch's averaged models.
  )
)
# Modules around a part of a model. No supported model has parts of these names.
_INNER = re.compile(
  r"(?<=[./])(?:module|_orig_mod|_fsdp_wrapped_module|"
  r"_checkpoint_wrapped_module)[./]"
)
_FIRST = re.compile(r"([^./]+)[./]")
# More wrappers than are ever used; a hostile name may have hundreds.
_MAX_LAYERS = 16
# Of peft (LoRA, DoRA, LoHa, LoKr, IA3), loralib, diffusers and kohya.
_ADAPTERS = re.compile(
  r"(^|[./_])(lora_(A|B|up|down|embedding_[AB]|magnitude|linear_layer)"
  r"|hada_w\d|lokr_w\d|ia3_l)"
)
MERGE = (
  "Merge them into the base model first, where PyTorch runs: "
  "peft.PeftModel.from_pretrained(base, path).merge_and_unload(); save that "
  "with save_pretrained or as a state dict, and give it."
)


@dataclasses.dataclass(frozen=True)
class Unwrapped:
  """The leaves of a model, taken out of its wrappers.

  Attributes:
    leaves: tensors and other values by the model's own names.
    stripped: wrappers and prefixes that were removed, outermost first.
    left_out: names of other values beside a wrapper: an optimizer, an epoch.
  """

  leaves: dict[str, Any]
  stripped: tuple[str, ...] = ()
  left_out: tuple[str, ...] = ()


def unwrap(
  tree: Mapping[str, Any],
  *,
  name: str,
  separator: str,
  weights: str | None = None,
) -> Unwrapped:
  """Returns the model in a file's nested dicts, or in its flat names.

  Args:
    tree: the content of the container.
    name: the file's name in messages.
    separator: separator that joins the names of nested dicts.
    weights: which of several wrapped models to return, such as "model_ema".

  Raises:
    AmbiguousError: there are several, and `weights` chooses none.
    UserError: the file holds LoRA adapters, or no model called `weights`.
    ValueError: it is nested too deep, or two tensors get the same name.
  """
  stripped: list[str] = []
  left_out: list[str] = []
  offered: set[str] = set()
  # A dict that has parameters itself is a state dict, not a wrapper.
  while not any(_is_tensor(x) and "." in str(key) for key, x in tree.items()):
    inner = {
      key: value
      for key, value in tree.items()
      if key in WRAPPERS
      and isinstance(value, dict)
      and any(map(_is_tensor, nested.flatten(value, separator).values()))
    }
    chosen = _choose(inner, weights, offered, name)
    if chosen is None:
      break
    _note(stripped, chosen)
    left_out += (str(key) for key in tree if key != chosen)
    tree = inner[chosen]
  leaves = nested.flatten(tree, separator)
  while chosen := _choose(_first_words(leaves), weights, offered, name):
    leaves, beside = _without_first(leaves, chosen)
    _note(stripped, f"{chosen}.")
    left_out += beside
  if inner := sorted({m[0] for k in leaves for m in _INNER.finditer(k)}):
    leaves = _renamed(leaves, lambda key: _INNER.sub("", key))
    stripped += (f".{part}" for part in inner)
  if weights is not None and weights not in (x.strip(".") for x in stripped):
    raise _nothing_under(weights, offered, name)
  adapters = [key for key in leaves if _ADAPTERS.search(key)]
  if adapters:
    raise errors.UserError(
      f"{name} holds LoRA adapters (tensors such as {adapters[0]:.100}), not a "
      f"whole model. {MERGE}"
    )
  return Unwrapped(leaves, tuple(stripped), tuple(dict.fromkeys(left_out)))


def _note(stripped: list[str], layer: str) -> None:
  if len(stripped) == _MAX_LAYERS:
    raise ValueError(f"it wraps its weights more than {_MAX_LAYERS} times")
  stripped.append(layer)


def _choose(
  wrapped: Collection[str], weights: str | None, offered: set[str], name: str
) -> str | None:
  """Returns the wrapper to remove next; None if there is none."""
  offered |= set(wrapped)
  if weights in wrapped:
    return weights
  if len(wrapped) > 1 and weights is not None:
    raise _nothing_under(weights, offered, name)
  if len(wrapped) > 1:
    names = sorted(wrapped)
    raise errors.AmbiguousError(
      f"{name} holds several models: {', '.join(names)}.",
      flags=" or ".join(f"--weights {word}" for word in names),
    )
  return next(iter(wrapped), None)


def _nothing_under(weights, offered, name) -> errors.UserError:
  return errors.UserError(
    f"{name} holds no weights under {weights!r:.50} (--weights); by such names "
    f"it has: {', '.join(sorted(offered)) or 'none'}."
  )


def _is_tensor(leaf: Any) -> bool:
  return isinstance(leaf, Tensor | state_pickle.View)


def _first_words(leaves) -> set[str]:
  """Returns the wrappers with which names of tensors begin."""
  return {
    match[1]
    for name, leaf in leaves.items()
    if (match := _FIRST.match(name))
    and match[1] in WRAPPERS
    and _is_tensor(leaf)
  }


def _without_first(leaves, word) -> tuple[dict[str, Any], list[str]]:
  """Returns leaves with a first word removed, and other parts of a training.

  Names that do not begin with it are kept, so that they are reported later.
  """
  heads = {name: re.split(r"[./]", name, maxsplit=1)[0] for name in leaves}
  others = WRAPPERS | _TRAINING
  beside = {h for h in heads.values() if h in others and h != word}
  kept = {name: x for name, x in leaves.items() if heads[name] not in beside}
  size = len(word) + 1
  return (
    _renamed(kept, lambda name: name[size:] if heads[name] == word else name),
    sorted(beside),
  )


def _renamed(leaves, rename) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name, leaf in leaves.items():
    short = rename(name)
    if short in found:
      raise ValueError(
        f"two tensors are called {short!r:.100} without their prefixes, of "
        f"which one is {name!r:.100}"
      )
    found[short] = leaf
  return found
