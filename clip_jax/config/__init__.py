"""Configs: the schema of a run, config files, overrides and JSON.

A config file is Python with a function `get_config()`, which takes
`default_config()`, a locked `ml_collections.ConfigDict`, and changes some of
its fields. `load` reads such a file, applies overrides and returns a `Config`:
checked, typed and frozen.
"""

from clip_jax.config.checks import check
from clip_jax.config.config_files import (
  differences,
  from_json,
  load,
  to_json,
  with_overrides,
)
from clip_jax.config.knobs import MOST_STEPS
from clip_jax.config.mixtures import mixture
from clip_jax.config.overrides import apply_override
from clip_jax.config.schema import (
  EVAL_SCHEMA,
  HELD_OUT,
  SCHEMA,
  Augment,
  Config,
  Data,
  Evaluation,
  Field,
  Init,
  Loss,
  Mesh,
  Objective,
  Optim,
  default_config,
)

__all__ = [
  "EVAL_SCHEMA",
  "HELD_OUT",
  "MOST_STEPS",
  "SCHEMA",
  "Augment",
  "Config",
  "Data",
  "Evaluation",
  "Field",
  "Init",
  "Loss",
  "Mesh",
  "Objective",
  "Optim",
  "apply_override",
  "check",
  "default_config",
  "differences",
  "from_json",
  "load",
  "mixture",
  "to_json",
  "with_overrides",
]
