"""Everything a run needs: data, devices, model, optimizer."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

from clip_jax import config as config_lib
from clip_jax import embedder, errors, inference, inputs, sharding, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.checkpoints import state as state_lib
from clip_jax.data import account, alike, mixture, pipeline, sources
from clip_jax.evals import ridge, tasks
from clip_jax.models import freezing, variants
from clip_jax.train import origins as origins_lib
from clip_jax.train import program as program_lib
from clip_jax.train import run_data, text_layout

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything a run needs, built once from its config.

  Attributes:
    program: mesh, model and optimizer, on all devices.
    source: the source of the training pairs.
    evaluations: the evaluations of `config.evals`, by name.
    report: the source of `config.report`; None if there is none.
    preprocess: turns images into arrays.
    tokenizer: turns texts into ids.
    layout: the layout of a batch's captions in memory.
    encoder: the compiled embedding functions.
  """

  program: program_lib.Program
  source: sources.Source
  evaluations: dict[str, tasks.Evaluation | ridge.FewShot]
  report: sources.Source | None
  preprocess: preprocess_lib.Preprocess
  tokenizer: tokenizer_lib.Tokenizer
  layout: text_layout.TextLayout
  encoder: embedder.Embedder

  @property
  def total_steps(self) -> int:
    """The number of updates of the whole run, which is known with the data."""
    assert self.program.total_steps is not None
    return self.program.total_steps

  @property
  def name(self) -> str:
    """The name of the model, or of the checkpoints with which it began."""
    if self.program.config.model != variants.FROM_INIT:
      return self.program.config.model
    return " and ".join(self.began_with)

  @property
  def began_with(self) -> list[str]:
    """The addresses of the checkpoints with which the run began."""
    init = self.program.config.init
    return list(filter(None, (getattr(init, x) for x in origins_lib.PARTS)))

  @property
  def report_data(self) -> str:
    """The DATA address of what the report shows; empty if there is none."""
    config = self.program.config
    return run_data.address(config.data, config.report)

  def announce(self) -> None:
    """Logs a summary of the run, before the first compilation starts."""
    program, config = self.program, self.program.config
    devices = program.mesh.devices.flatten()
    count = f"{variants.parameter_count(program.model):,} parameters"
    if frozen := config.optim.frozen:
      params = variants.abstract_variables(program.model)["params"]
      count += f" ({freezing.trained_count(params, frozen):,} of them trained)"
    _LOGGER.info(
      "%s: %s, %s, %s of %s on %d x %s",
      self.name,
      count,
      terminal.counted(len(self.source), "record"),
      terminal.counted(self.total_steps, "step"),
      terminal.counted(config.batch_size, "pair"),
      len(devices),
      devices[0].device_kind,
    )
    if isinstance(self.source, mixture.Mixture):
      examples = self.total_steps * config.batch_size
      for sentence in self.source.describe(examples):
        _LOGGER.info("%s", sentence)
    if config.batch_size == 1 and program.model.contrastive:
      _LOGGER.warning(
        "A batch of one pair has no other to tell it from, so nothing is "
        "learned by comparing images and texts; raise batch_size."
      )
    repeats = len(self.source) < config.batch_size
    if repeats and config.loss.duplicates == "ignore":
      _LOGGER.warning(
        "Batches of %d pairs hold some of the %d records more than once, and "
        "each copy is a negative of the others unless loss.duplicates says "
        "otherwise; add data, or lower batch_size.",
        config.batch_size,
        len(self.source),
      )

  def check_data(self) -> None:
    """Logs which parts of the run's data could not be used.

    Raises:
      UserError: more training pairs are lost than the config allows.
    """
    config = self.program.config
    data = config.data
    opened = {data.train: self.source}
    for evaluation in self.evaluations.values():
      opened[evaluation.data] = evaluation.source
      if isinstance(evaluation, ridge.FewShot):
        opened[evaluation.train_data] = evaluation.pool.source
    if self.report is not None:
      opened[self.report_data] = self.report
    parts = {
      part.address: part.source
      for address, source in opened.items()
      for part in mixture.parts_of(source, address)
    }
    told = collections.defaultdict(set)  # Of two parts of the same data: once.
    for address, source in parts.items():
      said = told[sources.without_split(address)]
      said.update(account.tell(source, address, told=said))
    account.check(
      self.source, data.train, max_bad_fraction=data.max_bad_fraction
    )
    if (caption := alike.only_caption(self.source)) is not None:
      looked_at = f"All records of {data.train} that were looked at"
      _LOGGER.warning("%s", alike.note_caption(caption, of=looked_at))

  def going_on(self, position: Mapping[str, Any] | None, step: int) -> "Run":
    """Returns the run with each source of its data where `step` has left it.

    Args:
      position: of `mixture.position`, as a checkpoint holds it, or None.
      step: updates done.
    """
    config = self.program.config
    source = mixture.go_on(
      self.source,
      position,
      address=config.data.train,
      step=step,
      batch_size=config.batch_size,
    )
    return dataclasses.replace(self, source=source)

  def batches(self, start_step: int) -> text_layout.Batches:
    """Returns this process's rows of the batches after `start_step`."""
    config = self.program.config
    rows = sharding.local_rows(
      sharding.batch_sharding(self.program.mesh), config.batch_size
    )
    batches = pipeline.train_batches(
      self.source,
      seed=config.seed,
      batch_size=config.batch_size,
      rows=rows,
      start_step=start_step,
      preprocess=self.preprocess,
      tokenizer=self.tokenizer,
      workers=config.data.workers,
      threads=config.data.threads,
      resize_ratio=config.data.resize_ratio,
      augment=config.augment,
      caption=config.data.caption,
      image_ids="image_ids" in self.program.batch_fields,
    )
    return text_layout.Batches(batches, self.layout, self.program.mesh)

  def place(self, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that a step uses, split over the devices."""
    needed = {name: batch[name] for name in self.program.batch_fields}
    return sharding.place(needed, sharding.batch_sharding(self.program.mesh))

  def as_clip(self, state: state_lib.TrainState) -> inference.Clip:
    """Returns the current model as the object that users work with."""
    return inference.Clip(
      module=self.program.model,
      variables=state.variables,
      tokenizer=self.tokenizer,
      preprocess=self.preprocess,
      encoder=self.encoder,
      step=int(state.step),
      spec=self.program.spec,
    )


def make_run(
  config: config_lib.Config,
  *,
  tokenizer_files: Mapping[str, bytes] | None = None,
) -> Run:
  """Returns the `Run` of a config; opens the data and starts the devices.

  Args:
    config: the checked config, in which a model "from_init" is described.
    tokenizer_files: the tokenizer's files by name, if it needs any.

  Raises:
    UserError: something that the config names does not exist or does not fit.
  """
  # Evaluations and the report may use the same data, which is opened once.
  open_source = functools.cache(sources.open_source)
  data = config.data
  source = run_data.open_training(data, open_source)
  entries = {
    name: config_lib.Evaluation(**entry) for name, entry in config.evals.items()
  }
  evaluations = _open_evaluations(entries, data, open_source)
  report = _open_report(config.report, data, open_source)
  program = program_lib.make_program(config, examples=len(source))
  _check_measurable(
    program.model, evaluations, config.objective.kind, config.report
  )
  tokenizer = tokenizer_lib.make_tokenizer(
    **program.spec["tokenizer"],
    context_length=program.spec["text"]["context_length"],
    contents=tokenizer_files,
  )
  # The tokens of a text's start and end have the largest ids, if they exist.
  inputs.check_ids(tokenizer(["a"]), program.model.text)
  cuts = tokenizer_lib.Cuts("sampled captions")

  def tokenize(texts):
    rows = tokenizer.rows(texts)
    cuts.add(texts, rows.cut)
    return rows.ids

  sample_lengths = functools.partial(
    text_layout.sample_lengths,
    source,
    tower=program.model.text,
    tokenizer=tokenize,
    seed=config.seed,
    caption=data.caption,
    threads=data.threads,
  )
  layout = program.make_layout(sample_lengths)
  cuts.tell(tokenizer.context_length)
  return Run(
    program=program,
    source=source,
    evaluations=evaluations,
    report=report,
    preprocess=preprocess_lib.Preprocess.from_spec(
      program.spec
    ).with_max_pixels(data.max_pixels),
    tokenizer=tokenizer,
    layout=layout,
    encoder=embedder.Embedder(program.model, mesh=program.mesh),
  )


def _check_measurable(model, evaluations, kind, report) -> None:
  """Raises UserError if the run needs embeddings that its model has not."""
  if model.contrastive:
    return
  for name, evaluation in evaluations.items():
    if evaluation.task != "zero_shot":
      raise errors.UserError(
        f"evals.{name}: {evaluation.task} compares embeddings, and a model of "
        f"objective.kind={kind!r} has none that images and texts share; "
        "measure zero_shot on data with classes, or leave it out."
      )
  if report:
    raise errors.UserError(
      f"report={report!r} shows probabilities of embeddings, and a "
      f"model of objective.kind={kind!r} has none; leave it out."
    )


def _open_evaluation(
  entry: config_lib.Evaluation,
  training: config_lib.Data,
  open_source: run_data.OpenSource,
) -> tasks.Evaluation | ridge.FewShot:
  if entry.task == ridge.TASK:
    return _open_few_shot(entry, open_source)
  source = run_data.open_shown(entry.data, training, open_source)
  task = entry.task
  if task == "auto":
    task = "zero_shot" if source.class_names is not None else "retrieval"
  templates = entry.templates
  if entry.data == config_lib.HELD_OUT and task == "zero_shot":
    templates = templates or training.template  # Asked as it was trained.
  return tasks.open_evaluation(
    task,
    run_data.address(training, entry.data),
    labels=entry.labels,
    templates=templates,
    open_source=lambda _: source,
  )


def _open_few_shot(
  entry: config_lib.Evaluation, open_source: run_data.OpenSource
) -> ridge.FewShot:
  if entry.data == config_lib.HELD_OUT:
    raise errors.UserError(
      f"{entry.task} draws examples from one split of its data and tests on "
      f"another; data={entry.data!r} is one split only. Give a DATA address "
      "such as builtin:digits."
    )
  if entry.labels or entry.templates:
    raise errors.UserError(
      f"{entry.task} takes neither labels nor templates, because it uses no "
      "text; leave them out."
    )
  return ridge.open_few_shot(entry.data, open_source=open_source)


def _open_evaluations(
  entries: Mapping[str, config_lib.Evaluation],
  data: config_lib.Data,
  open_source: run_data.OpenSource,
) -> dict[str, tasks.Evaluation | ridge.FewShot]:
  """Opens the evaluations at the start, so that errors are raised now."""
  opened = {}
  for name, entry in entries.items():
    try:
      opened[name] = _open_evaluation(entry, data, open_source)
    except errors.UserError as error:
      raise errors.UserError(f"evals.{name}: {error}") from None
  return opened


def _open_report(
  address: str, data: config_lib.Data, open_source: run_data.OpenSource
) -> sources.Source | None:
  if not address:
    return None
  try:
    return run_data.open_shown(address, data, open_source)
  except errors.UserError as error:
    raise errors.UserError(f"report: {error}") from None
