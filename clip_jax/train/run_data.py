"""Opens a run's data: to train on, and the part that is held out of them."""

import json
from collections.abc import Callable

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.data import mixture, sources
from clip_jax.data.sources import views
from clip_jax.evals import prompts

OpenSource = Callable[[str], sources.Source]


def open_training(
  data: config_lib.Data, open_source: OpenSource
) -> sources.Source:
  """Returns the training data, without what is held out of each address."""
  if (weights := mixture.parse(data.train)) is None:
    if data.temperature:
      raise errors.UserError(
        f"data.temperature={data.temperature:g} weighs several sources, but "
        "data.train is one address; leave it at 0, or give several."
      )
    return _captioned(_part(data.train, "train", data, open_source), data)
  opened = {x: _part(x, "train", data, open_source) for x in weights}
  for each, source in opened.items():
    if not len(source):
      raise errors.UserError(f"data.train: {each} holds no records.")
  numbers = list(weights.values())
  if data.temperature:
    records = [len(source) for source in opened.values()]
    numbers = mixture.tempered(numbers, records, data.temperature)
  return mixture.Mixture(
    [
      mixture.Part(each, _captioned(source, data), weight)
      for (each, source), weight in zip(opened.items(), numbers, strict=True)
    ]
  )


def open_shown(
  shown: str, data: config_lib.Data, open_source: OpenSource
) -> sources.Source:
  """Returns the data of an evaluation or of the report.

  Of several training addresses, what is held out of each comes one after the
  other, whatever their weights.

  Args:
    shown: the field of the config: a DATA address, or `config.HELD_OUT`.
    data: the training data.
    open_source: from an address to its source.
  """
  if shown != config_lib.HELD_OUT:
    return open_source(shown)
  _check_share(data, shown)
  if (weights := mixture.parse(data.train)) is None:
    return _part(data.train, shown, data, open_source)
  return mixture.Mixture(
    [
      mixture.Part(
        sources.split_address(each, shown, data.held_out),
        _part(each, shown, data, open_source),
        weight=1,
      )
      for each in weights
    ]
  )


def address(data: config_lib.Data, shown: str) -> str:
  """Returns the DATA address, or that of a mixture, for `open_shown`'s field.

  Args:
    data: the training data.
    shown: the field of the config.
  """
  if shown != config_lib.HELD_OUT:
    return shown
  _check_share(data, shown)
  if (weights := mixture.parse(data.train)) is None:
    return sources.split_address(data.train, shown, data.held_out)
  parts = (sources.split_address(x, shown, data.held_out) for x in weights)
  return json.dumps(dict.fromkeys(parts, 1))


def _check_share(data: config_lib.Data, shown: str) -> None:
  if not data.held_out:
    raise errors.UserError(
      f"data={shown!r} is what data.held_out keeps from training, but this "
      "is 0; set it to a share such as 0.2, or give a DATA address."
    )


def _part(
  each: str, split: str, data: config_lib.Data, open_source: OpenSource
) -> sources.Source:
  """Opens one of the training addresses, without what is not of `split`."""
  if not data.held_out:
    return open_source(each)
  # Raises where the address names a split already.
  sources.split_address(each, split, data.held_out)
  source = open_source(each)
  try:
    return views.part(source, split, held_out=data.held_out)
  except errors.UserError as error:
    raise errors.UserError(f"{each}: {error}") from None


def _captioned(source: sources.Source, data: config_lib.Data) -> sources.Source:
  """Returns a source with the captions of the config's template, if any."""
  if not data.template:
    return source
  template = prompts.parse_template(data.template)
  return views.Captioned(source, template) if source.class_names else source
