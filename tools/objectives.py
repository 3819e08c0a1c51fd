"""Runs the paper's comparison of objectives and draws it (Figure 2).

  python tools/objectives.py --out runs/objectives
  python tools/objectives.py --out runs/objectives --seeds 3 \
    --kinds contrastive,bow --config.steps=200

Each run has a workdir DIR/KIND-SEED; what is finished is not run again. All
begin with the image tower that their seed draws, and read with a vocabulary of
the data's own words: CLIP's 49,408 tokens would take most of a captioner's
time. Writes DIR/objectives.json and, with matplotlib, DIR/objectives.png.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import statistics
import sys

from clip_jax import config as config_lib
from clip_jax import errors, loading, names, terminal, whole_files
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.cli import flags
from clip_jax.convert.engine import family
from clip_jax.data import builtin
from clip_jax.evals import efficiency
from clip_jax.models import variants
from clip_jax.train import loop, metric_log, step_flops
from clip_jax.train import run as run_lib

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "objectives.py"
DATA = ("all", "unseen")  # `config.evals` there.


VOCABULARY = (
  "[PAD]",
  "[UNK]",
  *builtin.COLOURS,
  *builtin.WORDS,
  *builtin.DISTRACTORS,
  "[CLS]",
  "[SEP]",  # The largest: there a text is read.
)
TOKENIZER = {
  "kind": "wordpiece",
  "file": "vocab.txt",
  "cleaning": "none",
  "lowercase": True,
  "pad_id": 0,
  "start_id": len(VOCABULARY) - 2,
  "end_id": len(VOCABULARY) - 1,
}


def start_spec(config):
  """Returns the description of the model that a run begins with."""
  overrides = {
    **config.model_overrides,
    "tokenizer": TOKENIZER,
    "text": {
      **config.model_overrides.get("text", {}),
      "vocab_size": len(VOCABULARY),
    },
  }
  spec = run_model.spec(
    config.model, overrides, objective=config.objective.kind
  )
  return family.as_json(spec)


def begin(config, path, workdir):
  """Writes the model that a run begins with, and returns the run's config.

  Args:
    config: the run's config.
    path: of the model; one that is there already is kept.
    workdir: of the run.

  Raises:
    UserError: `path` holds another model than that of the config, or none
      although the run has begun.
  """
  spec = start_spec(config)
  if not path.exists():
    if (workdir / workdir_lib.CONFIG).exists():
      raise errors.UserError(
        f"{workdir} holds a run, but {path}, the model with which it began, is "
        f"gone. Give another --out, or remove {workdir}, too."
      )
    module = variants.create_model(spec)
    loading.assemble(
      module,
      state_lib.init_variables(module, config.seed),
      spec=spec,
      files={TOKENIZER["file"]: "\n".join(VOCABULARY).encode()},
    ).save(path)
  elif (held := loading.load(path).spec) != spec:
    fields = (k for k in {*held, *spec} if held.get(k) != spec.get(k))
    raise errors.UserError(
      f"{path} holds a model that differs from this config's in "
      f"{', '.join(sorted(fields))}. Give another --out, or the model and "
      "model_overrides of before."
    )
  return dataclasses.replace(
    config,
    model=variants.FROM_INIT,
    model_overrides={},
    init=dataclasses.replace(config.init, model=str(path)),
  )


def measure(kind, seed, out, changes):
  """Trains one objective with one seed; returns its curve and its cost."""
  config = config_lib.load(
    CONFIG, [*changes, f"objective.kind={kind}", f"seed={seed}"]
  )
  workdir = out / f"{kind}-{seed}"
  start = start_spec(config)
  config = begin(config, out / f"start-{kind}-{seed}", workdir)
  found = workdir / "curve.json"
  if found.is_file():
    curve = json.loads(found.read_text())
    asked = {"start": start, "config": json.loads(config_lib.to_json(config))}
    if all(curve.get(name) == value for name, value in asked.items()):
      return curve
  logging.info("%s, seed %d", kind, seed)
  seconds = loop.train(config, workdir).seconds
  lines = [
    json.loads(line)
    for line in (workdir / metric_log.METRICS).read_text().splitlines()
  ]
  points = [
    line for line in lines if line["step"] and f"eval/{DATA[0]}/top1" in line
  ]
  curve = {
    "objective": kind,
    "seed": seed,
    "images": [line["step"] * config.batch_size for line in points],
    **{name: [line[f"eval/{name}/top1"] for line in points] for name in DATA},
    "flops_per_image": _flops(workdir) / config.batch_size,
    "seconds": seconds,
    "start": start,
    "config": json.loads(config_lib.to_json(config)),
  }
  whole_files.write(found, json.dumps(curve, indent=2).encode())
  return curve


def _flops(workdir):
  """Returns the operations of one update."""
  run = run_lib.make_run(
    workdir_lib.load_config(workdir),
    tokenizer_files=workdir_lib.tokenizer_files(workdir),
  )
  with run.batches(0) as batches:
    return step_flops.Counter(run.program)(next(batches))


def summarise(curves, target):
  """Returns one line for each objective, the ratios to the first of them.

  Where a run did not reach the target, its ratio is a bound (efficiency.py).
  """
  needed: dict[str, list[efficiency.Needed]] = {}
  for curve in curves:
    needed.setdefault(curve["objective"], []).append(
      efficiency.needed(curve["images"], curve["all"], target)
    )
  rows = []
  for kind, counts in needed.items():
    own = [curve for curve in curves if curve["objective"] == kind]
    ends = {name: [curve[name][-1] for curve in own] for name in DATA}
    first = next(iter(needed.values()))
    ratio = efficiency.ratio(counts, first)
    rows.append(
      {
        "objective": kind,
        "seeds": len(own),
        "images_to_target": [x.images if x.reached else None for x in counts],
        "reached": sum(x.reached for x in counts),
        "ratio": dataclasses.asdict(ratio),
        **{name: statistics.mean(values) for name, values in ends.items()},
        "flops_per_image": own[0]["flops_per_image"],
        "seconds": statistics.mean(curve["seconds"] for curve in own),
      }
    )
  return rows


def _table(rows, target):
  header = (
    "objective",
    "seeds",
    f"images to {target:.0%}",
    "ratio",
    "all",
    "unseen",
    "MFLOPs an image",
    "seconds",
  )

  def line(row):
    counts = ", ".join(
      f"{x / 1000:.1f}k" if x else "not reached"
      for x in row["images_to_target"]
    )
    return (
      row["objective"],
      str(row["seeds"]),
      counts,
      _ratio(row["ratio"], row["seeds"]),
      *(f"{row[name]:.1%}" for name in DATA),
      f"{row['flops_per_image'] / 1e6:.0f}",
      f"{row['seconds']:.0f}",
    )

  return terminal.table(header, [line(row) for row in rows])


def _ratio(ratio, seeds):
  """Returns a ratio in words; how many pairs of seeds it is of, if not all."""
  value, reached = ratio["value"], ratio["reached"]
  if value is None:
    return f"- ({reached} of {seeds})"
  sign = "" if ratio["bound"] == "=" else f"{ratio['bound']} "
  some = "" if reached == seeds else f" ({reached} of {seeds})"
  return f"{sign}{value:.2f}{some}"


def draw(curves, target, path):
  """Draws the accuracy of every run against the images that it has seen."""
  try:
    from matplotlib import figure
  except ImportError:
    logging.warning(
      "No picture is drawn: matplotlib is missing; pip install matplotlib."
    )
    return
  picture = figure.Figure(figsize=(7, 4.5), layout="constrained")
  axes = picture.subplots()
  kinds = list(dict.fromkeys(curve["objective"] for curve in curves))
  for curve in curves:
    number = kinds.index(curve["objective"])
    labelled = curve is next(
      x for x in curves if x["objective"] == curve["objective"]
    )
    axes.plot(
      curve["images"],
      [100 * x for x in curve["all"]],
      color=f"C{number}",
      marker=".",
      label=curve["objective"] if labelled else None,
    )
  axes.axhline(100 * target, color="grey", linewidth=0.8, linestyle=":")
  axes.set_xscale("log")
  axes.set_xlabel("images processed")
  axes.set_ylabel("zero-shot accuracy, %")
  axes.legend()
  picture.savefig(path, dpi=120)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__.split("\n")[0],
    epilog="Further arguments change the config: --config.steps=200.",
    allow_abbrev=False,
  )
  parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
  parser.add_argument("--seeds", type=flags.count, default=1, metavar="N")
  parser.add_argument(
    "--kinds", default=",".join(names.OBJECTIVES), metavar="A,B"
  )
  parser.add_argument(
    "--target", type=flags.share, default=0.6, metavar="SHARE"
  )
  arguments, rest = parser.parse_known_args()
  changes = [text.removeprefix("--config.") for text in rest]
  if wrong := [text for text in rest if not text.startswith("--config.")]:
    parser.error(f"unknown argument {wrong[0]}")
  for field, own in (("seed", "--seeds"), ("objective.kind", "--kinds")):
    if any(change.startswith(f"{field}=") for change in changes):
      parser.error(f"--config.{field} is set for each run by {own}")
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  arguments.out.mkdir(parents=True, exist_ok=True)
  kinds = list(dict.fromkeys(arguments.kinds.split(",")))
  for kind in kinds:
    if kind not in names.OBJECTIVES:
      raise errors.unknown("objective", kind, names.OBJECTIVES)
  curves = [
    measure(kind, seed, arguments.out, changes)
    for kind in kinds
    for seed in range(arguments.seeds)
  ]
  rows = summarise(curves, arguments.target)
  report = {"target": arguments.target, "objectives": rows}
  (arguments.out / "objectives.json").write_text(json.dumps(report, indent=2))
  draw(curves, arguments.target, arguments.out / "objectives.png")
  print(_table(rows, arguments.target))


if __name__ == "__main__":
  try:
    main()
  except (errors.UserError, OSError) as error:
    sys.exit(f"Error: {error}")
