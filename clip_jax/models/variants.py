"""Completes a model's description, which is plain data, and makes the model.

A description says what the model's parameters mean: its architecture. How the
model is executed (`EXECUTION`) is not part of it; overrides may contain fields
of both, which are separated here.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import errors, names
from clip_jax.models import (
  bert,
  clip,
  field_types,
  layers,
  other_families,
  resnet,
  text,
  variant_table,
  vit,
)

VARIANTS = variant_table.VARIANTS

IMAGE_TOWERS: dict[str, type[nn.Module]] = {
  "resnet": resnet.ModifiedResNet,
  "vit": vit.VisionTransformer,
}
TEXT_TOWERS: dict[str, type[nn.Module]] = {
  "bert": bert.Bert,
  "cbow": text.BagOfWords,
  "transformer": text.TextTransformer,
}
TOWERS = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}

# Defaults of a description: OpenAI's preprocessing and tokenizer.
DEFAULTS = {
  "image_mean": (0.48145466, 0.4578275, 0.40821073),
  "image_std": (0.26862954, 0.26130258, 0.27577711),
  "interpolation": "bicubic",
  "antialias": True,
  "resize": "shortest",
  "fill": 0,
  "crop_rounding": "round",
  "crop_fraction": 1.0,
  "convert_rgb": "after",
  "tokenizer": {"kind": "clip_bpe"},
  "text_projection": "linear",
  "embed_norm": "l2",
  "init_logit_bias": None,
}

# Defaults that depend on other fields: a model with a logit bias starts at the
# logit scale of SigLIP (Zhai et al. 2023, section 3.2) and has no bound for it.
DERIVED = {
  "image_projection": lambda merged: (
    "none" if merged["image"]["kind"] == "resnet" else "linear"
  ),
  "init_logit_scale": lambda merged: (
    clip.INIT_LOGIT_SCALE
    if merged["init_logit_bias"] is None
    else clip.SIGLIP_INIT_LOGIT_SCALE
  ),
  "max_logit_scale": lambda merged: (
    clip.MAX_LOGIT_SCALE if merged["init_logit_bias"] is None else None
  ),
  "probabilities": lambda merged: (
    "softmax" if merged["init_logit_bias"] is None else "sigmoid"
  ),
}

# How a tower is executed: fields that do not change embeddings in inference.
# True: the field changes the result of training.
EXECUTION = {
  "scan": False,
  "unroll": False,
  "remat": False,
  "patch_dropout": True,
}
# Fields of modules that are set from fields of the whole model, from the types
# and from the devices.
_NOT_IN_SPEC = {"parent", "name", "embed_dim", "dtype", "param_dtype", "gather"}
# Fields of towers that are a size or several sizes.
_SIZES = {
  "context_length",
  "depth",
  "depths",
  "heads",
  "image_size",
  "mlp_dim",
  "patch_size",
  "positions",
  "token_types",
  "unroll",
  "vocab_size",
  "width",
}
# Fields of the whole model whose numbers must be more than 0.
_POSITIVE = ("image_std", "init_logit_scale", "max_logit_scale")

# The name of a model that is described by its overrides only: a run sets them
# from the checkpoints with which it begins.
FROM_INIT = "from_init"
# The default embed_dim of two towers that were never trained together.
DEFAULT_EMBED_DIM = 512


def spec(
  base: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict:
  """Returns the full description of a model, with every field explicit.

  Args:
    base: a name in `VARIANTS`, or a description that may leave fields out.
    overrides: the fields that differ, nested like a variant. If "kind" of a
      tower differs, the fields that both kinds have are kept. Fields of
      `EXECUTION` are checked and left out.

  Returns:
    A new dict with "embed_dim", the towers "image" and "text", the tokenizer
    and the preprocessing.

  Raises:
    UserError: the name, or a field of the overrides, is unknown.
  """
  merged = complete(base, overrides)
  for part in TOWERS:
    merged[part] = {k: v for k, v in merged[part].items() if k not in EXECUTION}
  return merged


def complete(
  base: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict:
  """Returns the result of `spec` together with the towers' `EXECUTION` fields.

  Args:
    base: see `spec`.
    overrides: see `spec`; may also be what `execution` returns.
  """
  if isinstance(base, str) and base == FROM_INIT:
    if not {"image", "text"} <= (overrides or {}).keys():
      raise errors.UserError(
        f"The model {FROM_INIT!r} has no description before its run has begun: "
        "the run takes it from the checkpoints that init.* names."
      )
    base, overrides = overrides or {}, None
  elif isinstance(base, str):
    if base not in VARIANTS:
      unknown = other_families.unknown(base, VARIANTS)
      if "/" not in base or "Did you mean" in str(unknown):
        raise unknown
      raise errors.UserError(
        f"{unknown} A checkpoint is no variant: clip_jax.load reads it, and a "
        "run starts from it by --config.init.model."
      )
    base = VARIANTS[base]
  elif not isinstance(base, Mapping):
    raise errors.UserError(
      "A model is the name of a variant or a description (a dict); got "
      f"{type(base).__name__}."
    )
  overrides = dict(overrides or {})
  merged = {**DEFAULTS, **base}
  for field in [*base, *overrides]:
    known = (*DEFAULTS, *DERIVED, "embed_dim", "image", "text")
    if field not in known:
      raise errors.unknown("model field", field, known)
  for part in ("image", "text", "tokenizer"):
    change = overrides.pop(part, {})
    if not hasattr(change, "keys"):
      raise errors.UserError(
        f"Model field {part!r} takes a dict of fields; got {change!r}."
      )
    if part not in merged:
      raise _lacking(part)
    if part in TOWERS:
      merged[part] = _resolve_tower(part, merged[part], dict(change))
    else:
      # The fields of a tokenizer are checked by the package `tokenizer`.
      merged[part] = {**merged[part], **change}
  merged |= overrides
  if "embed_dim" not in merged:
    raise _lacking("embed_dim")
  for field, derive in DERIVED.items():
    if field not in merged:
      merged[field] = derive(merged)
  if merged["probabilities"] not in names.PROBABILITIES:
    raise errors.unknown(
      "kind of probabilities", merged["probabilities"], names.PROBABILITIES
    )
  _check_sizes(merged)
  return copy.deepcopy(merged)


def _lacking(field: str) -> errors.UserError:
  return errors.UserError(
    f"The description of a model lacks {field!r}; give a dict with image, text "
    "and embed_dim, or the name of a variant."
  )


def _check_sizes(description):
  """Raises UserError for values that are impossible in any model."""
  named = {"embed_dim": description["embed_dim"]}
  for part in TOWERS:
    named |= {
      f"{part}.{field}": value
      for field, value in description[part].items()
      if field in _SIZES and value is not None
    }
  for field, value in named.items():
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(type(x) is int and x >= 1 for x in numbers):  # No truth value.
      raise errors.UserError(
        f"Model field {field!r} must be a whole number of at least 1; got "
        f"{value!r:.100}."
      )
  for part in TOWERS:
    policy = description[part].get("remat", "none")
    if not isinstance(policy, str):
      raise errors.UserError(
        f"Model field '{part}.remat' is the name of a policy: 'full' computes "
        "everything again in the backward pass, 'none' nothing; got "
        f"{policy!r:.100}."
      )
    tower = TOWERS[part][description[part]["kind"]]
    field_types.check(tower, description[part], prefix=f"{part}.")
  outside = {x: v for x, v in description.items() if x not in TOWERS}
  field_types.check(clip.CLIP, outside)
  positive = {
    **{x: outside[x] for x in _POSITIVE},
    **{f"{x}.norm_epsilon": description[x].get("norm_epsilon") for x in TOWERS},
  }
  for field, value in positive.items():
    if not all(x is None or x > 0 for x in np.ravel(value)):
      raise errors.UserError(
        f"Model field {field!r} must be more than 0; got {value!r:.100}."
      )
  dropped = description["image"].get("patch_dropout", 0)
  if not 0 <= dropped < 1:
    raise errors.UserError(
      "Model field 'image.patch_dropout' is the share of patches to leave out, "
      f"at least 0 and less than 1; got {dropped!r:.100}."
    )


def _resolve_tower(part, base, change):
  kind = change.get("kind", base.get("kind"))
  errors.check_known(f"{part} tower", kind, TOWERS[part])
  fields = {
    field.name: field.default
    for field in dataclasses.fields(TOWERS[part][kind])
    if field.name not in _NOT_IN_SPEC
  }
  if kind != base.get("kind"):
    base = {key: value for key, value in base.items() if key in fields}
  merged = {**base, **change, "kind": kind}
  for field in merged:
    if field != "kind" and field not in fields:
      raise errors.unknown(
        "model field",
        f"{part}.{field}",
        [f"{part}.{known}" for known in ("kind", *fields)],
      )
  for field, default in fields.items():
    if merged.setdefault(field, default) is dataclasses.MISSING:
      raise errors.UserError(
        f"The {part} tower {kind!r} needs a value for {part}.{field}; "
        f"give one in the model's overrides."
      )
  return merged


def _make_tower(part, description, **common):
  arguments = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in description.items()
    if key != "kind"
  }
  return TOWERS[part][description["kind"]](**arguments, **common)


def create_model(
  name: str | Mapping[str, Any],
  *,
  overrides: Mapping[str, Any] | None = None,
  execution: Mapping[str, Any] | None = None,
  dtype: jnp.dtype = jnp.float32,
  param_dtype: jnp.dtype = jnp.float32,
) -> clip.CLIP:
  """Makes the model of a variant or of a description.

  Args:
    name: a name in `VARIANTS`, or a description as `spec` returns it.
    overrides: see `spec`; may contain fields of `EXECUTION`.
    execution: how the towers are executed, as the function `execution` returns.
    dtype: the type in which the towers compute.
    param_dtype: the type in which the parameters are stored.

  Raises:
    UserError: the name or a field is unknown.
  """
  description = complete(complete(name, overrides), execution)
  dtypes: layers.Dtypes = {"dtype": dtype, "param_dtype": param_dtype}
  # The attention pool of a ResNet projects to embed_dim.
  pools_to_embed = description["image"]["kind"] == "resnet"
  embed_dim = description["embed_dim"]
  return clip.CLIP(
    image=_make_tower(
      "image",
      description["image"],
      **({"embed_dim": embed_dim} if pools_to_embed else {}),
      **dtypes,
    ),
    text=_make_tower("text", description["text"], **dtypes),
    embed_dim=embed_dim,
    image_mean=tuple(description["image_mean"]),
    image_std=tuple(description["image_std"]),
    image_projection_kind=description["image_projection"],
    text_projection_kind=description["text_projection"],
    embed_norm=description["embed_norm"],
    init_logit_scale=description["init_logit_scale"],
    init_logit_bias=description["init_logit_bias"],
    max_logit_scale=description["max_logit_scale"],
    **dtypes,
  )


def execution(model: clip.CLIP) -> dict[str, dict]:
  """Returns the `EXECUTION` fields of a model that differ from the defaults.

  They are nested as in descriptions: {"image": {"remat": "full"}}.
  """
  found = {}
  for part in TOWERS:
    tower = getattr(model, part)
    changed = {
      field.name: getattr(tower, field.name)
      for field in dataclasses.fields(tower)
      if field.name in EXECUTION and getattr(tower, field.name) != field.default
    }
    if changed:
      found[part] = changed
  return found


def without_loops(model: clip.CLIP) -> clip.CLIP:
  """Returns a model that runs the blocks of a ResNet without a loop.

  It computes the same results from the same variables.
  """
  if not isinstance(model.image, resnet.ModifiedResNet):
    return model
  return model.clone(image=model.image.clone(scan=False))


def abstract_inputs(
  model: clip.CLIP, batch_size: int = 1
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch of uint8 images and tokens for `model`."""
  size = model.image.image_size
  return (
    jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
    jax.ShapeDtypeStruct((batch_size, model.text.context_length), jnp.int32),
  )


def abstract_variables(model: clip.CLIP) -> dict:
  """Returns the shapes of the model's variables; nothing is computed."""
  x64 = jax.config.values["jax_enable_x64"]
  # Flax's modules are hashable, although its annotations do not say so.
  shapes = _abstract_variables(model, x64)  # pyright: ignore
  return jax.tree.map(lambda leaf: leaf, shapes)  # The caller's own.


# Many ask, and deep towers are long to trace.
@functools.lru_cache(maxsize=16)
def _abstract_variables(model, x64):
  del x64  # Part of the key: it decides the types.
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(model.init, key, *abstract_inputs(model))


def parameter_count(model: clip.CLIP) -> int:
  """Returns the number of parameters, without running statistics."""
  params = abstract_variables(model)["params"]
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
