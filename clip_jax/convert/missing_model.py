"""The error for a model that does not exist, with suggestions."""

import os
import pathlib
import re

from clip_jax import errors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import hub, weights_file
from clip_jax.models import other_families, variants

# Well-known repositories of the Hub, by the architecture of their model.
REPOSITORIES = {
  "ViT-B-32": "openai/clip-vit-base-patch32",
  "ViT-B-16": "openai/clip-vit-base-patch16",
  "ViT-L-14": "openai/clip-vit-large-patch14",
  "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
  "ViT-B-32-gelu": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
  "ViT-L-14-gelu": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
  "ViT-H-14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
  "ViT-B-16-SigLIP": "google/siglip-base-patch16-224",
  "ViT-SO400M-14-SigLIP-384": "google/siglip-so400m-patch14-384",
  "ViT-B-16-SigLIP2": "google/siglip2-base-patch16-224",
}
# A name is suggested that is this similar (from 0 to 1), or that contains what
# was given, if this is at least so many letters and digits.
_LEAST_SIMILARITY = 0.8
_LEAST_PART = 5
_LOCAL = re.compile("local-dir:(.+)")  # As open_clip has it.


def error(path: pathlib.Path, accepted: str) -> errors.UserError:
  """Returns the error for a path that does not exist.

  Args:
    path: the path as the user gave it.
    accepted: a description of what can be given.
  """
  name = str(path)
  what = f"Model {name!r:.300} does not exist"
  workdir, step = workdir_lib.split_step(path)
  if step is not None:
    steps = sorted(workdir_lib.saved_steps(pathlib.Path(workdir)))
    return errors.UserError(f"{what}: {workdir} has checkpoints of {steps}.")
  known = {errors.plain(x): x for x in variants.VARIANTS}
  # OpenAI writes ViT-L/14@336px; open_clip has a tag, ViT-B-32/openai.
  spellings = [name.removesuffix("px")]
  architecture, _, tag = name.rpartition("/")
  own_names = {x.partition("/")[2]: x for x in REPOSITORIES.values()}
  tagged = [own_names[x] for x in _near(tag, own_names)] if architecture else []
  if not tagged:
    spellings.append(architecture)
  for spelling in spellings:
    if found := known.get(errors.plain(spelling)):
      return errors.UserError(
        f"{what} as a file or directory. {found} is the name of an "
        "architecture, which has no weights by itself: "
        f"clip_jax.create_model({found!r}) makes it untrained, `clip-jax train "
        f"--config … --config.model={found}` trains it, and a checkpoint of it "
        "is given by its path or as "
        f"{hub.PREFIX}{REPOSITORIES.get(found, 'ORG/NAME')}."
      )
  is_name = path.suffix not in weights_file.SUFFIXES and (
    path.parent == pathlib.Path() or hub.is_name(name)
  )
  if is_name and (told := other_families.sentence(name)):
    return errors.UserError(
      f"{what}. {told}{errors.beside(path)} Give {accepted}."
    )
  hint = ""
  if local := _LOCAL.fullmatch(name):
    hint = f" Give a directory by its path alone: {local[1]}."
  if near := tagged or _near(name, REPOSITORIES.values()):
    near = [hub.PREFIX + x for x in near]
    hint += f" Similar names on the HuggingFace Hub: {', '.join(near)}."
  elif hub.is_name(name) and not os.path.exists(path.parent):
    hint += (
      f" If it is a model of the HuggingFace Hub, give {hub.PREFIX}{name}."
    )
  if near := _near(name, variants.VARIANTS):
    hint += (
      f" The nearest names of architectures are {', '.join(near)}: "
      "clip_jax.create_model makes them, untrained (`clip-jax models`)."
    )
  return errors.UserError(
    f"{what}.{hint}{errors.beside(path)} Give {accepted}."
  )


def _near(name, known) -> list[str]:
  """Returns `known` names: those equal to `name`, or at most three near it."""
  wanted = errors.plain(name)
  plain = {x: errors.plain(x) for x in known}
  if same := [x for x in plain if plain[x] == wanted]:
    return same
  longer = [x for x in plain if wanted in plain[x]]
  if longer and len(wanted) >= _LEAST_PART:
    return errors.nearest(name, longer)
  is_close = errors.nearest(name, plain, cutoff=_LEAST_SIMILARITY)
  return errors.nearest(name, plain) if is_close else []
