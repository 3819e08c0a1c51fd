"""Compares a source in its own library with its conversion in this one.

Both preprocess the same images and texts, and both get the same random inputs.
Their outputs are compared stage by stage, so that the first stage above its
tolerance (its "bar") shows where a difference comes from.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clip_jax import errors, terminal
from clip_jax.convert import engine, opening
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.verify import libraries, probes
from clip_jax.convert.verify.oracle import Checkpoint, Oracle, Stages
from clip_jax.models import paths, variants

# The bar of float64: the largest difference over the largest number.
DOUBLE_BAR = 1e-12
# The bar of float32 is this many times the difference between float32 and
# float64 in the source's own library, at each stage, and at least the floor of
# a few units in the last place. It is relative, since a tower with real weights
# loses ten times as much as one with random weights.
SINGLE_FACTOR = 8
SINGLE_FLOOR = 1e-6
# The rounding of normalisation in float32; pixels must be equal in each level.
PIXEL_BAR = 1e-6
TOKEN_BAR = 0.0
# Weights are equal, except scalars that are stored as logarithms.
WEIGHTS_BAR = 1e-6


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One stage: its difference from the oracle's, and its bar."""

  stage: str
  difference: float
  bar: float

  @property
  def passed(self) -> bool:
    """Whether the difference is at most the bar; False for NaN."""
    return self.difference <= self.bar


@dataclasses.dataclass(frozen=True)
class NotCompared:
  """A stage that could not be compared."""

  stage: str
  why: str


@dataclasses.dataclass(frozen=True)
class Verification:
  """All stages of a comparison, and those that could not be compared."""

  library: str
  precision: str
  rows: tuple[Comparison, ...]
  not_compared: tuple[NotCompared, ...] = ()

  @property
  def passed(self) -> bool:
    """Whether there are stages, and every one is within its bar."""
    return bool(self.rows) and all(row.passed for row in self.rows)

  def to_dict(self) -> dict[str, Any]:
    """Returns the comparison as plain data."""
    return {
      "oracle": self.library,
      "precision": self.precision,
      "passed": self.passed,
      "stages": [
        {**dataclasses.asdict(row), "passed": row.passed} for row in self.rows
      ],
      "not_compared": [dataclasses.asdict(row) for row in self.not_compared],
    }

  def to_text(self) -> str:
    """Returns the comparison as text: a table and a verdict."""
    rows = [
      (
        row.stage,
        f"{row.difference:.1e}",
        f"{row.bar:.0e}",
        "PASS" if row.passed else "FAIL",
      )
      for row in self.rows
    ]
    rows += [(row.stage, "", "", "not compared") for row in self.not_compared]
    header = ("stage", "difference", "allowed", "")
    verdict = "PASS" if self.passed else "FAIL"
    left_out = " and ".join(row.stage for row in self.not_compared)
    # Not in the table, which would cut the reasons.
    reasons = "".join(
      f"\n{row.stage}: not compared ({row.why})" for row in self.not_compared
    )
    return (
      f"{terminal.table(header, rows)}\n{reasons}\n{verdict} against "
      f"{self.library} in {self.precision}"
      f"{f'; {left_out} not compared' if left_out else ''}; differences are "
      "relative to each stage's largest number (of tokens: the share of texts)."
    )


def verify(
  source: str,
  model: str,
  *,
  source_format: str | None = None,
  options: Options | None = None,
  double: bool = False,
  examples: int = 4,
  seed: int = 0,
) -> Verification:
  """Compares `model`, loaded here, with `source`, loaded by its own library.

  Args:
    source: a checkpoint that another library reads.
    model: the same model in any format.
    source_format: format of the source; None recognises it.
    options: what the source does not say itself; not used for `model`.
    double: whether to compute in float64, with a bar of 1e-12. Otherwise the
      bar of a stage is a multiple of the difference between float32 and float64
      in the source's own library.
    examples: number of random images and of random texts.
    seed: seed of the random inputs.

  Raises:
    UserError: no installed library reads the source, or the two are models of
      different sizes.
    AmbiguousError: one of them has several possible meanings.
  """
  path = opening.find(os.fspath(source))
  options = options or Options()
  known = source_format or opening.recognise(path, options)
  theirs = opening.open_model(path, source_format=known, options=options)
  ours = _open_as_it_stands(model)
  if engine.leaf_shapes(ours.spec) != engine.leaf_shapes(theirs.spec):
    raise errors.UserError(
      f"{model} is not {source} converted: their arrays differ in size. "
      "Give the source that it was converted from."
    )
  rng = np.random.default_rng(seed)
  makers = {"image": random_images, "text": random_tokens}
  inputs = {
    part: makers[part](ours.spec[part], rng, examples)
    for part in engine.towers(ours.spec)
  }
  asked = Checkpoint(path, theirs.spec, options, double=True)
  exact = None
  if not double:  # Freed again before the source is loaded in float32.
    exact = _their_stages(libraries.load(known, asked), inputs, double=True)
  asked = dataclasses.replace(asked, double=double)
  oracle = libraries.load(known, asked)
  with (
    jax.enable_x64(double),
    jax.default_matmul_precision("highest"),
  ):
    found = [
      _compare_weights(ours, theirs),
      *_compare_inputs(ours, theirs, oracle),
      *_compare(ours, oracle, inputs, exact),
    ]
  return Verification(
    oracle.library,
    "float64" if double else "float32",
    tuple(row for row in found if isinstance(row, Comparison)),
    tuple(row for row in found if isinstance(row, NotCompared)),
  )


def _open_as_it_stands(model: str) -> Portable:
  # The source's options are not used: they could correct a wrong description
  # here, which would stay wrong everywhere else.
  try:
    return opening.open_model(model)
  except errors.AmbiguousError as error:
    raise errors.AmbiguousError(
      f"{error.problem} Options are only for the source, and {model} is "
      "compared as it stands: convert it first, and verify the result.",
      flags=error.flags,
    ) from None


def _compare_weights(ours: Portable, theirs: Portable) -> Comparison:
  """Returns the row for all numbers of all arrays, unused embeddings too."""
  found = [
    difference(leaf.read(), theirs.leaves[path].read())
    for path, leaf in ours.leaves.items()
  ]
  # Python's own max would pass over NaN.
  return Comparison("weights", float(np.max(found)), WEIGHTS_BAR)


def _compare_inputs(ours: Portable, theirs: Portable, oracle: Oracle):
  """Yields the rows for preprocessed images and texts."""
  seed = np.random.default_rng(0)  # The probes are always the same.
  lower = theirs.spec.get("tokenizer", {}).get("cleaning") == "hf_lower"
  stages: Any = (
    (
      *("pixels", "image", probes.pictures(seed), probes.prepare),
      *(difference, PIXEL_BAR),
    ),
    (
      *("tokens", "text", probes.texts(lower=lower), probes.tokenize),
      *(unequal_rows, TOKEN_BAR),
    ),
  )
  for stage, part, inputs, run_ours, compare, bar in stages:
    if part not in ours.spec:
      continue
    run_theirs = getattr(oracle, stage)
    if run_theirs is None:
      why = oracle.missing.get(stage, f"{oracle.library} has none here")
      yield NotCompared(stage, why)
      continue
    try:
      got = run_ours(ours, inputs)
    except errors.UserError as error:
      yield NotCompared(stage, f"none here: {error}")
      continue
    try:
      want = run_theirs(inputs)
    except Exception as error:  # Another library's, of any kind.
      yield NotCompared(stage, f"failed there: {errors.first_line(error)}")
      continue
    yield Comparison(stage, compare(got, want), bar)


def _their_stages(
  oracle: Oracle, inputs: Mapping[str, np.ndarray], *, double: bool
) -> Stages:
  """Returns the oracle's stages of both towers, and its logits."""
  found: Stages = {}
  for part, given in inputs.items():
    stages = oracle.towers[part].stages(given, double=double)
    found |= {f"{part} {stage}": array for stage, array in stages.items()}
  if oracle.model is not None and len(inputs) == 2:
    found["logits"] = oracle.logits(
      *(found[f"{part} embedding"] for part in ("image", "text"))
    )
  return found


def _compare(ours: Portable, oracle: Oracle, inputs, exact: Stages | None):
  """Yields the rows for the stages of both towers, and for the logits.

  Args:
    ours: the model in this library.
    oracle: the source in its own library.
    inputs: inputs of each tower.
    exact: the oracle's stages in float64; None if it computes in float64.
  """
  double = exact is None
  want = _their_stages(oracle, inputs, double=double)
  got: Stages = {}
  for part, given in inputs.items():
    stages = our_stages(ours, part, given, np.float64 if double else np.float32)
    got |= {f"{part} {stage}": array for stage, array in stages.items()}
  if "logits" in want:
    scale, bias = (
      ours.leaves[path].read().astype(np.float64) if path in ours.leaves else 0
      for path in ("params/log_scale", "params/logit_bias")
    )
    images, texts = got["image embedding"], got["text embedding"]
    got["logits"] = np.exp(scale) * images @ texts.T + bias
  if not want.keys() <= got.keys():
    raise errors.UserError(
      f"The towers have different stages: {', '.join(want)} in the source's "
      f"library, {', '.join(got)} here."
    )
  for stage, array in want.items():
    bar = _bar(array, None if double else exact[stage])
    yield Comparison(stage, difference(got[stage], array), bar)


def _bar(single: np.ndarray, exact: np.ndarray | None) -> float:
  """Returns the bar, from the oracle's float32 and float64 results."""
  if exact is None:
    return DOUBLE_BAR
  return max(SINGLE_FLOOR, SINGLE_FACTOR * difference(single, exact))


def difference(got: np.ndarray, want: np.ndarray) -> float:
  """Returns the largest difference over the largest number."""
  if got.shape != want.shape:
    return float("inf")
  got, want = got.astype(np.float64), want.astype(np.float64)
  return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-300))


def unequal_rows(got: np.ndarray, want: np.ndarray) -> float:
  """Returns the fraction of rows that are not equal."""
  if got.shape != want.shape:
    return float("inf")
  return float((got != want).any(axis=1).mean())


def random_images(
  tower: dict[str, Any], rng: np.random.Generator, examples: int
) -> np.ndarray:
  """Returns normalised images (examples, size, size, 3), float64."""
  size = tower["image_size"]
  return rng.normal(size=(examples, size, size, 3))


def random_tokens(
  tower: dict[str, Any], rng: np.random.Generator, examples: int
) -> np.ndarray:
  """Returns ids (examples, length) of texts that end at various positions."""
  length, vocab = tower["context_length"], tower["vocab_size"]
  tokens = rng.integers(1, vocab - 1, size=(examples, length))
  end = tower.get("eos_id") or vocab - 1
  tokens[tokens == end] = 1
  pad = tower.get("pad_id", 0)
  for row, at in enumerate(np.linspace(length - 1, 1, examples).astype(int)):
    tokens[row, at] = end
    tokens[row, at + 1 :] = pad
  return tokens.astype(np.int32)


def our_stages(
  model: Portable, part: str, inputs: np.ndarray, dtype: Any
) -> Stages:
  """Returns the intermediate results of our tower `part`, by stage."""
  module = variants.create_model(
    engine.completed(model.spec), dtype=dtype, param_dtype=dtype
  )
  variables = model.variables(dtype)
  if part == "image":
    inputs = inputs.astype(dtype)

  def watched(submodule, method_name):
    name = submodule.name or ""
    wanted = name in (paths.BLOCKS, part) or paths.block_numbers(name)
    return bool(wanted) and method_name == "__call__"

  embeds, found = jax.jit(
    lambda variables, inputs: module.apply(
      variables,
      inputs,
      method=f"encode_{part}",
      capture_intermediates=watched,
      mutable=["intermediates"],
    )
  )(variables, inputs)
  tower = found["intermediates"][part]
  return {
    **_blocks(tower),
    "pooled": np.asarray(tower["__call__"][0]),
    "embedding": np.asarray(embeds),
  }


def _blocks(tower: dict[str, Any]) -> Stages:
  if stack := paths.layers_in(tower):
    (stacked,) = stack["__call__"]
    return {f"block {i}": np.asarray(x) for i, x in enumerate(stacked, start=1)}
  # The last block of a ResNet's stage has the stage's name.
  blocks = {paths.block_numbers(name): x for name, x in tower.items()}
  return {
    f"stage {place[0]}": np.asarray(blocks[place]["__call__"][0])
    for place in sorted(filter(None, blocks))
  }
