"""The verb `doctor`: checks devices, data and learning before a run."""

import argparse
import dataclasses
import textwrap

from clip_jax import config as config_lib
from clip_jax.cli import verb
from clip_jax.doctor import examination, finding


def doctor(arguments: argparse.Namespace) -> verb.Answer:
  """Checks the machine and, given a config, its data and its learning."""
  if arguments.config is None:
    findings = examination.of_machine()
  else:
    config = config_lib.load(arguments.config, arguments.overrides)
    findings = examination.of_config(config, steps=arguments.steps)
  verdict = finding.worst(findings)
  payload = {
    "verdict": verdict,
    "findings": [dataclasses.asdict(each) for each in findings],
  }
  text = "\n".join(_paragraph(f.verdict, f.check, f.message) for f in findings)
  wrong = [f.check for f in findings if f.verdict == finding.PROBLEM]
  problem = f"Problems were found: {', '.join(wrong)}." if wrong else ""
  return verb.Answer(payload, text, problem=problem)


def _paragraph(verdict: str, check: str, message: str) -> str:
  first = f"{verdict:8} {check}: "
  return textwrap.fill(
    message, 79, initial_indent=first, subsequent_indent=" " * 9
  )
