"""Plans whole training steps for TPUs: memory and estimated utilisation.

    python tools/bench/plan.py --json plan.json --markdown plan.md

Every row compiles the step that would train, ahead of time, for a slice that
need not be here (the extra `plan` brings libtpu). Rows that --json already
holds are not compiled again, unless another jax or libtpu made them; those are
in no table either. --only takes rows whose name contains a text. With --search
each row's mesh, remat, micro-batches and loss are searched anew, cheapest
first, instead of the choice that stands here.

Memory is the compiler's; FLOPs are counted in the program that it is given.
Utilisation is an estimate: the analytic FLOPs over the chips' peak, at the two
ends of the estimated time of a step.
"""

import argparse
import dataclasses
import json
import logging
import pathlib

from clip_jax import config as config_lib
from clip_jax.plan import jobs, planner, presentation, suggest, topology

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
  """One row: a model on a slice, and a choice that fits."""

  model: str
  slice: str
  batch: int = 32_768
  fsdp: int = 1
  remat: str = "full"
  micro_batches: int = 1
  image_remat: str = ""
  image_scan: bool = False

  @property
  def name(self):
    return f"{self.model} {self.batch} {self.slice}"

  def make_config(self):
    config = config_lib.default_config()
    config.model = self.model
    config.batch_size = self.batch
    config.epochs = 32
    config.data.train = "nowhere"  # Planning reads no data.
    for change in self.overrides():
      config_lib.apply_override(config, change)
    return config_lib.check(config)

  def overrides(self):
    changes = ["mesh.data=-1", f"mesh.fsdp={self.fsdp}"]
    remats = {"image": self.image_remat or self.remat, "text": self.remat}
    changes += [
      f"model_overrides.{part}.remat={remat}" for part, remat in remats.items()
    ]
    if self.image_scan:
      changes.append("model_overrides.image.scan=true")
    return [*changes, f"micro_batches={self.micro_batches}"]


SOME = "dots_no_batch"

CASES = (
  Case("ViT-B-32", "v5e:16x16", remat=SOME),
  Case("ViT-B-16", "v5e:16x16", remat=SOME),
  Case("ViT-L-14", "v5e:16x16"),
  Case("ViT-H-14", "v5e:16x16", fsdp=16),
  Case("ViT-bigG-14", "v5e:16x16", fsdp=16),
  Case("ViT-B-32", "v4:4x4x8", remat=SOME),
  Case("ViT-B-16", "v4:4x4x8", remat=SOME),
  Case("ViT-L-14", "v4:4x4x8"),
  Case("ViT-H-14", "v4:4x4x8", fsdp=8),
  Case("ViT-bigG-14", "v4:4x4x8", fsdp=8),
  Case("ViT-B-32", "v5p:4x4x4", remat=SOME),
  Case("ViT-B-16", "v5p:4x4x4", remat=SOME),
  Case("ViT-L-14", "v5p:4x4x4", remat=SOME),
  Case("ViT-H-14", "v5p:4x4x4", fsdp=4),
  Case("ViT-bigG-14", "v5p:4x4x4", fsdp=4),
  Case("ViT-B-32", "v6e:16x16", remat=SOME),
  Case("ViT-B-16", "v6e:16x16", remat=SOME),
  Case("ViT-L-14", "v6e:16x16", remat=SOME),
  Case("ViT-H-14", "v6e:16x16", fsdp=16),
  Case("ViT-bigG-14", "v6e:16x16", fsdp=16),
  # The largest batch of the range, on the smallest chip.
  Case("ViT-L-14", "v5e:16x16", batch=163_840, micro_batches=5),
  # The paper's other models (tables 19 and 20).
  Case("ViT-L-14-336", "v5e:16x16", fsdp=16),
  Case("RN50", "v5e:16x16"),
  Case("RN101", "v5e:16x16", image_scan=True),
  Case("RN50x4", "v5e:16x16", fsdp=16, image_scan=True),
  # The inputs of their blocks alone would be 17 and 39 GiB a chip.
  Case("RN50x16", "v5e:16x16", image_remat="nested", image_scan=True),
  Case("RN50x64", "v5e:16x16", fsdp=16, image_remat="nested", image_scan=True),
)


def key(case, search):
  """Returns what a row depends on, as data."""
  return {
    "choice": dataclasses.asdict(case),
    "searched": search,
    "versions": presentation.versions(),
  }


def is_current(row, case, search):
  """Whether a row is what would be measured."""
  return all(row.get(name) == x for name, x in key(case, search).items())


def measure(case, search):
  """Returns the plan of a row as data."""
  where = topology.make_topology(case.slice)
  config = case.make_config()
  if search:
    found = suggest.suggest(config, where)
    row = presentation.to_dict(found.plan, searched=True)
    return {**row, "overrides": found.overrides}
  plan = planner.make_plan(jobs.make_job(config, where), with_loss=False)
  return {**presentation.to_dict(plan), "overrides": case.overrides()}


def percent(numbers):
  if numbers is None:
    return "-"
  return " to ".join(f"{100 * number:.0f} %" for number in numbers)


def choice(overrides):
  """Returns what of a row's choice is worth a word."""
  fields = dict(change.split("=") for change in overrides)
  remats = {v for k, v in fields.items() if k.endswith(".remat")}
  words = [f"fsdp {fields['mesh.fsdp']}"]
  words.append("remat " + " and ".join(sorted(remats)))
  if fields.get("model_overrides.image.scan") == "true":
    words.append("scan")
  if fields.get("micro_batches", "1") != "1":
    words.append(f"micro-batches {fields['micro_batches']}")
  return ", ".join(words)


def markdown(rows):
  """Returns the rows as a table."""
  lines = [
    "| model | batch | slice | a chip | config | fits | peak, GiB | of chip "
    "| FLOPs / analytic | step, s | utilisation |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    peak, available = row["peak_bytes"], row["available_bytes"]
    ratio = row["flops_ratio"]
    times = row["step_seconds"]
    size = "- | -"
    if peak is not None:
      size = f"{peak / GIB:.2f} | {100 * peak / available:.0f} %"
    lines.append(
      f"| {row['model']} | {row['batch_size']:,} | {row['topology']} "
      f"| {row['batch_size'] // row['chips']} | {choice(row['overrides'])} "
      f"| {'yes' if row['fits'] else 'no'} | {size} "
      f"| {'-' if ratio is None else f'{ratio:.3f}'} "
      f"| {'-' if times is None else '{:.3g} to {:.3g}'.format(*times)} "
      f"| {percent(row['utilisation'])} |"
    )
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="names that contain this")
  parser.add_argument("--search", action="store_true")
  parser.add_argument("--json", type=pathlib.Path, required=True)
  parser.add_argument("--markdown", type=pathlib.Path)
  args = parser.parse_args()

  logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
  known = json.loads(args.json.read_text()) if args.json.exists() else {}
  for case in CASES:
    if args.only not in case.name:
      continue
    if not is_current(known.get(case.name, {}), case, args.search):
      logging.info("Compiling %s", case.name)
      found = measure(case, args.search)
      known[case.name] = {**found, **key(case, args.search)}
      args.json.write_text(json.dumps(known, indent=1) + "\n")
    logging.info("%s", markdown([known[case.name]]).splitlines()[-1])
  rows = [
    known[case.name]
    for case in CASES
    if is_current(known.get(case.name, {}), case, args.search)
  ]
  if args.markdown:
    args.markdown.write_text(markdown(rows))
  print(markdown(rows), end="")


if __name__ == "__main__":
  main()
