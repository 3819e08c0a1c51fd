"""Initial parameters of a run: random, or from checkpoints.

`init.model` names a whole model; `init.image` and `init.text` name towers, or
models of which one tower is taken. With `model="from_init"` the description
also comes from the checkpoints. If `model` names a variant and one tower is
given, this tower replaces the variant's, and the other one starts from random
parameters. If both towers are given, the variant must agree with them.
"""

import dataclasses
import logging
import math
import pathlib
import shlex
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import engine, opening, portable
from clip_jax.convert.engine import family
from clip_jax.convert.tensor import Tensor
from clip_jax.models import freezing, variants
from clip_jax.train import origin_paths

_LOGGER = logging.getLogger(__name__)

FROM_INIT = variants.FROM_INIT
PARTS = origin_paths.PARTS

# Fields of a description on which the arrays outside the towers depend.
_HEAD = ("embed_dim", "image_projection", "text_projection", "embed_norm")
# Fields that `clip-jax convert` can change: its flags, and the field's name.
_RESIZES = {
  "image.image_size": (
    "--image-size {} --resize-method bicubic_antialias",
    "image size",
  ),
  "text.context_length": ("--context-length {}", "context length"),
}
# A logit scale at its bound, stored in half precision, may exceed it by this
# factor.
_ROUNDED_UP = 1.01

# The models that a run begins with, by part.
Origins = dict[str, portable.Portable]


class Beginning(NamedTuple):
  """What a run begins with.

  Attributes:
    init: `config.init` with absolute paths.
    stored: the config of the run that goes on, if it began with models too.
    origins: the models, if the run begins now.
  """

  init: config_lib.Init
  stored: config_lib.Config | None
  origins: Origins


def begin(
  init: config_lib.Init, workdir: pathlib.Path, *, model: str
) -> Beginning:
  """Returns the models with which a run begins, for `settle`.

  A resumed run has no origins, because it continues from its own checkpoint;
  the checkpoints with which it began may have been deleted.

  Args:
    init: `config.init`.
    workdir: of the run.
    model: `config.model`.

  Raises:
    UserError: an origin cannot be read.
  """
  if not any(getattr(init, part) for part in PARTS):
    if model == FROM_INIT:
      raise _nothing_to_begin_with()
    return Beginning(init, None, {})
  stored = None
  if workdir_lib.holds_checkpoint(workdir):
    stored = workdir_lib.load_config(workdir)
  if stored is not None and origin_paths.is_same(stored.init, init):
    return Beginning(stored.init, stored, {})
  opened = open_sources(init, model=model)
  return Beginning(origin_paths.whole(init), None, opened)


def _nothing_to_begin_with() -> errors.UserError:
  return errors.UserError(
    f"model={FROM_INIT!r} takes the towers from checkpoints: give init.model, "
    "or both init.image and init.text. Where one tower is to begin from "
    "nothing, name a model that has it, such as model='ViT-B-32'."
  )


def open_sources(init: config_lib.Init, *, model: str) -> Origins:
  """Returns the models that `config.init` names, opened but not read, by part.

  Args:
    init: `config.init`.
    model: `config.model`.

  Raises:
    UserError: a source cannot be read, lacks the tower, or contradicts another.
  """
  if init.model and (init.image or init.text):
    raise errors.UserError(
      "Give init.model, or init.image and init.text, not both."
    )
  if model == FROM_INIT and not (init.model or (init.image and init.text)):
    raise _nothing_to_begin_with()
  opened = {}
  for part in PARTS:
    if not (address := getattr(init, part)):
      continue
    try:
      opened[part] = opening.open_model(address)
    except errors.AmbiguousError as error:
      if error.tower not in (None, part):
        raise _other_tower(part, address, error.tower) from None
      raise errors.AmbiguousError(
        f"init.{part}: {error.problem}", flags=error.flags
      ) from None
    except errors.UserError as error:
      raise errors.UserError(f"init.{part}: {error}") from None
    have = engine.towers(opened[part].spec)
    if part not in have and not (part == "model" and len(have) == 2):
      raise _other_tower(part, address, have[0])
  return opened


def _other_tower(part: str, address: str, tower: str) -> errors.UserError:
  return errors.UserError(
    f"init.{part}={address!r} holds the {tower} tower alone; give it as "
    f"init.{tower}, and another model for the rest."
  )


def describe(model: str, opened: Origins) -> dict[str, Any]:
  """Returns the description of the sources' model, before overrides.

  The fields of a tower that no source has are those of the variant `model`. The
  `EXECUTION` fields of towers are those of their sources.

  Args:
    model: `config.model`.
    opened: the sources.
  """
  if "model" in opened:
    source = opened["model"]
    return variants.complete(source.spec, source.execution)
  described: dict[str, Any] = {"embed_dim": variants.DEFAULT_EMBED_DIM}
  if model != FROM_INIT:
    variants.spec(model)  # Raises where there is no such model.
    described = dict(variants.VARIANTS[model])
  for part, source in opened.items():
    # The projection belonged to the tower that is replaced.
    described.pop(f"{part}_projection", None)
    described |= {
      x: source.spec[x] for x in (part, *engine.FIELDS_BESIDE[part])
    }
    described[part] = {**described[part], **source.execution.get(part, {})}
    if source.spec[part]["kind"] == "resnet":  # It includes the projection.
      described["embed_dim"] = source.spec["embed_dim"]
  return described


def settle(
  config: config_lib.Config,
  stored: config_lib.Config | None,
  opened: Origins,
) -> config_lib.Config:
  """Returns `config` with the fields filled in that its checkpoints decide.

  These are the model's description, if it comes from the checkpoints, and the
  loss, if it is "auto".

  Args:
    config: the config of a run that is about to start.
    stored: the config of the run in its workdir, if there is one; its
      description is used, because its sources may have been deleted.
    opened: the sources, if the run begins now.

  Raises:
    UserError: the tower of a source, or a field on which the meaning of its
      parameters depends, differs from the config's.
  """
  # A single tower beside a variant is described by its checkpoint, too.
  one_tower = bool(config.init.image) != bool(config.init.text)
  described = config.model == FROM_INIT or one_tower
  if described:
    if opened:
      base = describe(config.model, opened)
    else:
      assert stored is not None
      base = variants.complete(stored.model, stored.model_overrides)
    overrides = config.model_overrides
    spec = variants.complete(base, overrides)
    if config.model != FROM_INIT:  # No field of its own tokenizer may stay.
      spec["tokenizer"] = _tokenizer(spec)
    spec = family.as_json(spec)
    if "probabilities" not in overrides:  # They are of the run's own loss.
      spec.pop("probabilities", None)
    config = dataclasses.replace(config, model_overrides=spec)
  spec = run_model.spec(
    config.model, config.model_overrides, objective=config.objective.kind
  )
  if config.loss.kind == "auto":
    biased = spec["init_logit_bias"] is not None
    compares = run_model.is_contrastive(config.objective)
    kind = "sigmoid" if biased and compares else "softmax"
    loss = dataclasses.replace(config.loss, kind=kind)
    config = dataclasses.replace(config, loss=loss)
  for part, source in opened.items():
    address = getattr(config.init, part)
    _check_same(part, spec, source.spec, address=address, described=described)
  return config


def _tokenizer(spec: dict[str, Any]) -> dict[str, Any]:
  """Returns a description's tokenizer with its defaults filled in."""
  return tokenizer_lib.make_tokenizer(
    **spec["tokenizer"],
    context_length=spec["text"]["context_length"],
    contents={},
  ).to_dict()


def _check_same(part, wanted, found, *, address, described) -> None:
  """Raises UserError unless two descriptions agree in all fields of `part`.

  Args:
    part: one of `PARTS`.
    wanted: the description of the config's model.
    found: the description of the source.
    address: the address of the source.
    described: whether the model's description comes from the source.
  """
  wanted, found = (
    _comparable(part, spec, named=not described) for spec in (wanted, found)
  )
  differing = [
    field
    for field in sorted(wanted.keys() | found.keys())
    if wanted.get(field) != found.get(field)
  ]
  if not differing:
    return
  if described:
    way_on = "Take these out of model_overrides"
  else:
    way_on = f"Set these in model_overrides, or take model={FROM_INIT!r}"
  if all(field in _RESIZES for field in differing):
    flags = [
      f"{flag.format(wanted[field])} for another {what}"
      for field, (flag, what) in _RESIZES.items()
      if field in differing
    ]
    way_on += (
      f"; or make a checkpoint that fits by `clip-jax convert "
      f"{shlex.quote(address)} DEST --to clip-jax`, with {' and '.join(flags)}"
    )
  facts = "; ".join(
    f"{field}={found.get(field)!r} (not {wanted.get(field)!r})"
    for field in differing
  )
  raise errors.UserError(
    f"{address} does not fit the config's model: {facts}. {way_on}."
  )


def _comparable(part, spec, *, named) -> dict[str, Any]:
  """Returns the fields in which a source for `part` and the model must agree.

  If the source describes the model, preprocessing and tokenizer are its own,
  unless the user overrides them; they are then not compared.
  """
  fields: dict[str, Any] = {}
  if part in ("model", "image"):
    fields |= _nested("image", spec["image"])
    if spec["image"]["kind"] == "resnet":
      fields["embed_dim"] = spec["embed_dim"]
    if named:
      fields |= {field: spec[field] for field in engine.IMAGE_FIELDS}
  if part in ("model", "text"):
    fields |= _nested("text", spec["text"])
    if named:
      fields |= _nested("tokenizer", _tokenizer(spec))
  if part == "model":
    fields |= {field: spec[field] for field in _HEAD}
    # Its presence; the number is a parameter.
    fields["init_logit_bias"] = spec["init_logit_bias"]
  return family.as_json(fields)


def _nested(name, fields) -> dict[str, Any]:
  fields = family.normal_form({name: fields})[name]
  return {f"{name}.{field}": value for field, value in fields.items()}


def load(
  state: state_lib.TrainState,
  opened: Origins,
  *,
  init: config_lib.Init,
  max_logit_scale: float | None,
  frozen: str,
) -> state_lib.TrainState:
  """Returns the `state` of a new run with the parameters of the origins.

  Arrays keep the dtype and the sharding that they have in `state`.

  Args:
    state: the state of a new run.
    opened: the origins, as `begin` returns them.
    init: `config.init`.
    max_logit_scale: that of the model's description.
    frozen: `config.optim.frozen`.
  """
  if not opened:
    return state
  leaves = {}
  flat, structure = jax.tree_util.tree_flatten_with_path(state.variables)
  arrays = {sharding.path_name(path): array for path, array in flat}
  # A model that predicts captions takes the image tower only.
  has = {path.split("/")[1] for path in arrays}
  for part, source in opened.items():
    for path, leaf in source.leaves.items():
      group = path.split("/")[1]
      if group in has and part in ("model", group):
        leaves[path] = leaf
  assert leaves.keys() <= arrays.keys()
  rest = len(arrays) - len(leaves)
  _LOGGER.info(
    "Starting from %s%s.",
    " and ".join(getattr(init, part) for part in opened),
    f"; {rest} of {len(arrays)} arrays are new, at random" if rest else "",
  )
  if "params/log_scale" in leaves:
    trained = freezing.is_trained(state.params, "log_scale", frozen)
    scale = math.exp(float(leaves["params/log_scale"].read()))
    if trained and max_logit_scale is not None:
      _warn_of_temperature(scale, max_logit_scale)
  variables = jax.tree_util.tree_unflatten(
    structure,
    [
      _place(leaves[path], array) if path in leaves else array
      for path, array in arrays.items()
    ],
  )
  if state.ema:
    variables["ema"] = jax.tree.map(
      jnp.copy, {name: variables[name] for name in state.ema}
    )
  return dataclasses.replace(state, **variables)


def _warn_of_temperature(scale: float, bound: float) -> None:
  if scale > bound * _ROUNDED_UP:
    _LOGGER.warning(
      "The checkpoint's logit scale, %.4g, is above max_logit_scale=%.4g: the "
      "first step clips it. --config.model_overrides.max_logit_scale=None "
      "keeps it as it is.",
      scale,
      bound,
    )


def _place(leaf: Tensor, like: jax.Array) -> jax.Array:
  host = leaf.read().astype(like.dtype)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: np.asarray(host[index])
  )


def tokenizer_files(workdir: pathlib.Path, opened: Origins) -> dict[str, bytes]:
  """Returns the files of a run's tokenizer by name, if it needs any.

  Args:
    workdir: the workdir of the run.
    opened: the origins, if the run begins now.
  """
  origin = opened.get("model") or opened.get("text")
  return (
    workdir_lib.tokenizer_files(workdir) if origin is None else origin.files
  )
