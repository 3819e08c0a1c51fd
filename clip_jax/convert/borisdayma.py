"""borisdayma/clip-jax, in: an Orbax directory beside a config.json.

That codebase has models of many shapes. Those of CLIP's own shape are read:
pre-norm blocks with LayerNorm and biases, learnt positions, plain MLPs, a
causal text tower read at the end of text. Others are refused by their fields.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from clip_jax import errors
from clip_jax.convert import borisdayma_description as description
from clip_jax.convert import (
  config_file,
  containers,
  portable,
  tokenizer_files,
  transforms,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import Entry, Slot
from clip_jax.convert.tensor import Tensor
from clip_jax.models import paths

NAME = "borisdayma"
CONFIG = "config.json"
_ITEM = "default"  # Of a step's directory.


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` has such a config and steps of an Orbax manager."""
  config = config_file.peek(path / CONFIG)
  towers = [config.get(f"{x}_config") for x in ("text", "vision")]
  return all(isinstance(x, dict) and "num_layers" in x for x in towers)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads the newest step of a directory.

  Raises:
    UserError: it is damaged, or holds a model of another shape.
  """
  report = report_lib.Report(NAME)
  config = config_file.read(path / CONFIG)
  step = _newest(path)
  tensors = _read_orbax(step / _ITEM)
  if options.activation not in (None, "gelu_tanh"):
    raise errors.UserError(
      f"{path / CONFIG} says the activation, gelu (flax's, the tanh form): "
      "leave --activation out."
    )
  files = tokenizer_files.carry(path)
  spec = description.describe(
    config, tensors, files, report=report, where=str(path / CONFIG)
  )
  return portable.assemble(
    entries(spec),
    tensors,
    spec,
    report=report,
    name=str(step),
    options=options,
    configs=[path / CONFIG],
    files=files,
    noted={"step": int(step.name)},
  )


def _newest(path: pathlib.Path) -> pathlib.Path:
  steps = [
    entry
    for entry in path.iterdir()
    if entry.name.isdecimal() and (entry / _ITEM / "_METADATA").is_file()
  ]
  if not steps:
    raise errors.UserError(
      f"{path} has no step of an Orbax checkpoint (STEP/{_ITEM}/_METADATA)."
    )
  return max(steps, key=lambda entry: int(entry.name))


def _read_orbax(path: pathlib.Path) -> dict[str, Tensor]:
  """Returns the parameters of a step, without the boxes that they came in."""
  handler = ocp.PyTreeCheckpointHandler()
  try:
    tree = handler.metadata(path.absolute()).tree
    params = tree["params"]
  except (KeyError, TypeError, ValueError, OSError) as error:
    raise containers.DamagedError(
      f"{path} is no Orbax checkpoint with params "
      f"({type(error).__name__}: {str(error)[:200]})."
    ) from None

  # Layers are asked for one by one, and an array holds all of them.
  @functools.lru_cache(maxsize=1)
  def read(names):
    array = _restore(path, names, *about[names])
    array.flags.writeable = False
    return array

  found, about = {}, {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = tuple(str(key.key) for key in keys)
    # Parameters were saved in flax's boxes, whose one field is "value".
    name = "/".join(names[:-1] if names[-1] == "value" else names)
    about[names] = tuple(leaf.shape), np.dtype(leaf.dtype)
    found[name] = Tensor(*about[names], functools.partial(read, names))
  return found


def _restore(path, names, shape, dtype) -> np.ndarray:
  """Reads one array of a step, and nothing else of it."""
  item: Any = jax.ShapeDtypeStruct(shape, dtype)
  for name in reversed(["params", *names]):
    item = {name: item}
  arguments = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype), item
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      restored = checkpointer.restore(
        path.absolute(),
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=arguments, partial_restore=True
        ),
      )
  except (ValueError, OSError, KeyError) as error:
    raise containers.DamagedError(
      f"{path}: {'/'.join(names)} cannot be read "
      f"({type(error).__name__}: {str(error)[:200]})."
    ) from None
  return np.array(jax.tree.leaves(restored)[0])


def entries(spec: dict[str, Any]) -> list[Entry]:
  """Returns where each array goes."""
  image, text = spec["image"], spec["text"]
  width, p = image["width"], "vision/embeddings/"
  side = image["image_size"] // image["patch_size"]

  def boxed(name, path, *shape):
    transform = transforms.reshape(shape, (1, *shape))
    return Entry(name, (Slot(f"params/{path}"),), transform)

  found = [
    boxed("logit_scale", "log_scale"),
    boxed("logit_bias", "logit_bias"),
    *_pair(f"{p}patch_embeds/kernel", "image/patch_kernel"),
    *_pair(f"{p}patch_embeds/bias", "image/patch_bias"),
    boxed(
      f"{p}position_embeds", "image/position_embedding", side * side, width
    ),
    *_pair(
      "text/embeddings/embeddings/embedding", "text/token_embedding/embedding"
    ),
    boxed(
      "text/embeddings/position_embeds",
      "text/position_embedding",
      text["context_length"],
      text["width"],
    ),
    *_blocks("vision", "image"),
    *_blocks("text", "text"),
    *_module("vision/final_norm", "image/ln_post"),
    *_module("text/final_norm", "text/ln_final"),
  ]
  if image["class_token"]:
    found.append(
      Entry(
        f"{p}cls_token",
        (Slot("params/image/class_embedding"),),
        transforms.reshape((width,), (1, 1, width)),
      )
    )
  if image["registers"]:
    found.append(
      boxed(f"{p}registers", "image/registers", image["registers"], width)
    )
  if image["pooling"] == "map":
    head = "vision/MAPHead_0"
    found += _pair(f"{head}/probe", "image/map_head/probe")
    found += _parts(head, "image/map_head", "ln")
  for theirs, ours in (("vision", "image"), ("text", "text")):
    if spec[f"{ours}_projection"] == "linear":
      found += _pair(f"{theirs}_projection/kernel", f"{ours}_projection/kernel")
  return found


def _pair(theirs: str, ours: str) -> list[Entry]:
  return [Entry(theirs, (Slot(f"params/{ours}"),))]


def _module(theirs: str, ours: str) -> list[Entry]:
  kernel = "scale" if "norm" in theirs.rsplit("/", 1)[-1] else "kernel"
  return [
    entry
    for leaf in (kernel, "bias")
    for entry in _pair(f"{theirs}/{leaf}", f"{ours}/{leaf}")
  ]


def _parts(theirs: str, ours: str, norm: str) -> list[Entry]:
  """Returns the entries of an attention and of an MLP with its norm."""
  found = []
  for part in ("query", "key", "value", "out"):
    found += _module(f"{theirs}/attention/{part}", f"{ours}/attention/{part}")
  found += _module(f"{theirs}/mlp/pre_mlp_norm", f"{ours}/{norm}")
  found += _module(f"{theirs}/mlp/wi", f"{ours}/mlp/fc_in")
  return found + _module(f"{theirs}/mlp/wo", f"{ours}/mlp/fc_out")


def _blocks(theirs: str, ours: str) -> list[Entry]:
  layers, blocks = f"{theirs}/encoder/layers", paths.stack(ours)
  return [
    *_module(f"{layers}/pre_attention_norm", f"{blocks}/ln_1"),
    *_parts(layers, blocks, "ln_2"),
  ]
