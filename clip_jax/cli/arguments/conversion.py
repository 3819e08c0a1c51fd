"""The arguments of convert and verify."""

import argparse
import contextlib

from clip_jax import names
from clip_jax.cli import flags

_NORMS = ("inception", "imagenet", "openai")


def add_convert(parser: flags.Parser) -> None:
  """Adds the arguments of `convert`."""
  parser.add_argument(
    "source", metavar="SOURCE", help="a file, a directory or hf-hub:ORG/NAME"
  )
  parser.add_argument("destination", metavar="DEST", help="a new path")
  parser.add_argument(
    "--to",
    required=True,
    metavar="FORMAT",
    choices=names.TARGETS,
    help=f"{', '.join(names.TARGETS[:-1])} or {names.TARGETS[-1]}",
  )
  _add_reading(parser)
  parser.add_argument(
    "--image-size",
    type=flags.count,
    metavar="N",
    help="resize the position embeddings to images of N pixels a side",
  )
  parser.add_argument(
    "--resize-method",
    metavar="NAME",
    help="how: bicubic_antialias (as open_clip does), bicubic (HuggingFace), "
    "bilinear_antialias, bilinear or align_corners (big_vision)",
  )
  parser.add_argument(
    "--context-length",
    type=flags.count,
    metavar="N",
    help="stretch or cut the text tower's positions: from 77 up to 248, as "
    "Long-CLIP does, or to fewer",
  )
  parser.add_argument(
    "--old-grid",
    type=_grid,
    metavar="HxW",
    help="rows and columns of the source's patches, if they are not a square",
  )
  flags.add_interpolate(parser, type=flags.share)
  parser.add_argument(
    "--drop-logit-bias",
    action="store_true",
    help="leave out a logit bias that the target has no place for",
  )
  parser.add_argument(
    "--dry-run",
    action="store_true",
    help="read headers only, say what would be done, and write nothing",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what is at DEST"
  )
  flags.add_json(parser)


def add_verify(parser: flags.Parser) -> None:
  """Adds the arguments of `verify`."""
  parser.add_argument(
    "source", metavar="SOURCE", help="a checkpoint that another library reads"
  )
  parser.add_argument(
    "model", metavar="MODEL", help="the same model in any format"
  )
  _add_reading(parser)
  parser.add_argument(
    "--float64",
    action="store_true",
    help="compute in float64, with a bar of 1e-12",
  )
  parser.add_argument(
    "--examples",
    type=flags.count,
    default=4,
    metavar="N",
    help="random images, and as many texts, to compare on (default: 4)",
  )
  parser.add_argument(
    "--seed",
    type=flags.seed,
    default=0,
    metavar="N",
    help="seed of the random inputs (default: 0)",
  )
  flags.add_json(parser)


def _add_reading(parser: flags.Parser) -> None:
  parser.add_argument(
    "--from",
    dest="source_format",
    metavar="FORMAT",
    help="the source's format, if it is not recognised correctly",
  )
  parser.add_argument(
    "--config",
    metavar="FILE|NAME",
    help="for a file of weights alone: its open_clip_config.json or "
    "config.json, or the name of a model of open_clip",
  )
  parser.add_argument(
    "--weights",
    metavar="NAME",
    help="which of several models in a training checkpoint, such as model_ema",
  )
  parser.add_argument(
    "--activation",
    choices=names.ACTIVATIONS,
    help="activation of both towers, if the source does not say it",
  )
  parser.add_argument(
    "--heads",
    type=_heads,
    metavar="IMAGE,TEXT",
    help="attention heads of the towers, if the source does not say them",
  )
  parser.add_argument(
    "--pooling",
    choices=("mean", "cls", "last"),
    help="pooling of a plain BERT (mean or cls), or of an .npz whose text "
    "tower is not SigLIP's (last)",
  )
  parser.add_argument(
    "--tokenizer",
    choices=("c4_en", "mc4", "gemma"),
    help="for an .npz with a vocabulary of its own: the tokenizer whose "
    "cleaning, end token and padding it uses",
  )
  parser.add_argument(
    "--preprocess",
    type=_preprocess,
    metavar="NORM:CROP",
    help="for a timm file without a config: inception, imagenet or openai for "
    "mean and std, and the part kept by a centre crop, or squash; such as "
    "inception:0.9",
  )


def _grid(text: str) -> tuple[int, int]:
  rows, cross, cols = text.partition("x")
  if not cross:
    raise argparse.ArgumentTypeError(f"{text!r} is not like 14x20")
  return flags.count(rows), flags.count(cols)


def _heads(text: str) -> tuple[int, int]:
  image, comma, words = text.partition(",")
  if not comma:
    raise argparse.ArgumentTypeError(f"{text!r} is not like 16,16")
  return flags.count(image), flags.count(words)


def _preprocess(text: str) -> tuple[str, float | None]:
  norm, colon, crop = text.partition(":")
  with contextlib.suppress(ValueError):
    if colon and norm in _NORMS:
      return norm, None if crop == "squash" else float(crop)
  raise argparse.ArgumentTypeError(f"{text!r} is not like inception:0.9")


def check_convert(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if (arguments.image_size is None) != (arguments.resize_method is None):
    return "--image-size and --resize-method go together"
  if arguments.old_grid is not None and arguments.image_size is None:
    return "--old-grid goes with --image-size"
  return flags.check_interpolate(arguments)
