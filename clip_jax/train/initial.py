"""Where a run's parameters begin: from nothing, or from checkpoints.

`init.model` names a whole model, `init.image` and `init.text` name towers (or
models, of which one tower is taken). With `model="from_init"` the description
comes from there too; otherwise it must agree with the config's model.
"""

import logging
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from clip_jax import errors, sharding
from clip_jax.convert import conversion, engine, model_dir, portable
from clip_jax.models import variants
from clip_jax.train import checkpoint
from clip_jax.train import step as step_lib
from clip_jax.train import workdir as workdir_lib

FROM_INIT = variants.FROM_INIT
TOKENIZER = "tokenizer"  # Where a workdir keeps its tokenizer's files.
PARTS = ("model", "image", "text")

# What a run begins with, by part.
Origins = dict[str, portable.Portable]


def begin(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> tuple[ml_collections.ConfigDict, Origins]:
  """Returns the config with its model described, and what the run begins with.

  A run that goes on begins with its checkpoint: its origins may be gone.

  Raises:
    UserError: an origin cannot be read, or is not what the config says.
  """
  if not any(config.init[part] for part in PARTS):
    if config.model == FROM_INIT:
      raise _nothing_to_begin_with()
    return config, {}
  stored = None
  if workdir_lib.holds_checkpoint(workdir):
    stored = checkpoint.load_config(workdir)
  if stored is not None and stored.init == config.init:
    return settle(config, stored, {}), {}
  opened = open_sources(config)
  return settle(config, None, opened), opened


def _nothing_to_begin_with() -> errors.UserError:
  return errors.UserError(
    f"model={FROM_INIT!r} takes the towers from checkpoints: give init.model, "
    "or both init.image and init.text."
  )


def open_sources(
  config: ml_collections.ConfigDict,
) -> Origins:
  """Returns what `config.init` names, opened but not read, by part.

  Raises:
    UserError: a source cannot be read, lacks the tower, or contradicts another.
  """
  if config.init.model and (config.init.image or config.init.text):
    raise errors.UserError(
      "Give init.model, or init.image and init.text, not both."
    )
  if config.model == FROM_INIT and not (
    config.init.model or (config.init.image and config.init.text)
  ):
    raise _nothing_to_begin_with()
  opened = {}
  for part in PARTS:
    if not (address := config.init[part]):
      continue
    try:
      opened[part] = conversion.open_model(address)
    except errors.UserError as error:
      raise errors.UserError(f"init.{part}: {error}") from None
    have = engine.towers(opened[part].spec)
    if part not in have and not (part == "model" and len(have) == 2):
      raise errors.UserError(
        f"init.{part}={address!r} holds the {have[0]} tower alone."
      )
  return opened


def describe(
  config: ml_collections.ConfigDict, opened: Origins
) -> dict[str, Any]:
  """Returns the description that the sources add up to, before overrides."""
  if "model" in opened:
    return dict(opened["model"].spec)
  image, text = (opened[part].spec for part in ("image", "text"))
  return {
    "embed_dim": variants.DEFAULT_EMBED_DIM,
    "image": image["image"],
    "text": text["text"],
    "tokenizer": text["tokenizer"],
    **{field: image[field] for field in engine.IMAGE_FIELDS},
  }


def settle(
  config: ml_collections.ConfigDict,
  stored: ml_collections.ConfigDict | None,
  opened: Origins,
) -> ml_collections.ConfigDict:
  """Returns `config` with the description that `from_init` stands for.

  Args:
    config: of a run that is about to start.
    stored: of the run that began in its workdir, if one did; its description
      is taken, for its sources may be gone.
    opened: the sources, if it begins now.

  Raises:
    UserError: a source's tower is not the config's.
  """
  if config.model == FROM_INIT:
    overrides = config.model_overrides.to_dict()
    base = (
      describe(config, opened) if opened else stored.model_overrides.to_dict()
    )
    whole = model_dir.plain(variants.resolve(base, overrides))
    config = config.copy_and_resolve_references()
    config.model_overrides = ml_collections.ConfigDict(whole)
  spec = variants.spec(config.model, config.model_overrides.to_dict())
  for part, source in opened.items():
    for tower in ("image", "text") if part == "model" else (part,):
      _check_same(tower, spec[tower], source.spec[tower], config.init[part])
  return config


def _check_same(tower, wanted, found, address) -> None:
  wanted, found = model_dir.plain(wanted), model_dir.plain(found)
  differing = [
    f"{tower}.{field}={found.get(field)!r} (not {wanted.get(field)!r})"
    for field in sorted(wanted.keys() | found.keys())
    if wanted.get(field) != found.get(field)
    and field not in ("scan", "remat", "patch_dropout")
  ]
  if differing:
    raise errors.UserError(
      f"{address} does not fit the config's model: {'; '.join(differing)}. Set "
      f"these in model_overrides, or take model={FROM_INIT!r}."
    )


def load(state: step_lib.TrainState, opened: Origins) -> step_lib.TrainState:
  """Returns a new run's `state` with what the origins hold in its place.

  Arrays keep their dtype and their sharding: every device is given its part.
  """
  if not opened:
    return state
  leaves = {}
  for part, source in opened.items():
    for path, leaf in source.leaves.items():
      if part == "model" or path.split("/")[1] == part:
        leaves[path] = leaf
  flat, structure = jax.tree_util.tree_flatten_with_path(state.variables)
  arrays = {sharding.path_name(path): array for path, array in flat}
  assert leaves.keys() <= arrays.keys()
  logging.info(
    "%d of %d arrays come from %s.",
    len(leaves),
    len(arrays),
    " and ".join(source.report.source_format for source in opened.values()),
  )
  variables = jax.tree_util.tree_unflatten(
    structure,
    [
      _place(leaves[path], array) if path in leaves else array
      for path, array in arrays.items()
    ],
  )
  return state.replace(**variables)


def _place(leaf: engine.Leaf, like: jax.Array) -> jax.Array:
  host = leaf.read().astype(like.dtype)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: np.asarray(host[index])
  )


def tokenizer_files(
  workdir: pathlib.Path, opened: Origins | None = None
) -> dict[str, bytes]:
  """Returns the files of a run's tokenizer by name, if it needs any.

  Args:
    workdir: of the run.
    opened: what it begins with, if it begins now.
  """
  origin = (opened or {}).get("model") or (opened or {}).get("text")
  if origin is not None:
    return origin.files
  kept = sorted((workdir / TOKENIZER).glob("*"))
  return {file.name: file.read_bytes() for file in kept}


def keep_tokenizer(workdir: pathlib.Path, files: dict[str, bytes]) -> None:
  """Copies the tokenizer's files into the workdir, to need no other place."""
  if not files or jax.process_index():
    return
  directory = workdir / TOKENIZER
  directory.mkdir(exist_ok=True)
  for name, data in files.items():
    (directory / name).write_bytes(data)
