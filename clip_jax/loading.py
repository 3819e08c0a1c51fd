"""Loads a model of any format as a `Clip`."""

import logging
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from clip_jax import (
  convert,
  embedder,
  errors,
  inference,
  mirrors,
  names,
  sharding,
)
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import engine, hub, opening
from clip_jax.convert.formats import workdir
from clip_jax.models import clip, variants

_LOGGER = logging.getLogger(__name__)


@mirrors.in_errors()
def load(
  model: str | os.PathLike,
  *,
  step: int | None = None,
  source_format: str | None = None,
  activation: str | None = None,
  devices: Sequence[sharding.Device] | None = None,
) -> inference.Clip:
  """Returns the model that `model` names, on all devices of the run.

  Args:
    model: a workdir of `clip-jax train`; a file or directory in any format
      that `convert` reads, also with one tower, also in a bucket ("gs://…",
      "s3://…"); or "hf-hub:ORG/NAME[@REVISION]".
    step: the checkpoint of a workdir to load; None for the newest valid one.
    source_format: a name in `opening.FORMATS`; None recognises the format.
    activation: the towers' activation, for checkpoints that do not say it, or
      say a wrong one. Workdirs and models of `Clip.save` keep their own, which
      is logged.
    devices: those that share each batch, if not all devices of the run.

  Raises:
    UserError: there is no such model or checkpoint, or no valid checkpoint.
    AmbiguousError: the checkpoint has several possible meanings.
  """
  if not isinstance(model, str | os.PathLike):
    raise errors.UserError(
      "A model is named by a path or by hf-hub:ORG/NAME, got "
      f"{type(model).__name__}."
    )
  is_whole = isinstance(step, numbers.Integral) and not isinstance(step, bool)
  if step is not None and not is_whole:
    raise errors.UserError(f"step={step!r:.100} must be a whole number.")
  if source_format is not None:
    opening.find_format(source_format)
  if activation is not None:
    errors.check_known("activation", activation, names.ACTIVATIONS)
  address = os.fspath(model)
  if source_format in (None, workdir.NAME) and not hub.is_address(address):
    loaded = opening.read(
      address,
      lambda path: _load_workdir(path, step, _where(address), devices),
      step=step,
    )
    if loaded is not None:
      _tell_of_activation(address, activation, {})
      return loaded
  if step is not None:
    raise errors.UserError(
      f"{model} is no workdir of `clip-jax train`: it has no steps to choose "
      f"from; leave step={step} out."
    )
  found = convert.open_model(
    model,
    source_format=source_format,
    options=convert.Options(activation=activation),
  )
  _tell_of_activation(address, activation, found.report.inferred)
  return assemble(
    variants.create_model(
      engine.completed(found.spec), execution=found.execution
    ),
    found.variables(),
    spec=found.spec,
    mesh=sharding.shared_mesh(devices),
    # That on the Hub has the commit's hash.
    path=found.source.get("address") or _where(address),
    files=found.files,
  )


def _tell_of_activation(
  address: str, activation: str | None, inferred: Mapping[str, Any]
) -> None:
  """Warns of an activation that was given and not taken."""
  taken = any(
    "activation" in field and entry["source"] == "flag"
    for field, entry in inferred.items()
  )
  if activation is not None and not taken:
    _LOGGER.warning(
      "activation=%r changed nothing: %s says it by itself.",
      activation,
      address,
    )


def _where(address: str) -> str:
  if opening.is_remote(address):
    return address
  return str(pathlib.Path(os.path.expanduser(address)).resolve())


def _load_workdir(
  path: pathlib.Path,
  step: int | None,
  where: str,
  devices: Sequence[sharding.Device] | None,
) -> inference.Clip | None:
  """Returns the model of a workdir; None where `path` is none."""
  if not workdir.recognise(path):
    return None
  saved = workdir_lib.load_model(path, step=step)
  module, variables = run_model.for_use(
    run_model.make(saved.config), saved.variables
  )
  return assemble(
    module,
    variables,
    spec=saved.spec,
    mesh=sharding.shared_mesh(devices),
    path=where,
    step=saved.step,
    files=saved.files,
  )


def assemble(
  module: clip.CLIP,
  variables: Any,
  *,
  spec: dict[str, Any],
  mesh: jax.sharding.Mesh | None = None,
  path: str = "",
  step: int | None = None,
  files: Mapping[str, bytes] | None = None,
) -> inference.Clip:
  """Returns the `Clip` of a module, its variables and its description.

  Args:
    module: a module that `variants.create_model` made.
    variables: variables as `module.init` makes them; replicated on `mesh`, or
      placed on the first device if there is no mesh.
    spec: the model's description, as of `variants.spec`, of one tower or two;
      says how to tokenize and preprocess.
    mesh: devices that share each batch; None for one device.
    path: where the model came from.
    step: number of updates it was trained for; None if unknown.
    files: the tokenizer's files by name, if it has any.
  """
  tokenizer: Any = None
  preprocess: Any = None
  if "text" in spec:
    tokenizer = tokenizer_lib.make_tokenizer(
      **spec["tokenizer"],
      context_length=spec["text"]["context_length"],
      contents=files,
    )
  if "image" in spec:
    preprocess = preprocess_lib.Preprocess.from_spec(spec)
  return inference.Clip(
    module=module,
    variables=sharding.place_everywhere(variables, mesh),
    tokenizer=tokenizer,
    preprocess=preprocess,
    encoder=embedder.Embedder(module, mesh=mesh),
    path=path,
    step=step,
    spec=spec,
    files=files or {},
  )
