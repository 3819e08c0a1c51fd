"""Class embeddings that are kept in the user's cache folder.

The prompts of ImageNet are 80,000 texts; a model is evaluated with them again
and again. Kept embeddings are found by a hash of all that they depend on.
"""

import hashlib
import io
import json
import logging
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from clip_jax import kept_files, programs
from clip_jax.evals import prompts as prompts_lib

_LOGGER = logging.getLogger(__name__)

MOST_BYTES = 2**28  # Of all files together; the longest unused ones go first.
# Fewer texts are embedded sooner than a large model's numbers are hashed.
WORTH_KEEPING = 1000
_VERSION = 1  # Of how embeddings are made of prompts.


def class_embeddings(
  prompts: prompts_lib.Prompts,
  embed_texts: prompts_lib.EmbedTexts,
  *,
  fingerprint: Callable[[], str],
  note_texts: Callable[[list[str]], object],
) -> np.ndarray:
  """Returns `prompts.class_embeddings`, kept from an earlier call if possible.

  Args:
    prompts: of the classes.
    embed_texts: of the model.
    fingerprint: returns the digest of all of the model's embeddings; called
      where there are many prompts only.
    note_texts: called with texts whose embeddings were kept, so that those
      that the model cuts are told all the same.
  """
  texts = [text for several in prompts.texts for text in several]
  if len(texts) < WORTH_KEEPING or jax.process_count() > 1:
    return prompts_lib.class_embeddings(prompts, embed_texts)
  path = _path_of(prompts, fingerprint())
  kept = _read(path)
  if kept is not None and len(kept) == len(prompts.names):
    note_texts(texts)
    return kept
  made = prompts_lib.class_embeddings(prompts, embed_texts)
  _write(path, made)
  return made


def folder() -> pathlib.Path:
  """Returns the folder of the class embeddings that are kept."""
  return kept_files.folder("classes")


def _path_of(prompts: prompts_lib.Prompts, fingerprint: str) -> pathlib.Path:
  about = [
    _VERSION,
    fingerprint,  # Holds the precision of the model, too.
    prompts.digest,
    jax.__version__,
    jax.devices()[0].device_kind,
    jax.device_count(),  # Batches that are split otherwise round otherwise.
    programs.options(),  # The precision of matrix products, among others.
  ]
  digest = hashlib.sha256(json.dumps(about).encode())
  return folder() / f"{digest.hexdigest()}.npy"


def _read(path: pathlib.Path) -> np.ndarray | None:
  try:
    content = kept_files.read(path)
    if content is None:
      return None
    embeds = np.load(io.BytesIO(content), allow_pickle=False)
    kept_files.note_use(path)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError) as error:
    _LOGGER.debug("%s is not used: %s", path, error)
    return None
  return embeds


def _write(path: pathlib.Path, embeds: np.ndarray) -> None:
  content = io.BytesIO()
  np.save(content, embeds, allow_pickle=False)
  try:
    kept_files.write(path, content.getvalue(), most_bytes=MOST_BYTES)
  except OSError as error:  # A full disk, a home that cannot be written to.
    _LOGGER.debug("%s is not kept: %s", path, error)
