"""All verbs, in the order in which `clip-jax --help` lists them.

Each group has a module, which holds the verbs' arguments and the functions
that do them: a function calls one part of the library and words its answer.
Everything heavy is imported inside the function that needs it, so that
`--help` and usage errors come at once.
"""

from clip_jax.cli import (
  completion,
  conversion,
  data,
  doctor,
  models,
  plan,
  training,
  use,
)

VERBS = {
  **training.VERBS,
  **plan.VERBS,
  **doctor.VERBS,
  **use.VERBS,
  **conversion.VERBS,
  **models.VERBS,
  **data.VERBS,
  **completion.VERBS,
}
