"""The number of heads of a model with OpenAI's names, which no tensor shows.

OpenAI's own models have width / 64 heads. Other models with the same names do
not: ViT-H-14, ViT-g-14 and ViT-bigG-14 have 16 heads, although 64 divides their
widths as well.
"""

from typing import Any

from clip_jax import errors, names
from clip_jax.convert.source_reading import SourceReading
from clip_jax.models import resnet, variants


def find(
  image: dict[str, Any], text: dict[str, Any], reading: SourceReading
) -> tuple[int, int]:
  """Returns the heads of both towers, those of a ResNet at its end.

  Args:
    image: the image tower's sizes.
    text: the text tower's sizes.
    reading: the checkpoint that is read; numbers in its options override
      others.

  Raises:
    AmbiguousError: the sizes are not OpenAI's, and no option says the heads.
    UserError: the heads do not divide the width.
  """
  given, report, name = reading.options.heads, reading.report, reading.name
  towers = {"image": image, "text": text}
  found = []
  for number, (tower, sizes) in enumerate(towers.items()):
    is_resnet = sizes["kind"] == "resnet"
    width = sizes["width"]
    if is_resnet:  # Its last stage's, each being twice as wide.
      width *= resnet.EXPANSION * 2 ** (len(sizes["depths"]) - 1)
    by_rule = width // resnet.HEAD_DIM
    # A ResNet has its heads at its end only, by the rule in every codebase.
    ruled = is_resnet or any(
      _sizes(sizes) == _sizes(variants.VARIANTS[known][tower])
      for known in names.OPENAI_MODELS
    )
    if not (given or ruled):
      raise _ambiguous(towers, name)
    heads = given[number] if given else by_rule
    if heads < 1 or width % heads or (is_resnet and heads != by_rule):
      raise errors.UserError(
        f"{name}: {heads} heads of the {tower} tower do not fit its width, "
        f"{width}: "
        + (f"a ResNet has {by_rule}." if is_resnet else "they must divide it.")
      )
    if ruled and heads != by_rule:
      report.warnings.append(
        f"--heads gives the {tower} tower {heads} heads; OpenAI's models of "
        f"its size have {by_rule}."
      )
    source = "flag" if given else "format"
    found.append(report.infer(f"{tower}.heads", heads, source))
  return tuple(found)


def _sizes(tower: dict[str, Any]) -> tuple:
  """Returns the sizes of a tower by which OpenAI's releases are recognised."""
  layers = [tower["depth"]] if "depth" in tower else tower["depths"]
  return (tower["width"], *layers)


def _ambiguous(towers, name) -> errors.AmbiguousError:
  """Returns the error, with numbers of published models of that size."""
  sizes = ", ".join(
    f"{part} tower {tower['width']} wide with {tower['depth']} layers"
    if "depth" in tower
    else f"{part} tower {tower['width']} wide"
    for part, tower in towers.items()
  )
  same = [
    f"{known} has {model['image']['heads']},{model['text']['heads']}"
    for known, model in variants.VARIANTS.items()
    if all("heads" in model[part] for part in towers)
    and all(_sizes(model[part]) == _sizes(towers[part]) for part in towers)
  ]
  hint = f" (of these sizes, {same[0]})" if same else ""
  return errors.AmbiguousError(
    f"{name} does not say how many heads its towers have, and their sizes are "
    f"none of OpenAI's ({sizes}).",
    flags=f"--heads IMAGE,TEXT{hint}",
  )
