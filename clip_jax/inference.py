"""A model ready for use: the `Clip` object."""

import collections
import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import embedder, encoding, errors, sharding
from clip_jax import fingerprint as fingerprint_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import destinations, portable
from clip_jax.convert.engine import family
from clip_jax.convert.formats import model_dir
from clip_jax.evals import embedding_model, label_files, text_weights
from clip_jax.evals import probabilities as probabilities_lib
from clip_jax.evals import prompts as prompts_lib
from clip_jax.models import variants

if TYPE_CHECKING:
  from flax import nnx

_LABEL_SETS_KEPT = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Clip(encoding.Encoding):
  """A model ready for use: module, variables, tokenizer and preprocessing.

  The model itself is a pure function of variables and inputs, for jit, grad
  and vmap: `clip.module.apply(clip.variables, images, method="encode_image")`,
  and "encode_text" likewise. How inputs become embeddings, also under a trace,
  is told by `encoding.Encoding`.

  Attributes:
    step: number of updates it was trained for; None if unknown.
    spec: the description of the model.
    files: the tokenizer's files: their contents by name.
  """

  step: int | None = None
  spec: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
  files: Mapping[str, bytes] = dataclasses.field(
    default_factory=dict, repr=False
  )
  _label_sets: collections.OrderedDict = dataclasses.field(
    default_factory=collections.OrderedDict, init=False, repr=False
  )
  _lock: Any = dataclasses.field(
    default_factory=threading.Lock, init=False, repr=False
  )

  def __getstate__(self) -> dict[str, Any]:
    """Returns the state to pickle: numpy arrays, and nothing compiled."""
    left_out = ("_lock", "_label_sets", "encoder")
    state = {k: v for k, v in self.__dict__.items() if k not in left_out}
    return {**state, "variables": jax.tree.map(np.asarray, self.variables)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Restores a pickled state, on all devices of this machine."""
    mesh = sharding.shared_mesh()
    self.__dict__.update(
      state,
      variables=sharding.place_everywhere(state["variables"], mesh),
      encoder=embedder.Embedder(state["module"], mesh=mesh),
      _label_sets=collections.OrderedDict(),
      _lock=threading.Lock(),
    )

  def __repr__(self) -> str:
    size = self.preprocess and f"images of {self.preprocess.image_size} pixels"
    length = self.tokenizer and f"texts of {self.tokenizer.context_length} ids"
    facts = [x for x in (self.path, size, length) if x]
    return f"Clip({', '.join(facts)}, embed_dim={self.module.embed_dim})"

  def with_max_pixels(self, max_pixels: int | None) -> "Clip":
    """Returns this model with another limit on the pixels of an input image."""
    if not self.preprocess:
      return self
    preprocess = self.preprocess.with_max_pixels(max_pixels)
    return dataclasses.replace(self, preprocess=preprocess)

  def to_nnx(self) -> "nnx.Module":
    """Returns the model as a module of Flax's NNX, with its own parameters.

    It is called with (images, tokens) as the linen module is, and has the same
    parameters as `nnx.Param`: for `nnx.jit`, `nnx.grad` and `nnx.Optimizer`.
    """
    import flax.nnx as nnx  # A tenth of a second, for this function only.

    model = nnx.bridge.ToNNX(self.module)
    variables = nnx.bridge.variables.linen_vars_to_nnx_attrs(self.variables)
    for name, value in variables.items():
      setattr(model, name, nnx.data(value))
    return model

  @property
  def score_texts(self) -> embedding_model.ScoreTexts | None:
    """How a model that predicts captions scores texts; None of all others."""
    return None if self.module.contrastive else self.scores_of

  def scores_of(
    self, texts: list[str], *, cuts: tokenizer_lib.Cuts | None = None
  ) -> embedding_model.Likelihoods:
    """Returns how a model that predicts captions scores texts.

    Args:
      texts: of any number.
      cuts: as in `encode_text`.
    """
    if self.module.contrastive:
      raise errors.UserError(
        f"{self.path or 'The model'} compares embeddings; only a model that "
        "predicts captions has scores_of. Use similarity or classify."
      )
    head: Any = self.module.head
    tokens = self._tokens(texts, cuts)
    units, weights = head.units(tokens)
    return embedding_model.Likelihoods(
      of_images=functools.partial(
        self.encoder.log_probabilities, self.variables, units=units
      ),
      weights=weights,
    )

  def classify(
    self,
    images: encoding.Images,
    labels: prompts_lib.Labels | str | os.PathLike,
    *,
    templates: str | os.PathLike | Sequence[str] | None = None,
    probabilities: str | None = None,
    batch_size: int | None = None,
    progress: bool | encoding.Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns the probability of each label, float32 (n, labels).

    Args:
      images: as in `encode_image`.
      labels: a list of names, or a text of names (one a line, or with commas
        between); a list of names in place of a name holds synonyms; a
        dictionary maps names to full prompts; the path of a file holds any of
        these.
      templates: one or several texts with a placeholder {}, or the path of a
        file of them; None for "a photo of a {}.".
      probabilities: "softmax" makes them sum to one over the labels, "sigmoid"
        decides on each label by itself; None for the one that the model was
        trained with.
      batch_size: as in `encode_image`.
      progress: as in `encode_image`.
      as_numpy: False to get a JAX array.

    Raises:
      UserError: an image cannot be read, labels or templates are not valid, or
        the model has one tower only, or no bias for a sigmoid.
    """
    self.check_towers("image", "text")
    self.check_embeds()
    if isinstance(labels, str | os.PathLike):
      labels = label_files.read_labels(labels)
    if isinstance(templates, str | os.PathLike):
      templates = label_files.read_templates(templates)
    of_logits = functools.partial(
      probabilities_lib.of,
      kind=probabilities_lib.check(
        self.probabilities if probabilities is None else probabilities,
        logit_bias=self.logit_bias,
      ),
      logit_scale=self.logit_scale,
      logit_bias=self.logit_bias,
    )
    classes = self.class_embeddings(prompts_lib.resolve(labels, templates))
    embeds = self.encode_image(images, batch_size=batch_size, progress=progress)
    if isinstance(embeds, np.ndarray):
      embeds = prompts_lib.normalize(embeds, what="image")
    found = of_logits(embeds @ classes.T)
    return found if as_numpy else jnp.asarray(found)

  def class_embeddings(self, prompts: prompts_lib.Prompts) -> np.ndarray:
    """Returns a unit vector for each class; caches the latest label sets."""
    if not isinstance(prompts, prompts_lib.Prompts):
      raise errors.UserError(
        "class_embeddings takes what clip_jax.evals.prompts.resolve(labels) "
        f"returns; got {type(prompts).__name__}."
      )
    with self._lock:
      if prompts in self._label_sets:
        self._label_sets.move_to_end(prompts)
        return self._label_sets[prompts]
    cuts = tokenizer_lib.Cuts()
    embeds = prompts_lib.class_embeddings(
      prompts, functools.partial(self.embed_texts, cuts=cuts)
    )
    cuts.tell(self.needed_tokenizer().context_length)
    embeds.flags.writeable = False
    with self._lock:
      self._label_sets[prompts] = embeds
      while len(self._label_sets) > _LABEL_SETS_KEPT:
        self._label_sets.popitem(last=False)
    return embeds

  def for_evaluation(
    self, cuts: tokenizer_lib.Cuts | None = None
  ) -> embedding_model.Functions:
    """Returns the functions for `evals.tasks.evaluate`; caches embeddings.

    Args:
      cuts: as in `encode_text`.

    Raises:
      UserError: the model has one tower only.
    """
    self.check_towers("image", "text")
    scores = self.score_texts and functools.partial(self.scores_of, cuts=cuts)
    return embedding_model.Functions(
      score_texts=scores,
      embed_images=self.embed_images,
      embed_texts=functools.partial(self.embed_texts, cuts=cuts),
      preprocess=self.needed_preprocess(),
      logit_scale=self.logit_scale if self.module.contrastive else None,
      class_embeddings=functools.partial(
        text_weights.class_embeddings,
        fingerprint=lambda: self.fingerprint,
        note_texts=functools.partial(self.tokenize, cuts=cuts),
      ),
    )

  @functools.cached_property
  def logit_scale(self) -> float:
    """The factor between cosine similarity and logit."""
    self.check_embeds()
    return float(np.exp(np.asarray(self.variables["params"]["log_scale"])))

  @functools.cached_property
  def logit_bias(self) -> float | None:
    """The bias added to scaled similarities; None if the model has none."""
    bias = self.variables["params"].get("logit_bias")
    return None if bias is None else float(np.asarray(bias))

  @property
  def probabilities(self) -> str:
    """How the model's loss makes probabilities: "softmax" or "sigmoid"."""
    return self.spec.get("probabilities", "softmax")

  def save(self, path: str | os.PathLike) -> None:
    """Writes a model directory, which `load` reads.

    Raises:
      UserError: `path` exists and is not an empty directory.
    """
    self.check_embeds()
    if not self.spec:
      raise errors.UserError("A model without a description cannot be saved.")
    is_path = isinstance(path, str | os.PathLike)
    if not is_path or "\0" in str(path) or not os.fspath(path):
      raise errors.UserError(
        f"save takes the path of a new directory, got {path!r:.100}."
      )
    errors.check_new("The new model", path)
    destination = pathlib.Path(os.path.expanduser(path)).resolve()
    if destination.exists() and not (
      destination.is_dir() and not any(destination.iterdir())
    ):
      raise errors.UserError(f"{destination} exists; give a new path.")
    files = self.tokenizer.files() if self.tokenizer else {}
    model = portable.from_variables(
      self.variables,
      family.as_json(self.spec),
      files={**files, **self.files},
      source={"format": "clip", "path": self.path, "step": self.step},
    )
    model = dataclasses.replace(
      model, execution=variants.execution(self.module)
    )
    with destinations.new(destination, overwrite=False) as partial:
      model_dir.write(model, partial)

  @functools.cached_property
  def fingerprint(self) -> str:
    """The SHA-256 of all that the embeddings depend on."""
    return fingerprint_lib.of(
      self.module,
      self.variables,
      tokenizer=self.tokenizer,
      preprocess=self.preprocess,
    )
