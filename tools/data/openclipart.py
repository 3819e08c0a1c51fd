"""Makes image-text pairs of drawings: Debian's openclipart-svg, or any SVGs.

  pip install '.[svg]'
  python tools/data/openclipart.py --download --out data/openclipart

The drawings are in the public domain; Debian's package of 25 MB has 7,458 of
them. SOURCE is that package or a directory with SVG files. Writes WebDataset
tars and `openclipart.json`, the account of what was left out and why:

  train-*.tar          the captions of an image are lines: its title, and its
                       title with its keywords
  validation-*.tar     unseen titles, to choose a recipe by; the title alone
  test-*.tar           other unseen titles
  *_keywords-*.tar     the same images, with title and keywords

A title most of whose words are unknown, as in other languages than English, is
no caption; the keywords are one. No title and no series is in two splits; with
`--split-by title`, no title alone, which is easier. Equal input gives equal
files with equal versions of resvg and Pillow.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import io
import json
import pathlib
import queue
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator

import drawings
import svg_files
import titles
from PIL import Image

from clip_jax import errors, terminal
from clip_jax.tokenizer import clip_bpe

ACCOUNT = "openclipart.json"
_SHARD = 2000  # Drawings in a tar.
_JPEG_QUALITY = 92

NO_TITLE = "no title"
SERIES_TITLE = "its title names a series or an artist, or cannot be read"
LINK = "a link to another drawing"
DUPLICATE = "the same picture as another one"
TITLE_TAKEN = "another drawing of a title that is held out"


def read_all(
  files: Iterable[tuple[str, bytes | None]],
  *,
  size: int,
  processes: int,
  seconds: int = 20,
) -> Iterator[tuple[str, drawings.Drawing | str]]:
  """Yields each file's drawing, or why it has none, in the files' order.

  Args:
    files: paths and bytes; None for a link.
    size: side of the pictures, in pixels.
    processes: that read.
    seconds: processor time for a drawing.
  """
  readers: queue.SimpleQueue = queue.SimpleQueue()

  def read(data):
    if data is None:
      return LINK
    reader = readers.get()
    try:
      return reader.read(data)
    except drawings.UnusableError as error:
      return str(error)
    finally:
      readers.put(reader)

  with contextlib.ExitStack() as stack:
    for _ in range(processes):
      readers.put(stack.enter_context(drawings.Reader(size, seconds=seconds)))
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(processes))
    waiting: collections.deque = collections.deque()
    try:
      for path, data in files:
        waiting.append((path, pool.submit(read, data)))
        if len(waiting) > 4 * processes:
          path, future = waiting.popleft()
          yield path, future.result()
      for path, future in waiting:
        yield path, future.result()
    finally:
      for _, future in waiting:
        future.cancel()


def known_words() -> set[str]:
  """Returns the words that captions of the web, mostly English, often have.

  They are those that CLIP's tokenizer does not split.
  """
  end = "</w>"
  return {
    token.removesuffix(end)
    for token in clip_bpe.vocabulary()
    if token.endswith(end)
  }


def choose(
  found: dict[str, drawings.Drawing], held_out: int, *, by: str = "series"
) -> tuple[dict[str, tuple[str, titles.Named]], dict[str, str]]:
  """Returns the splits and names of drawings, and why others are left out.

  Args:
    found: drawings by path.
    held_out: titles in each of the splits that are held out.
    by: what no two splits share, of `titles.SPLIT_BY`.

  Raises:
    UserError: there are too few drawings for that.
  """
  skipped = {}
  names = dict(
    zip(
      found,
      titles.name_all(
        list(found),
        [drawing.words for drawing in found.values()],
        known=known_words(),
      ),
      strict=True,
    )
  )
  seen: dict[bytes, str] = {}
  # Of equal pictures, one with a title of its own is kept.
  for path in sorted(names, key=lambda path: (not names[path].own, path)):
    named = names[path]
    picture = hashlib.sha256(found[path].png).digest()
    if not named.title:
      skipped[path] = SERIES_TITLE if found[path].words.title else NO_TITLE
    elif picture in seen:
      skipped[path] = DUPLICATE
      # What the copy belongs to, the one that is kept belongs to as well.
      kept = names[seen[picture]]
      names[seen[picture]] = titles.Named(
        kept.title, kept.own, kept.keywords, kept.series | named.series
      )
    else:
      seen[picture] = path
      continue
    del names[path]
  wanted = {"validation": held_out, "test": held_out}
  try:
    splits = titles.split(list(names), list(names.values()), wanted, by=by)
  except ValueError as error:
    raise errors.UserError(
      f"{len(names)} drawings with a title are too few to hold out {held_out} "
      f"titles for {error} and to train on others; take fewer by --held-out."
    ) from None
  kept = {}
  for (path, named), name in zip(names.items(), splits, strict=True):
    if name is None:
      skipped[path] = TITLE_TAKEN
    else:
      kept[path] = (name, named)
  return kept, skipped


def encode(png: bytes, suffix: str) -> bytes:
  """Returns a picture in the format of the suffix: png or jpg."""
  if suffix == "png":
    return png
  file = io.BytesIO()
  image = Image.open(io.BytesIO(png))
  image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
  return file.getvalue()


def write(
  out: pathlib.Path,
  found: dict[str, drawings.Drawing],
  kept: dict[str, tuple[str, titles.Named]],
  suffix: str,
) -> dict[str, int]:
  """Writes the tars of all splits; returns their numbers of drawings."""
  order = sorted(kept, key=titles.order_of)
  counts = {}
  for split in dict.fromkeys(sorted(name for name, _ in kept.values())):
    own = [path for path in order if kept[path][0] == split]
    counts[split] = len(own)
    texts = {split: lambda named: named.title}
    if split == "train":
      texts = {split: lambda named: "\n".join(titles.captions(named))}
    else:
      texts[f"{split}_keywords"] = titles.with_keywords
    for name, text in texts.items():
      for start in range(0, len(own), _SHARD):
        shard = out / f"{name}-{start // _SHARD:05d}.tar"
        with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
          for number, path in enumerate(own[start : start + _SHARD], start):
            named, words = kept[path][1], found[path].words
            about = {
              "path": path,
              "title": named.title,
              "keywords": named.keywords,
              "people": words.people,
            }
            key = f"{number:06d}"
            _add(tar, f"{key}.json", json.dumps(about).encode())
            _add(tar, f"{key}.{suffix}", encode(found[path].png, suffix))
            _add(tar, f"{key}.txt", text(named).encode())
  return counts


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  member = tarfile.TarInfo(name)  # Of nobody, at no time.
  member.size, member.mode = len(data), 0o644
  tar.addfile(member, io.BytesIO(data))


def make(
  source: pathlib.Path,
  out: pathlib.Path,
  *,
  size: int = 64,
  suffix: str = "png",
  held_out: int = 144,
  split_by: str = "series",
  processes: int = 2,
) -> dict:
  """Reads `source`, writes `out` and returns the account of it.

  `out` appears complete or not at all.

  Raises:
    UserError: `source` has no drawings, `out` is there already, or what draws
      is not installed.
  """
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise errors.UserError(
      f"{str(out)!r} is there already, and nothing is overwritten; take "
      "another directory or remove it."
    )
  versions = drawings.versions()
  out.parent.mkdir(parents=True, exist_ok=True)
  open_files = (
    svg_files.from_directory if source.is_dir() else svg_files.from_package
  )
  total = sum(1 for _ in open_files(source))
  found, skipped = {}, {}
  reading = read_all(open_files(source), size=size, processes=processes)
  with (
    contextlib.closing(reading),
    terminal.Progress("draw", unit="drawings") as progress,
  ):
    for path, drawing in reading:
      if isinstance(drawing, str):
        skipped[path] = drawing
      else:
        found[path] = drawing
      progress(len(found) + len(skipped), total)
  if not found:
    raise errors.UserError(
      f"{str(source)!r} has no SVG file that can be drawn, of {total}."
    )
  kept, more = choose(found, held_out, by=split_by)
  skipped |= more
  with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as t:
    partial = pathlib.Path(t, "made")
    partial.mkdir()
    counts = write(partial, found, kept, suffix)
    account = {
      "source": source.name,
      "size": size,
      "format": suffix,
      "versions": versions,
      "split_by": split_by,
      "files": total,
      "drawings": counts,
      "left_out": dict(collections.Counter(sorted(skipped.values()))),
      "left_out_paths": dict(sorted(skipped.items())),
    }
    text = json.dumps(account, indent=1, ensure_ascii=True)
    (partial / ACCOUNT).write_text(text + "\n", "utf-8")
    with contextlib.suppress(FileNotFoundError):
      out.rmdir()
    partial.rename(out)
  return account


def _number(least: int, most: int):
  def parse(text):
    fits = text.isdecimal() and len(text) <= len(str(most))
    if not fits or not least <= int(text) <= most:
      raise argparse.ArgumentTypeError(
        f"{text!r} is no number from {least} to {most}"
      )
    return int(text)

  return parse


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line, and does what it says."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "source",
    nargs="?",
    type=pathlib.Path,
    metavar="SOURCE",
    help=f"{svg_files.PACKAGE}_*.deb, or a directory with SVG files",
  )
  source.add_argument(
    "--download",
    action="store_true",
    help=f"fetch the package by `apt-get download {svg_files.PACKAGE}`",
  )
  parser.add_argument(
    "--out", type=pathlib.Path, required=True, metavar="DIR", help="is made"
  )
  parser.add_argument(
    "--size",
    type=_number(8, 2048),
    default=64,
    metavar="PIXELS",
    help="side of the pictures (default 64)",
  )
  parser.add_argument(
    "--format", choices=("png", "jpg"), default="png", help="(default png)"
  )
  parser.add_argument(
    "--held-out",
    type=_number(1, 100_000),
    default=144,
    metavar="TITLES",
    help="unseen titles for validation, and as many for a test (default 144)",
  )
  parser.add_argument(
    "--split-by",
    choices=titles.SPLIT_BY,
    default="series",
    help="what no two splits share (default series); title: drawings of a "
    "series may be in both",
  )
  parser.add_argument(
    "--processes", type=_number(1, 256), default=2, metavar="N"
  )
  parser.add_argument(
    "--json", action="store_true", help="print the account as JSON"
  )
  given = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as folder:
    path = given.source
    if given.download:
      path = svg_files.download(pathlib.Path(folder))
    elif not path.exists():
      raise errors.UserError(f"There is no {str(path)!r}.")
    account = make(
      path,
      given.out,
      size=given.size,
      suffix=given.format,
      held_out=given.held_out,
      split_by=given.split_by,
      processes=given.processes,
    )
  if given.json:
    print(json.dumps(account))
    return
  counts = [*account["drawings"].items()]
  counts += [(f"left out: {x}", n) for x, n in account["left_out"].items()]
  print(terminal.table(("drawings", "number"), counts))
  print(f"Written to {given.out}; {ACCOUNT} there names what was left out.")


if __name__ == "__main__":
  try:
    main()
  except (errors.UserError, OSError) as error:
    sys.exit(f"Error: {error}")
  except KeyboardInterrupt:
    sys.exit(130)
