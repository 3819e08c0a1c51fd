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
  known.name: known
  for known in (
    Format(
      "clip-jax",
      model_dir.read,
      recognise=model_dir.recognise,
      write=model_dir.write,
    ),
    Format("workdir", workdir.read, recognise=workdir.recognise),
    openai.FORMAT,
    Format(
      "open-clip",
      open_clip.read,
      recognise=open_clip.recognise,
      knows=open_clip.knows,
      write=open_clip.write,
      refusals=open_clip.refusals,
      gives_back=open_clip.gives_back,
    ),
    big_vision.FORMAT,
    borisdayma.FORMAT,
    flax_clip.FORMAT,
    sentence_transformers.FORMAT,
    huggingface.FORMAT,
    bert.FORMAT,
    timm.FORMAT,
  )
}
