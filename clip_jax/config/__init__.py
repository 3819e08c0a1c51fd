"""Configs: the schema of a run, config files, overrides and JSON.

A config is a locked `ml_collections.ConfigDict` made by `default_config`. A
config file is Python with a function `get_config()` that changes what it
needs; `load` reads one, applies overrides and checks the result.
"""

from clip_jax.config.checks import check, evaluation
from clip_jax.config.files import differences, from_json, load, to_json
from clip_jax.config.overrides import apply_override
from clip_jax.config.schema import (
  EVAL_SCHEMA,
  HELD_OUT,
  SCHEMA,
  Field,
  default_config,
)

__all__ = [
  "EVAL_SCHEMA",
  "HELD_OUT",
  "SCHEMA",
  "Field",
  "apply_override",
  "check",
  "default_config",
  "differences",
  "evaluation",
  "from_json",
  "load",
  "to_json",
]
