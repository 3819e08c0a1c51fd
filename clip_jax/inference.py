"""Embeddings from a trained model: jitted functions, and the `Clip` object."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from PIL import Image

from clip_jax import errors, sharding
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.evals import prompts as prompts_lib
from clip_jax.models import padding, sharded, variants

ImageInput = Image.Image | np.ndarray | bytes | str | os.PathLike

# Batches are padded to one of these, so that few programs are compiled.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LABEL_SETS_KEPT = 16
_DECODED_AT_ONCE = 256


@functools.partial(jax.jit, static_argnames=("module", "method", "mesh"))
def _embed(variables, inputs, *, module, method, mesh):
  def embed(module, variables, inputs):
    embeds = module.apply(variables, inputs, method=method)
    return embeds.astype(jnp.float32)

  if mesh is None:
    return embed(module, variables, inputs)
  specs = sharding.tree_specs(variables, mesh)
  placed = sharded.place(module, specs["params"])

  def on_device(variables, inputs):
    params = sharded.whole(
      variables["params"], specs["params"], dtype=module.dtype
    )
    return embed(placed, {**variables, "params": params}, inputs)

  split = P(sharding.BATCH_AXES)
  embeds = jax.shard_map(
    on_device, mesh=mesh, in_specs=(specs, split), out_specs=split
  )(variables, inputs)
  return jax.lax.with_sharding_constraint(embeds, sharding.replicated(mesh))


class Encoder:
  """The embedding functions of one module, compiled once per batch size.

  Any number of inputs is cut and padded into batches of `BATCH_SIZES`. On a
  mesh each batch is split over all devices, which gather split parameters layer
  by layer, and the result is whole on every process; all processes then call
  with the same inputs.
  """

  def __init__(
    self,
    module: nn.Module,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
  ):
    self.module = module
    self.mesh = mesh
    devices = 1 if mesh is None else mesh.size
    self.batch_sizes = sorted(
      {-(-size // devices) * devices for size in batch_sizes}
    )

  def embed_images(self, variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns float32 (n, embed) of uint8 `images` (n, size, size, 3)."""
    return self._run(variables, images, "encode_image")

  def embed_tokens(self, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """Returns float32 (n, embed) of int32 `tokens` (n, length).

    Columns that hold padding alone are not computed where the tower allows it.
    """
    tokens = padding.shortened(self.module.text, np.asarray(tokens))
    return self._run(variables, tokens, "encode_text")

  def _run(self, variables, inputs, method):
    inputs = np.asarray(inputs)
    if not len(inputs):
      return np.zeros((0, self.module.embed_dim), np.float32)
    largest, parts = self.batch_sizes[-1], []
    for start in range(0, len(inputs), largest):
      part = inputs[start : start + largest]
      embeds = _embed(
        variables,
        self._place(part),
        module=self.module,
        method=method,
        mesh=self.mesh,
      )
      parts.append(np.asarray(embeds)[: len(part)])
    return np.concatenate(parts)

  def _place(self, part):
    """Pads `part` to a batch size with copies of its first row."""
    size = next(size for size in self.batch_sizes if size >= len(part))
    # A real row keeps the padding's embeddings finite.
    padding = np.repeat(part[:1], size - len(part), axis=0)
    batch = np.concatenate([part, padding])
    if self.mesh is None:
      return batch
    return jax.make_array_from_callback(
      batch.shape, sharding.batch_sharding(self.mesh), lambda at: batch[at]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """A model ready for use: module, variables, tokenizer and preprocessing.

  Attributes:
    module: the two-tower linen module.
    variables: its parameters and batch statistics.
    tokenizer: texts to tokens (n, length).
    preprocess: how an image becomes a uint8 array.
    encoder: the compiled embedding functions.
    path: where the model was loaded from, "" if from nowhere.
    step: number of updates it was trained for.
  """

  module: nn.Module
  variables: Any
  tokenizer: Callable[[Sequence[str]], np.ndarray]
  preprocess: preprocess_lib.Preprocess
  encoder: Encoder
  path: str = ""
  step: int = 0
  _label_sets: collections.OrderedDict = dataclasses.field(
    default_factory=collections.OrderedDict, init=False, repr=False
  )
  _lock: Any = dataclasses.field(
    default_factory=threading.Lock, init=False, repr=False
  )

  def encode_image(
    self, images: ImageInput | Sequence[ImageInput]
  ) -> np.ndarray:
    """Returns unit embeddings, float32 (n, embed).

    Args:
      images: one image or a list: PIL images, paths, encoded bytes or uint8
        arrays (h, w, 3); or one uint8 array (n, h, w, 3).

    Raises:
      UserError: an image cannot be read; the message names it.
    """
    images = _as_list(images)
    parts = [np.zeros((0, self.module.embed_dim), np.float32)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      for start in range(0, len(images), _DECODED_AT_ONCE):
        some = images[start : start + _DECODED_AT_ONCE]
        pixels = np.stack(list(pool.map(self._pixels, some)))
        parts.append(self.embed_images(pixels))
    return np.concatenate(parts)

  def _pixels(self, image: ImageInput) -> np.ndarray:
    if isinstance(image, np.ndarray):
      image = _from_array(image)
    try:
      decoded = preprocess_lib.decode(image, limits=self.preprocess.limits)
    except preprocess_lib.ImageError as error:
      if isinstance(image, str | os.PathLike) and str(image) not in str(error):
        raise errors.UserError(f"{image}: {error}") from None
      raise
    return preprocess_lib.eval_image(decoded, self.preprocess)

  def with_max_pixels(self, max_pixels: int | None) -> "Clip":
    """Returns the same model, which reads images of so many pixels."""
    preprocess = self.preprocess.with_max_pixels(max_pixels)
    return dataclasses.replace(self, preprocess=preprocess)

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    """Returns unit embeddings of preprocessed uint8 (n, size, size, 3)."""
    return self.encoder.embed_images(self.variables, images)

  def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
    """Returns unit embeddings of texts, float32 (n, embed)."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
      return np.zeros((0, self.module.embed_dim), np.float32)
    tokens = self.tokenizer(texts)
    check_tokens(tokens, self.module.text)
    return self.encoder.embed_tokens(self.variables, tokens)

  def classify(
    self,
    images: ImageInput | Sequence[ImageInput],
    labels: prompts_lib.Labels,
    *,
    templates: str | Sequence[str] | None = None,
  ) -> np.ndarray:
    """Returns the probability of each label, float32 (n, labels).

    Args:
      images: as in `encode_image`.
      labels: names; a list among them holds synonyms; a dictionary maps names
        to full prompts.
      templates: one or several texts with a placeholder {}; None is
        "a photo of a {}.".

    Raises:
      UserError: an image cannot be read, or labels or templates are not valid.
    """
    templates = (templates,) if isinstance(templates, str) else templates
    prompts = prompts_lib.resolve(labels, templates)
    classes = self.class_embeddings(prompts)
    embeds = prompts_lib.normalize(self.encode_image(images), what="image")
    return softmax(self.logit_scale * (embeds @ classes.T))

  def class_embeddings(self, prompts: prompts_lib.Prompts) -> np.ndarray:
    """Returns one unit vector a class; the latest label sets are kept."""
    with self._lock:
      if prompts in self._label_sets:
        self._label_sets.move_to_end(prompts)
        return self._label_sets[prompts]
    embeds = prompts_lib.class_embeddings(prompts, self.encode_text)
    embeds.flags.writeable = False
    with self._lock:
      self._label_sets[prompts] = embeds
      while len(self._label_sets) > _LABEL_SETS_KEPT:
        self._label_sets.popitem(last=False)
    return embeds

  @functools.cached_property
  def logit_scale(self) -> float:
    """The factor between cosine similarity and logit."""
    return float(np.exp(np.asarray(self.variables["params"]["log_scale"])))

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of all that the embeddings depend on."""
    digest = hashlib.sha256()
    digest.update(repr(self.module).encode())
    digest.update(self.tokenizer.fingerprint.encode())
    preprocessing = self.preprocess.to_dict()
    digest.update(json.dumps(preprocessing, sort_keys=True).encode())
    leaves = jax.tree_util.tree_flatten_with_path(self.variables)[0]
    for path, leaf in sorted(leaves, key=lambda pair: str(pair[0])):
      array = np.ascontiguousarray(leaf)
      name = f"{sharding.path_name(path)} {array.dtype} {array.shape}"
      digest.update(name.encode())
      digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def check_tokens(tokens: np.ndarray, tower: nn.Module) -> None:
  """Raises UserError where a text tower does not know some of `tokens`."""
  if tokens.max() >= tower.vocab_size:
    raise errors.UserError(
      f"The tokenizer gives the id {tokens.max()}, but the text tower knows "
      f"{tower.vocab_size} only: they do not belong together."
    )


def softmax(logits: np.ndarray) -> np.ndarray:
  """Returns probabilities over the last axis, float32."""
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _as_list(images) -> list:
  if isinstance(images, np.ndarray):
    return list(images) if images.ndim == 4 else [images]
  if isinstance(images, Image.Image | bytes | str | os.PathLike):
    return [images]
  return list(images)


def _from_array(array: np.ndarray) -> Image.Image:
  if array.dtype != np.uint8 or not (
    array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
  ):
    raise errors.UserError(
      "An image array must be uint8 of shape (height, width, 3), got "
      f"{array.dtype} of shape {array.shape}."
    )
  return Image.fromarray(array)


def load(
  model: str | os.PathLike,
  *,
  step: int | None = None,
  source_format: str | None = None,
  activation: str | None = None,
) -> Clip:
  """Returns the model that `model` names, on all devices of this machine.

  Args:
    model: a workdir of `clip-jax train`; a file or directory in any format
      that `convert` reads; or "hf-hub:ORG/NAME[@REVISION]".
    step: of a workdir, the checkpoint to take; None takes the newest good one.
    source_format: a name in `convert.FORMATS`; None finds it out.
    activation: of the towers, for checkpoints that do not say it.

  Raises:
    UserError: there is no such model or no such checkpoint, or none is good.
    AmbiguousError: the checkpoint has several meanings.
  """
  from clip_jax import convert
  from clip_jax.convert import workdir

  path = pathlib.Path(model).expanduser()
  if source_format in (None, workdir.NAME) and workdir.recognise(path):
    return _load_workdir(path, step)
  if step is not None:
    raise errors.UserError(
      f"{model} is no workdir of `clip-jax train`: it has no steps to choose "
      f"from; leave step={step} out."
    )
  found = convert.open_model(
    model,
    source_format=source_format,
    options=convert.Options(activation=activation),
  )
  return assemble(
    variants.create_model(found.spec),
    found.variables(),
    spec=found.spec,
    mesh=_mesh(),
    path=str(path.resolve()) if path.exists() else str(model),
    files=found.files,
  )


def _mesh() -> jax.sharding.Mesh | None:
  return sharding.make_mesh() if jax.device_count() > 1 else None


def _load_workdir(path: pathlib.Path, step: int | None) -> Clip:
  from clip_jax.train import checkpoint, initial
  from clip_jax.train import step as step_lib

  config, variables, step = checkpoint.load_variables(path, step=step)
  return assemble(
    step_lib.make_model(config),
    variables,
    spec=variants.spec(config.model, config.model_overrides.to_dict()),
    mesh=_mesh(),
    path=str(path.resolve()),
    step=step,
    files=initial.tokenizer_files(path),
  )


def assemble(
  module: nn.Module,
  variables: Any,
  *,
  spec: dict[str, Any],
  mesh: jax.sharding.Mesh | None = None,
  path: str = "",
  step: int = 0,
  files: Mapping[str, bytes] | None = None,
) -> Clip:
  """Returns the `Clip` of a module, its variables and its description.

  Args:
    module: of `variants.create_model`.
    variables: as `module.init` makes them; repeated on every device of `mesh`,
      or laid on the first one.
    spec: of `variants.spec`; says how to tokenize and preprocess.
    mesh: devices that share each batch; None is the one of the variables.
    path: where the model came from.
    step: number of updates it was trained for.
    files: of the tokenizer by their names, if it has any.
  """
  placement = jax.devices()[0] if mesh is None else sharding.replicated(mesh)
  return Clip(
    module=module,
    variables=jax.device_put(variables, placement),
    tokenizer=tokenizer_lib.make_tokenizer(
      **spec["tokenizer"],
      context_length=spec["text"]["context_length"],
      contents=files,
    ),
    preprocess=preprocess_lib.Preprocess.from_spec(spec),
    encoder=Encoder(module, mesh=mesh),
    path=path,
    step=step,
  )
