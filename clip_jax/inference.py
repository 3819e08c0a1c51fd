"""A model ready for use: the `Clip` object."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core

from clip_jax import embedder, errors, sharding, terminal
from clip_jax import fingerprint as fingerprint_lib
from clip_jax import inputs as inputs_lib
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import destinations, portable
from clip_jax.convert.formats import model_dir
from clip_jax.evals import embedding_model, text_weights
from clip_jax.evals import probabilities as probabilities_lib
from clip_jax.evals import prompts as prompts_lib
from clip_jax.models import clip as clip_lib
from clip_jax.models import variants

ImageInput = preprocess_lib.ImageInput
Images = ImageInput | Iterable[ImageInput]
Texts = str | Iterable[str]
# Called with the number of inputs done and the total (None for a generator).
Progress = Callable[[int, int | None], None]

# What each tower's inputs pass first.
_INPUTS = {"image": "preprocess", "text": "tokenizer"}
_LABEL_SETS_KEPT = 16
_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """A model ready for use: module, variables, tokenizer and preprocessing.

  The model itself is a pure function of variables and inputs, for jit, grad
  and vmap: `clip.module.apply(clip.variables, images, method="encode_image")`,
  and "encode_text" likewise. The methods of this class may be traced as well,
  with the variables as constants. Traced inputs must be preprocessed already:
  images as `preprocess` gives them (uint8) or also normalised (floating),
  texts as tokens, as `tokenize` gives them.

  Attributes:
    module: the two-tower linen module.
    variables: its parameters and batch statistics.
    tokenizer: turns texts into tokens (n, length). Without a text tower it is
      false, and using it raises UserError.
    preprocess: turns an image of any kind into the model's input, uint8
      (size, size, 3). Without an image tower it is false, as above.
    encoder: the compiled embedding functions.
    path: where the model was loaded from; "" if it was not loaded.
    step: number of updates it was trained for; None if unknown.
    spec: the description of the model.
    files: the tokenizer's files: their contents by name.
  """

  module: clip_lib.CLIP
  variables: Any
  tokenizer: tokenizer_lib.Tokenizer
  preprocess: preprocess_lib.Preprocess
  encoder: embedder.Embedder
  path: str = ""
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

  def __post_init__(self) -> None:
    for part, name in _INPUTS.items():
      if getattr(self, name) is None:
        lacking = inputs_lib.NoTower(self._lacks(part))
        object.__setattr__(self, name, lacking)

  def __getstate__(self) -> dict[str, Any]:
    """Returns the state to pickle: numpy arrays, and nothing compiled."""
    left_out = ("_lock", "_label_sets", "encoder")
    state = {k: v for k, v in self.__dict__.items() if k not in left_out}
    return {**state, "variables": jax.tree.map(np.asarray, self.variables)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Restores a pickled state, on all devices of this machine."""
    mesh = sharding.local_mesh()
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

  def encode_image(
    self,
    images: Images,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns unit embeddings, float32 (n, embed).

    Args:
      images: one image, several in a list or from a generator, or an array
        (n, h, w, 3). An image is a path, encoded bytes, an open file, a Pillow
        image or a uint8 array (h, w, 3) of numpy, JAX or PyTorch.
      batch_size: the most images that are in memory at once; None for 256.
      progress: True for a bar on stderr; or a function that is called with the
        number of images done and their total, which is None for a generator.
      as_numpy: False to get a JAX array.

    Raises:
      UserError: the model has no image tower, or an image cannot be read; the
        message names the image.
    """
    preprocess = self.needed_preprocess()
    self.check_embeds()
    inputs_lib.check_progress(progress)
    images = inputs_lib.stacked(images)
    if inputs_lib.is_traced(images):
      return self._traced("image", images)
    images = preprocess_lib.each(images)
    total = len(images) if isinstance(images, list) else None
    rest, done = iter(images), 0
    size = inputs_lib.batch_size(batch_size, _AT_ONCE)
    parts = [np.zeros((0, self.module.embed_dim), np.float32)]

    def read(image, name):
      return inputs_lib.read_image(image, preprocess, name=name)

    with (
      concurrent.futures.ThreadPoolExecutor(4) as pool,
      terminal.told(progress, "encode_image", unit="images") as tell,
    ):
      while some := list(itertools.islice(rest, size)):
        numbers = itertools.count(done)
        names = (f"images[{i}]" if total != 1 else "" for i in numbers)
        pixels = np.stack(list(pool.map(read, some, names)))
        parts.append(self.embed_images(pixels))
        done += len(some)
        tell(done, total)
    return _joined(parts, as_numpy)

  def with_max_pixels(self, max_pixels: int | None) -> "Clip":
    """Returns this model with another limit on the pixels of an input image."""
    if not self.preprocess:
      return self
    preprocess = self.preprocess.with_max_pixels(max_pixels)
    return dataclasses.replace(self, preprocess=preprocess)

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    """Returns unit embeddings of preprocessed uint8 (n, size, size, 3)."""
    self.check_embeds()
    if inputs_lib.is_traced(images):
      return self._traced("image", images)  # pyright: ignore
    return self._of_pixels(images, "encode_image")

  def _of_pixels(self, images, method) -> np.ndarray:
    size = self.needed_preprocess().image_size
    inputs_lib.check_pixels(images, size)
    embed = functools.partial(self.encoder.embed_images, method=method)
    return _now(embed, self.variables, images)

  def image_features(self, images: np.ndarray) -> np.ndarray:
    """Returns features (n, width) of preprocessed uint8 (n, size, size, 3).

    Features are the image tower's output before its projection, which the
    paper's linear probes use (appendix A.3).
    """
    return self._of_pixels(images, "image_features")

  def patch_embeddings(self, images: np.ndarray) -> np.ndarray:
    """Returns unit embeddings (n, rows, cols, embed) of the patches of images.

    Args:
      images: preprocessed uint8 (n, size, size, 3).
    """
    self.check_embeds()
    return self._of_pixels(images, "encode_patches")

  def patch_similarity(
    self, image: preprocess_lib.ImageInput, text: str
  ) -> np.ndarray:
    """Returns the cosine similarity of each patch of an image with a text.

    The result is float32 (rows, cols), of the image as the model sees it, which
    `preprocess` crops and resizes. How a patch is embedded: MaskCLIP, arXiv
    2112.01071, section 3.2.

    Args:
      image: as in `encode_image`.
      text: such as "a photo of a cat".

    Raises:
      UserError: the model has one tower only, or the image cannot be read.
    """
    self.check_towers("image", "text")
    pixels = inputs_lib.read_image(image, self.needed_preprocess(), name="")
    text_embed = self.embed_texts(tokenizer_lib.listed_texts(text))
    if len(text_embed) != 1:
      raise errors.UserError(f"One text was expected, got {len(text_embed)}.")
    return self.patch_embeddings(pixels[None])[0] @ text_embed[0]

  def encode_text(
    self,
    texts: Texts | np.ndarray | jax.Array,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
    cuts: tokenizer_lib.Cuts | None = None,
  ) -> np.ndarray | jax.Array:
    """Returns unit embeddings of texts, float32 (n, embed).

    Args:
      texts: one text, several in a list or from a generator, or tokens (n,
        length) as `tokenize` gives them.
      batch_size: the most texts that the model is given at once.
      progress: as in `encode_image`.
      as_numpy: False to get a JAX array.
      cuts: counts the texts that are cut, if the caller reports them itself;
        None logs their number.

    Raises:
      UserError: the model has no text tower, or an input is not a text.
    """
    self.check_towers("text")
    self.check_embeds()
    inputs_lib.check_progress(progress)
    texts = inputs_lib.stacked(texts)
    if inputs_lib.is_traced(texts):
      return self._traced("text", texts)
    tokens = self._tokens(texts, cuts)
    size = inputs_lib.batch_size(
      batch_size, _AT_ONCE if progress else len(tokens)
    )
    parts = [np.zeros((0, self.module.embed_dim), np.float32)]
    with terminal.told(progress, "encode_text", unit="texts") as tell:
      for start in range(0, len(tokens), size):
        some = tokens[start : start + size]
        parts.append(_now(self.encoder.embed_tokens, self.variables, some))
        tell(start + len(some), len(tokens))
    return _joined(parts, as_numpy)

  def encode(
    self,
    inputs: Images,
    *,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
  ) -> np.ndarray:
    """Returns unit embeddings, as sentence-transformers' `encode` takes inputs.

    A text is a `str`, never the path of an image: all else is an image, of any
    kind that `encode_image` takes.

    Args:
      inputs: one input, which gives float32 (embed,), or several, texts and
        images in any order, which give (n, embed).
      batch_size: as in `encode_image` and `encode_text`.
      show_progress_bar: whether to show a bar on stderr.

    Raises:
      UserError: the model lacks the tower of an input, or an input is neither.
    """
    several: list[Any] = list(preprocess_lib.each(inputs))
    if len(several) == 1 and several[0] is inputs:
      return self.encode(several, batch_size=batch_size)[0]
    is_text = np.array([isinstance(x, str) for x in several], bool)
    embeds = np.zeros((len(several), self.module.embed_dim), np.float32)
    for encode, chosen in (
      (self.encode_text, is_text),
      (self.encode_image, ~is_text),
    ):
      if chosen.any():
        embeds[chosen] = encode(
          [several[i] for i in np.flatnonzero(chosen)],
          batch_size=batch_size,
          progress=show_progress_bar,
        )
    return embeds

  def to_nnx(self) -> nnx.Module:
    """Returns the model as a module of Flax's NNX, with its own parameters.

    It is called with (images, tokens) as the linen module is, and has the same
    parameters as `nnx.Param`: for `nnx.jit`, `nnx.grad` and `nnx.Optimizer`.
    """
    model = nnx.bridge.ToNNX(self.module)
    variables = nnx.bridge.variables.linen_vars_to_nnx_attrs(self.variables)
    for name, value in variables.items():
      setattr(model, name, nnx.data(value))
    return model

  def embed_texts(
    self, texts: list[str], *, cuts: tokenizer_lib.Cuts | None = None
  ) -> np.ndarray:
    """Returns unit embeddings of texts; `cuts` as in `encode_text`."""
    return np.asarray(self.encode_text(texts, cuts=cuts))

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

  def tokenize(
    self, texts: Texts, *, cuts: tokenizer_lib.Cuts | None = None
  ) -> np.ndarray:
    """Returns the tokens of texts, int32 (n, length), padded or cut to length.

    Args:
      texts: one text, or several.
      cuts: as in `encode_text`.

    Raises:
      UserError: the model has no text tower, or an input is not a text.
    """
    tokenizer = self.needed_tokenizer()
    texts = tokenizer_lib.listed_texts(texts)
    if not isinstance(cuts, tokenizer_lib.Cuts | None):
      raise errors.UserError(
        f"cuts is a clip_jax.tokenizer.Cuts or None, got {cuts!r:.100}."
      )
    rows = tokenizer.rows(texts)
    counted = tokenizer_lib.Cuts() if cuts is None else cuts
    counted.add(texts, rows.cut)
    if cuts is None:
      counted.tell(tokenizer.context_length)
    return rows.ids

  def _tokens(self, texts, cuts) -> np.ndarray:
    """Returns the tokens (n, length) of texts; tokens are only checked."""
    tower = self.module.text
    if inputs_lib.are_given(texts):
      tokens = np.atleast_2d(np.asarray(texts))
      inputs_lib.check_length(tokens, tower)
    else:
      tokens = self.tokenize(texts, cuts=cuts)
    if tokens.size:
      inputs_lib.check_ids(tokens, tower)
    return tokens

  def _traced(self, part: str, inputs: jax.Array) -> jax.Array:
    """Returns unit embeddings (n, embed) of prepared inputs under a trace."""
    if part == "text":
      inputs = jnp.atleast_2d(inputs)
      inputs_lib.check_length(inputs, self.module.text)
    else:
      size = self.needed_preprocess().image_size
      inputs_lib.check_traced_images(inputs, size)
      inputs = inputs.reshape(-1, size, size, 3)
    embeds: Any = self.module.apply(
      self.variables, inputs, method=f"encode_{part}"
    )
    return embeds.astype(jnp.float32)

  def similarity(
    self,
    images: Images,
    texts: Texts,
    *,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns the cosine similarity of each image with each text.

    The result is float32 (images, texts).

    Args:
      images: as in `encode_image`.
      texts: as in `encode_text`.
      batch_size: as in `encode_image`.
      progress: as in `encode_image`, for the images.
      as_numpy: False to get a JAX array.

    Raises:
      UserError: the model has one tower only, or an input cannot be read.
    """
    self.check_towers("image", "text")
    text_embeds = self.encode_text(texts, as_numpy=as_numpy)
    image_embeds = self.encode_image(
      images, batch_size=batch_size, progress=progress, as_numpy=as_numpy
    )
    return image_embeds @ text_embeds.T

  def classify(
    self,
    images: Images,
    labels: prompts_lib.Labels | str | os.PathLike,
    *,
    templates: str | os.PathLike | Sequence[str] | None = None,
    probabilities: str | None = None,
    batch_size: int | None = None,
    progress: bool | Progress = False,
    as_numpy: bool = True,
  ) -> np.ndarray | jax.Array:
    """Returns the probability of each label, float32 (n, labels).

    Args:
      images: as in `encode_image`.
      labels: a list of names, or names separated by commas; a list of names in
        place of a name holds synonyms; a dictionary maps names to full prompts;
        the path of a file holds any of these.
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
      labels = prompts_lib.read_labels(labels)
    if isinstance(templates, str | os.PathLike):
      templates = prompts_lib.read_templates(templates)
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
    """Returns what `evals.tasks.evaluate` takes; keeps class embeddings.

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

  def check_towers(self, *needed: str) -> None:
    """Raises UserError if a needed tower ("image" or "text") is missing."""
    for part in needed:
      errors.check_known("tower", part, _INPUTS)
      if not getattr(self, _INPUTS[part]):
        raise errors.UserError(self._lacks(part))

  def _lacks(self, part: str) -> str:
    """Returns the message of a model without the tower `part`."""
    (there,) = _INPUTS.keys() - {part}
    return (
      f"{self.path or 'The model'} has only the {there} tower, and this "
      f"needs the {part} tower. Give a model with both, or train one that "
      f"starts from this tower (init.{there} in a config)."
    )

  def check_embeds(self) -> None:
    """Raises UserError unless images and texts share an embedding space."""
    if not self.module.contrastive:
      raise errors.UserError(
        f"{self.path or 'The model'} was trained to predict captions "
        "(objective.kind='bow' or 'lm') and has no embedding space that images "
        "and texts share. `clip-jax eval --task zero_shot` measures it by its "
        "own scores; for anything else give a model of a contrastive objective."
      )

  def needed_preprocess(self) -> preprocess_lib.Preprocess:
    """Returns `preprocess`; raises UserError without an image tower."""
    self.check_towers("image")
    return self.preprocess

  def needed_tokenizer(self) -> tokenizer_lib.Tokenizer:
    """Returns `tokenizer`; raises UserError without a text tower."""
    self.check_towers("text")
    return self.tokenizer

  def save(self, path: str | os.PathLike) -> None:
    """Writes a model directory, which `load` reads.

    Raises:
      UserError: `path` exists and is not an empty directory.
    """
    self.check_embeds()
    if not self.spec:
      raise errors.UserError("A model without a description cannot be saved.")
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
      raise errors.UserError(
        f"save takes the path of a new directory, got {path!r:.100}."
      )
    errors.check_local("The new model", path)
    destination = pathlib.Path(os.path.expanduser(path)).resolve()
    if destination.exists() and not (
      destination.is_dir() and not any(destination.iterdir())
    ):
      raise errors.UserError(f"{destination} exists; give a new path.")
    files = self.tokenizer.files() if self.tokenizer else {}
    model = portable.from_variables(
      self.variables,
      model_dir.plain(self.spec),
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


def _now(embed: Callable[..., np.ndarray], *inputs: Any) -> np.ndarray:
  """Returns `embed(*inputs)`, computed at once even inside a JAX trace.

  A new thread is outside of the trace.
  """
  if not isinstance(jnp.zeros(()), core.Tracer):
    return embed(*inputs)
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(embed, *inputs).result()


def _joined(parts: list[np.ndarray], as_numpy: bool) -> np.ndarray | jax.Array:
  embeds = np.concatenate(parts)
  return embeds if as_numpy else jnp.asarray(embeds)
