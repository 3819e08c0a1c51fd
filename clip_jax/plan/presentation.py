"""Formats a plan, for JSON and as text."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax import config as config_lib
from clip_jax import names, sharding, terminal
from clip_jax import versions as versions_lib
from clip_jax.models import block_chain, variants
from clip_jax.plan import jobs
from clip_jax.plan import planner as planner_lib

_NOTE = (
  "Times, rates and costs are estimates from the compiled program and "
  "published figures; nothing has run on these chips."
)
_PART_NAMES = {
  "parameters": "parameters",
  "batch_statistics": "batch statistics",
  "optimizer": "optimizer",
  "average": "moving average",
  "batch": "batch",
  "rest": "activations, with gradients and temporaries",
}
# Figures that are ranges: their descriptions and number formats.
_STEP_ROWS = {
  "step_seconds": ("step, s", "{:.4g}"),
  "images_per_second": ("images/s", "{:,.0f}"),
  "utilisation": ("utilisation of the peak", "{:.1%}"),
}
_RUN_ROWS = {
  "hours": ("hours", "{:,.3g}"),
  "chip_hours": ("chip-hours", "{:,.4g}"),
  "cost": ("cost", "{:,.4g}"),
}


def to_dict(
  plan: planner_lib.Plan,
  *,
  price_per_chip_hour: float | None = None,
  searched: bool = False,
) -> dict[str, Any]:
  """Returns a plan as a dictionary for JSON; unknown figures are None.

  Args:
    plan: the plan of a step.
    price_per_chip_hour: price in any currency; None leaves the cost out.
    searched: whether the plan is the best that a search has found.
  """
  job, reasons = plan.job, dict(plan.reasons)
  config, chips = job.config, job.mesh.size
  times = plan.step_seconds
  own = {x.name: getattr(plan, x.name) for x in dataclasses.fields(plan)}
  del own["job"]
  ratio = plan.flops_compiled and plan.flops_compiled / plan.flops_analytic
  return {
    "topology": job.target.name,
    "device": job.target.devices[0].device_kind,
    "chips": chips,
    "model": _model_name(config.model, config.init),
    "batch_size": config.batch_size,
    "micro_batches": config.micro_batches,
    "mesh": dict(job.mesh.shape),
    "texts": job.texts,
    "objective": config.objective.kind,
    "loss": {
      "kind": config.loss.kind,
      "method": config.loss.method,
      "takes": job.loss_method,
    },
    **own,
    "flops_ratio": ratio,
    "step_seconds": times,
    "images_per_second": times and [config.batch_size / t for t in times[::-1]],
    "utilisation": utilisation(plan),
    **_run(plan, price_per_chip_hour, reasons),
    "chips_needed": chips_needed(plan),
    "advice": advice(plan, searched=searched),
    "reasons": reasons,
    "versions": versions(),
    "note": _NOTE,
  }


def _model_name(model: str, init: config_lib.Init) -> str:
  """Returns the model's name, or the checkpoint that the run starts from."""
  if model != variants.FROM_INIT:
    return model
  return " + ".join(filter(None, (init.model, init.image, init.text)))


def utilisation(plan: planner_lib.Plan) -> list[float] | None:
  """Returns useful FLOPs over the chips' peak, [low, high].

  Useful FLOPs are the analytic ones, or the compiled ones if they are fewer.
  """
  chip = plan.job.target.chip
  if plan.step_seconds is None or chip is None:
    return None
  useful = min(plan.flops_analytic, plan.flops_compiled or math.inf)
  peak = plan.job.mesh.size * chip.peak_flops
  return [useful / (peak * t) for t in reversed(plan.step_seconds)]


def versions() -> dict[str, str]:
  """Returns the versions of JAX and libtpu."""
  known = {name: versions_lib.found(name) for name in ("jax", "libtpu")}
  return {name: version for name, version in known.items() if version}


def _run(plan, price, reasons) -> dict[str, Any]:
  """Returns the duration and the cost of the whole run."""
  job = plan.job
  steps = job.program.total_steps
  run: dict[str, Any] = {"steps": steps, **dict.fromkeys(_RUN_ROWS)}
  run["price_per_chip_hour"] = price
  if steps is None:
    reasons["hours"] = "epochs of how many examples? Give --examples, or steps"
  elif plan.step_seconds is None:
    reasons["hours"] = reasons.get("step_seconds", "no time is estimated")
  else:
    hours = [steps * t / 3600 for t in plan.step_seconds]
    run["hours"] = hours
    run["chip_hours"] = [job.mesh.size * h for h in hours]
    if price is None:
      reasons["cost"] = "no price was given: --price-per-chip-hour"
    else:
      run["cost"] = [price * h for h in run["chip_hours"]]
  return run


def chips_needed(plan: planner_lib.Plan) -> int | None:
  """Returns a lower bound on the chips needed by a step that does not fit.

  It splits the peak of all chips evenly over more of them. None if the step
  fits, if its peak is not known, or if the batch has fewer pairs than that.
  """
  if plan.fits is not False or not (plan.peak_bytes and plan.available_bytes):
    return None
  devices = plan.job.mesh.size
  chips = math.ceil(devices * plan.peak_bytes / plan.available_bytes)
  chips = max(chips, devices + 1)
  return chips if chips <= plan.job.config.batch_size else None


def advice(plan: planner_lib.Plan, *, searched: bool = False) -> list[str]:
  """Returns changes of a config that may make it fit, as text.

  Args:
    plan: the plan of a step.
    searched: whether the plan is the best that a search has found.
  """
  if plan.fits is not False:
    return []
  more = "more chips"
  if chips := chips_needed(plan):
    more += (
      f" (an estimate: at least {chips:,}, if all of this peak splits evenly)"
    )
  one_pair_each = plan.job.config.batch_size == plan.job.mesh.size
  smaller = "" if one_pair_each else "a smaller batch, or "
  last = f"take {smaller}{more}"
  if searched:
    return [last]
  found = (_split_advice(plan), _remat_advice(plan), _parts_advice(plan))
  return [*filter(None, found), last, "let --suggest search"]


def _split_advice(plan) -> str | None:
  parts = plan.memory
  state = parts["parameters"] + parts["optimizer"]
  fsdp, devices = plan.job.mesh.shape[sharding.FSDP], plan.job.mesh.size
  # The gradients need as much memory as the parameters, at the same time.
  small = state + parts["parameters"] <= plan.available_bytes // 4
  if small or fsdp == devices:
    return None
  return (
    f"parameters and optimizer take {terminal.size(state)} a chip: split "
    f"them with --config.mesh.data=-1 --config.mesh.fsdp={devices}"
  )


def _remat_advice(plan) -> str | None:
  model = plan.job.model
  towers = {part: getattr(model, part) for part in variants.TOWERS}
  policies = {
    part: tower.remat
    for part, tower in towers.items()
    if getattr(tower, "remat", block_chain.NESTED) != block_chain.NESTED
  }
  if set(policies.values()) <= {"full"}:
    return None
  fields = " ".join(
    f"--config.model_overrides.{part}.remat=full" for part in policies
  )
  return f"keep fewer activations: {fields}"


def _parts_advice(plan) -> str | None:
  config = plan.job.config
  pairs = config.batch_size // plan.job.mesh.size
  more = range(config.micro_batches + 1, pairs + 1)
  parts = next((number for number in more if pairs % number == 0), None)
  if parts is None or not jobs.takes_micro_batches(plan.job):
    return None
  return (
    f"let the towers take fewer pairs at a time: --config.micro_batches={parts}"
  )


def _objective(found: dict[str, Any], compared: str) -> str:
  """Returns the objective in words, and how it compares pairs if it does."""
  kind = found["objective"]
  if kind in names.PREDICTIVE_OBJECTIVES:
    return f"Objective: {kind}; no pairs are compared"
  objective = "" if kind == "contrastive" else f" (objective {kind})"
  return f"Loss: {compared}{objective}"


def to_text(plan: planner_lib.Plan, **options: Any) -> str:
  """Returns a plan as text; the options are those of `to_dict`."""
  found = to_dict(plan, **options)
  mesh, loss = found["mesh"], found["loss"]
  chosen = ", taken by auto" if loss["method"] == "auto" else ""
  lines = [
    f"{found['model']}, batch {found['batch_size']:,}, on {found['chips']} x "
    f"{found['device']} ({found['topology']}), mesh data={mesh['data']} "
    f"fsdp={mesh['fsdp']}",
    f"Texts: {found['texts']}",
    _objective(found, f"{loss['kind']}, {loss['takes']}{chosen}"),
    "",
    verdict(found),
    "",
    _memory_table(found),
  ]
  if found["advice"]:
    lines += ["", "What would help:"]
    lines += [f"  - {entry}" for entry in found["advice"]]
  lines += ["", _work_table(found)]
  if found["hours"] is not None:
    header = f"of the whole run, {found['steps']:,} steps (estimates)"
    rows = _between(found, _RUN_ROWS)
    lines += ["", terminal.table((header, ""), rows)]
  if found["collectives"]:
    lines += ["", _exchange_table(found["collectives"])]
  if found["reasons"]:
    lines += ["", "Not known:"]
    lines += [f"  {name}: {why}" for name, why in found["reasons"].items()]
  return "\n".join([*lines, "", found["note"]])


def verdict(found: Mapping[str, Any]) -> str:
  """Returns in words whether what `to_dict` describes fits."""
  peak, available = found["peak_bytes"], found["available_bytes"]
  words = "Not known whether it fits"
  if found["fits"] is not None:
    words = "Fits" if found["fits"] else "Does not fit"
  if peak is not None and available is not None:
    words += (
      f": {terminal.size(peak)} of {terminal.size(available)} a chip "
      f"({100 * peak / available:.0f} %)"
    )
  if found["compiler_message"]:
    words += f".\nThe compiler: {found['compiler_message']}"
  return words


def _memory_table(found) -> str:
  rows = [
    (name, terminal.size(found["memory"][part]))
    for part, name in _PART_NAMES.items()
    if found["memory"][part]
  ]
  if found["memory"]["loss_alone"] is not None:
    alone = terminal.size(found["memory"]["loss_alone"])
    rows.append(("(loss: a compilation by itself, not added)", alone))
  return terminal.table(("memory of a chip, at the peak", "size"), rows)


def _work_table(found) -> str:
  rows = [("FLOPs, analytic", terminal.quantity(found["flops_analytic"]))]
  if found["flops_compiled"] is not None:
    compiled = terminal.quantity(found["flops_compiled"])
    ratio = f"({found['flops_ratio']:.3f} of the analytic)"
    rows.append(("FLOPs, compiled", f"{compiled} {ratio}"))
  rows += _between(found, _STEP_ROWS)
  return terminal.table(("of one step, all chips (estimates)", ""), rows)


def _between(found, names) -> list[tuple[str, str]]:
  """Returns a row for each known range in `names`: (words, "low to high")."""
  rows = []
  for name, (words, form) in names.items():
    if found[name] is not None:
      low, high = (form.format(number) for number in found[name])
      rows.append((words, f"{low} to {high}"))
  return rows


def _exchange_table(found) -> str:
  rows = [
    (
      kind,
      entry["count"],
      terminal.size(entry["bytes"]),
      "-" if entry["seconds"] is None else f"{1e3 * entry['seconds']:.3g}",
    )
    for kind, entry in found.items()
  ]
  header = ("exchanges of a chip", "times", "bytes", "ms, estimated")
  return terminal.table(header, rows)
