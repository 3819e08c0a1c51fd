"""The model of a run, as its config describes it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import config as config_lib
from clip_jax import errors, losses, names
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.models import clip, heads, layers, paths, variants


def spec(
  model: str,
  overrides: Mapping[str, Any],
  *,
  objective: str,
  loss: str | None = None,
) -> dict[str, Any]:
  """Returns the description of a run's model (`variants.spec`).

  Args:
    model: `config.model`.
    overrides: `config.model_overrides`.
    objective: `config.objective.kind`.
    loss: `config.loss.kind`, which decides between the probabilities "softmax"
      and "sigmoid"; None leaves them to the model.

  Raises:
    UserError: the model or a field of its overrides is unknown.
  """
  defaults = {} if loss is None else {"probabilities": loss}
  return variants.spec(
    complete(model, {**defaults, **overrides}, objective=objective)
  )


def complete(
  model: str, overrides: Mapping[str, Any], *, objective: str
) -> dict[str, Any]:
  """Returns `variants.complete` with the text tower that the objective has.

  Args:
    model: `config.model`.
    overrides: `config.model_overrides`.
    objective: `config.objective.kind`.
  """
  description = variants.complete(model, overrides)
  if objective == "bow_contrastive":
    cbow = {"text": {"kind": "cbow"}}  # Of the same width and vocabulary.
    description = variants.complete(description, cbow)
  return description


def is_contrastive(objective: config_lib.Objective) -> bool:
  """Whether training ends in an embedding space of images and texts."""
  return objective.kind not in names.PREDICTIVE_OBJECTIVES


def make(config: config_lib.Config) -> clip.CLIP:
  """Returns the model of a run in its precision, with its objective's head.

  Raises:
    UserError: unknown model or field; float64 without JAX's 64-bit mode; a
      loss that does not go with the model or the objective.
  """
  if config.precision == "float64" and not jax.config.values["jax_enable_x64"]:
    raise errors.UserError(
      "precision='float64' needs 64-bit mode; set JAX_ENABLE_X64=1."
    )
  dtype = jnp.dtype(config.precision)
  dtypes: layers.Dtypes = {
    "dtype": dtype,
    "param_dtype": jnp.promote_types(dtype, jnp.float32),
  }
  kind = config.objective.kind
  description = complete(config.model, config.model_overrides, objective=kind)
  model = variants.create_model(description, **dtypes)
  if not is_contrastive(config.objective):
    _check_predictive(config.objective, config.loss, config.init)
    head = _make_head(kind, config.objective.depth, description, dtypes)
    return model.clone(head=head, contrastive=False)
  if config.objective.captioning_weight:
    head = _make_head("lm", config.objective.depth, description, dtypes)
    model = model.clone(head=head)
  if config.loss.kind in losses.BIASED_KINDS and model.init_logit_bias is None:
    raise errors.UserError(
      f"loss.kind={config.loss.kind!r} needs a model with a logit bias, but "
      f"{config.model!r} has none; add --config.model_overrides."
      "init_logit_bias=-10 (its logit scale then starts at 10)."
    )
  return model


def _check_predictive(
  objective: config_lib.Objective,
  loss: config_lib.Loss,
  init: config_lib.Init,
) -> None:
  """Raises UserError where a config compares pairs that it never will."""
  wrong = {
    "loss.duplicates": loss.duplicates != "ignore" and loss.duplicates,
    "loss.kind": loss.kind != "softmax" and loss.kind,
    "init.text": init.text,
    "objective.captioning_weight": objective.captioning_weight,
  }
  for field, value in wrong.items():
    if value:
      raise errors.UserError(
        f"{field}={value!r} does not go with objective.kind="
        f"{objective.kind!r}, which predicts captions: it compares no pairs "
        f"and has no text tower. Leave {field} out, or take a contrastive "
        "objective."
      )


def _make_head(kind, depth, description, dtypes) -> nn.Module:
  text = description["text"]
  tokenizer = tokenizer_lib.make_tokenizer(
    **description["tokenizer"],
    context_length=text["context_length"],
    contents={},  # Nothing is tokenized.
  )
  if tokenizer.end_id is None:
    raise errors.UserError(
      "Predicting captions needs a tokenizer that ends texts with a token of "
      f"its own; the model's {tokenizer.kind!r} has none."
    )
  return heads.make(
    kind,
    text,
    depth=depth,
    end_id=tokenizer.end_id,
    first=int(tokenizer.start_id is not None),
    dtypes=dtypes,
  )


def for_use(
  model: clip.CLIP, variables: Mapping[str, Any]
) -> tuple[clip.CLIP, dict[str, Any]]:
  """Returns a trained model and its variables as they are used.

  A head beside a shared embedding has done its work in training.

  Args:
    model: of `make`.
    variables: of the model.
  """
  variables = dict(variables)
  if model.head is None or not model.contrastive:
    return model, variables
  params = dict(variables["params"])
  del params[paths.HEAD]
  return model.clone(head=None), {**variables, "params": params}
