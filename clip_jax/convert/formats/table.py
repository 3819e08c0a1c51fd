"""The table of all formats, in the order in which they are tried.

A directory may look like several formats; earlier ones say more about a model.
"""

from clip_jax.convert.engine.format import Format
from clip_jax.convert.formats import (
  bert,
  big_vision,
  borisdayma,
  flax_clip,
  huggingface,
  model_dir,
  open_clip,
  openai,
  sentence_transformers,
  timm,
  workdir,
)

FORMATS: dict[str, Format] = {
  known.FORMAT.name: known.FORMAT
  for known in (
    *(model_dir, workdir, openai, open_clip, big_vision, borisdayma, flax_clip),
    *(sentence_transformers, huggingface, bert, timm),
  )
}
