"""The verb that says what is wrong before it costs a week."""

import argparse
import textwrap

from clip_jax.cli import flags, verb

FOUND_PROBLEM = 1


def _add_doctor(parser: flags.Parser) -> None:
  parser.add_argument(
    "--config",
    metavar="FILE",
    help="a file of configs/: look at its data, and learn one batch by heart",
  )
  parser.add_argument(
    "--steps",
    type=flags.count,
    default=None,
    metavar="N",
    help="updates on the one batch",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s [--config FILE [--config.FIELD=VALUE ...] [--steps N]] [--json]"
  )


def _check_doctor(arguments: argparse.Namespace) -> str | None:
  if arguments.config is None and (arguments.overrides or arguments.steps):
    return "--steps and --config.FIELD=VALUE need a --config FILE"
  return None


def doctor(arguments: argparse.Namespace) -> verb.Answer:
  """Looks at the machine, and with a config at its data and its learning."""
  from clip_jax import config as config_lib
  from clip_jax.doctor import examination, finding

  if arguments.config is None:
    findings = examination.of_machine()
  else:
    config = config_lib.load(arguments.config, arguments.overrides)
    findings = examination.of_config(config, steps=arguments.steps)
  verdict = finding.worst(findings)
  payload = {
    "verdict": verdict,
    "findings": [
      {
        "check": f.check,
        "verdict": f.verdict,
        "message": f.message,
        "facts": f.facts,
      }
      for f in findings
    ],
  }
  text = "\n".join(_paragraph(f.verdict, f.check, f.message) for f in findings)
  code = FOUND_PROBLEM if verdict == finding.PROBLEM else 0
  return verb.Answer(payload, text, code=code)


def _paragraph(verdict: str, check: str, message: str) -> str:
  first = f"{verdict:8} {check}: "
  return textwrap.fill(
    message, 79, initial_indent=first, subsequent_indent=" " * 9
  )


VERBS = {
  "doctor": verb.Verb(
    "look at devices, data and learning before a run",
    _add_doctor,
    doctor,
    check=_check_doctor,
    takes_overrides=True,
  ),
}
