"""Uploads a model to the HuggingFace Hub, with its card, in any format."""

import dataclasses
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import clip_jax
from clip_jax import convert, errors, terminal
from clip_jax.convert import hub, portable, sameness, weights_file
from clip_jax.results import card as card_lib
from clip_jax.results import repository as repository_lib

_LOGGER = logging.getLogger(__name__)

# The formats that are one file; the others are directories.
_FILES = {"openai": "model.pt", "big-vision": "model.npz"}


@dataclasses.dataclass(frozen=True)
class File:
  """One file of the repository: its name, bytes and sha256."""

  name: str
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Pushed:
  """What was uploaded, and where it is.

  Attributes:
    repository: "ORG/NAME".
    address: the MODEL that loads it.
    url: of its page.
    format: the format of the model there.
    private: whether only its owners see it; None of a dry run.
    commit: its commit on the hub; None of a dry run.
    dry_run: whether nothing was uploaded.
    files: those of the model, and its card.
    warnings: what the format cannot say, and what else the repository holds.
  """

  repository: str
  address: str
  url: str
  format: str
  private: bool | None
  commit: str | None
  dry_run: bool
  files: Sequence[File]
  warnings: Sequence[str]


def push(
  model: str | os.PathLike,
  repository: str,
  *,
  to: str = "clip-jax",
  private: bool = False,
  message: str | None = None,
  license: str = "other",
  reports: Iterable[str | os.PathLike] = (),
  dry_run: bool = False,
  progress: sameness.Progress | None = None,
) -> Pushed:
  """Writes a model in a format of `convert`, and uploads it to the hub.

  Everything is made in a temporary directory first (below $TMPDIR), so that an
  upload is one commit of all files. A page of the repository that was not made
  by `card` stays as it is; other files stay too.

  Args:
    model: any that `loading.load` takes.
    repository: "ORG/NAME"; it is made if it is not there.
    to: one of `names.TARGETS`.
    private: whether nobody else may see it.
    message: of the commit; None for one with the version of clip_jax.
    license: of the model, as the hub writes it.
    reports: results for the card, as of `card.make`.
    dry_run: whether to stop before the upload, without any use of the network.
    progress: called with the number of arrays checked and their total.

  Raises:
    UserError: the format cannot hold the model, or the hub refuses it.
  """
  repository_lib.check_name(repository)
  there = None if dry_run else repository_lib.Repository(repository)
  card = card_lib.make(  # Before the conversion, which takes longer.
    model,
    reports=reports,
    license=license,
    name=repository.partition("/")[2],
    address=f"{hub.PREFIX}{repository}",
    target=to,
  )
  with tempfile.TemporaryDirectory(prefix="clip-jax-push-") as room:
    folder = pathlib.Path(room) / "model"
    warnings = _write(model, folder, to=to, progress=progress)
    card_lib.save(card, folder / repository_lib.README)
    held, commit = None, None
    if there is not None:
      held = there.create(private=private)
      warnings += _keep(held, folder)
    paths = sorted(folder.iterdir())
    digests = portable.digests(paths)
    files = [File(x.name, x.stat().st_size, digests[x.name]) for x in paths]
    if there is not None:
      _LOGGER.info(
        "Uploading %d files (%s) to %s",
        len(files),
        terminal.size(sum(file.bytes for file in files)),
        there.url,
      )
      said = message or f"Model by clip_jax {clip_jax.__version__}"
      commit = there.upload(folder, message=said)
  return Pushed(
    repository=repository,
    address=f"{hub.PREFIX}{repository}",
    url=repository_lib.url(repository),
    format=to,
    private=None if held is None else held.private,
    commit=commit,
    dry_run=dry_run,
    files=files,
    warnings=warnings,
  )


def _write(
  model: str | os.PathLike,
  folder: pathlib.Path,
  *,
  to: str,
  progress: sameness.Progress | None,
) -> list[str]:
  """Writes the model to a new folder; returns what its readers should know."""
  folder.mkdir()
  written = folder / _FILES[to] if to in _FILES else folder
  report = convert.convert(model, written, to=to, progress=progress)
  try:
    convert.open_model(written, options=convert.Options(headers_only=True))
  except errors.AmbiguousError as error:
    lacks = error.problem.replace(str(written), written.name)
    needs = "Whoever loads it must say it by a flag of `clip-jax convert`."
    return [*report.warnings, f"{lacks} {needs}"]
  return report.warnings


def _keep(held: repository_lib.Held, folder: pathlib.Path) -> list[str]:
  """Leaves out a card that would replace somebody's page; returns warnings."""
  warnings = []
  if held.readme is not None and card_lib.MARK not in held.readme:
    (folder / repository_lib.README).unlink()
    warnings.append(
      f"The {repository_lib.README} there was not made by `clip-jax card` and "
      "stays as it is."
    )
  ours = {path.name for path in folder.iterdir()}
  others = {x for x in held.files if x.endswith(tuple(weights_file.SUFFIXES))}
  if stay := sorted(others - ours):
    warnings.append(
      f"Other weights stay in the repository: {', '.join(stay[:5])}. If they "
      "are of no use any more, remove them on its page."
    )
  return warnings
