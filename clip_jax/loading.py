"""The one way from MODEL, whatever holds one, to a `Clip`."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from clip_jax import convert, embedder, errors, inference, sharding
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import engine
from clip_jax.convert.formats import workdir
from clip_jax.models import clip, variants


def load(
  model: str | os.PathLike,
  *,
  step: int | None = None,
  source_format: str | None = None,
  activation: str | None = None,
) -> inference.Clip:
  """Returns the model that `model` names, on all devices of this machine.

  Args:
    model: a workdir of `clip-jax train`; a file or directory in any format
      that `convert` reads, of one tower too; or "hf-hub:ORG/NAME[@REVISION]".
    step: of a workdir, the checkpoint to take; None takes the newest good one.
    source_format: a name in `convert.FORMATS`; None finds it out.
    activation: of the towers, for checkpoints that do not say it.

  Raises:
    UserError: there is no such model or no such checkpoint, or none is good.
    AmbiguousError: the checkpoint has several meanings.
  """
  if not isinstance(model, str | os.PathLike):
    raise errors.UserError(
      "A model is named by a path or by hf-hub:ORG/NAME, got "
      f"{type(model).__name__}."
    )
  path = pathlib.Path(model).expanduser()
  if source_format in (None, workdir.NAME) and workdir.recognise(path):
    return _load_workdir(path, step)
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
  return assemble(
    variants.create_model(
      engine.completed(found.spec), execution=found.execution
    ),
    found.variables(),
    spec=found.spec,
    mesh=sharding.local_mesh(),
    # Of the Hub, with the commit.
    path=found.source.get("address") or str(path.resolve()),
    files=found.files,
  )


def _load_workdir(path: pathlib.Path, step: int | None) -> inference.Clip:
  saved = workdir_lib.load_model(path, step=step)
  module, variables = run_model.for_use(
    run_model.make(saved.config), saved.variables
  )
  return assemble(
    module,
    variables,
    spec=saved.spec,
    mesh=sharding.local_mesh(),
    path=str(path.resolve()),
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
    module: of `variants.create_model`.
    variables: as `module.init` makes them; repeated on every device of `mesh`,
      or laid on the first one.
    spec: of `variants.spec`, or of one tower; says how to tokenize and
      preprocess.
    mesh: devices that share each batch; None is the one of the variables.
    path: where the model came from.
    step: number of updates it was trained for, if anything says it.
    files: of the tokenizer by their names, if it has any.
  """
  tokenizer = preprocess = None
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
