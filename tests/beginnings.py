"""What `loop.train` does with a config before it makes a run."""

import dataclasses

from clip_jax.train import origins as origins_lib


def begin(config, workdir):
  """Returns the settled config, and the models that its run begins with."""
  init, stored, origins = origins_lib.begin(
    config.init, workdir, model=config.model
  )
  settled = origins_lib.settle(config, stored, origins)
  return dataclasses.replace(settled, init=init), origins
