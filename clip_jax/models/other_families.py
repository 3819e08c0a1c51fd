"""Families of models that are known elsewhere and not built in here."""

import re
from collections.abc import Iterable

from clip_jax import errors, names

# A pattern of names, without capitals, and the family; the first that is
# found counts.
_FAMILIES = (
  ("coca(?![a-z])", "CoCa"),
  ("conv_?next", "ConvNeXt"),
  (r"\beva(-?0?[12])?(?![a-z])", "EVA"),
  ("mobileclip|mobileone|fastvit", "MobileCLIP"),
  ("tiny_?clip", "TinyCLIP"),
  (r"\bvitamin-", "ViTamin"),
  ("naflex", "NaFlex"),
  (r"gen(?:lip|lap)", "GenLIP"),
  (r"\bclap(?![a-z])|htsat|whisper", "CLAP"),
  (r"\bpe-(?:core|lang|spatial)", "Perception Encoder"),
  ("modern_?bert|moderntext", "ModernBERT"),
  ("roberta", "RoBERTa"),
  (r"\bm?t5[-_](?:small|base|large|xl)", "T5"),
  ("nllb", "NLLB"),
  (r"\bswin(?:v2)?(?![a-z])", "Swin"),
  (r"\bdino(?:v[123](?![a-z])|-)", "DINO"),
  (r"\bblip", "BLIP"),
  ("efficientnet", "EfficientNet"),
  ("mobilenet", "MobileNet"),
  (r"\b(?:beit|deit)", "BEiT and DeiT"),
  (r"\bmixer-", "MLP-Mixer"),
)
BUILT_IN = (
  "CLIP's ResNets and ViTs, CLIPA's, and SigLIP's of fixed image sizes (`clip-"
  "jax models` lists them)"
)
_QUICK = "-quickgelu"  # As open_clip names OpenAI's models.


def family(name: str) -> str | None:
  """Returns the family that a name tells, of those that are not built in."""
  folded = name.casefold()
  matches = (
    title for pattern, title in _FAMILIES if re.search(pattern, folded)
  )
  return next(matches, None)


def sentence(name: str) -> str:
  """Returns the sentence on the family of a name; "" where it has none."""
  title = family(name)
  return f"{title} is not built in; what is: {BUILT_IN}." if title else ""


def unknown(name: str, known: Iterable[str]) -> errors.UserError:
  """Returns the error for a name that is none of the `known` models."""
  known = list(known)
  plain = {errors.plain(x): x for x in known}
  told = sentence(name)
  stem = name.casefold().removesuffix(_QUICK)
  if errors.plain(name) in plain:  # Another spelling.
    told = ""
  elif (
    name.casefold().endswith(_QUICK)
    and (meant := plain.get(errors.plain(stem))) in names.OPENAI_MODELS
  ):
    told = f"Did you mean {meant!r}? It is OpenAI's, with the quick GELU."
  if told:
    return errors.UserError(f"Unknown model {name!r:.100}. {told}")
  return errors.unknown("model", name, known)
