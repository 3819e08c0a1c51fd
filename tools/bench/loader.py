"""Times the loader against bare PIL on the same files and one core.

    python tools/bench/loader.py [--json FILE] [--markdown FILE]

PIL decodes a JPEG of 500 x 375 pixels, resizes it to a shortest side of 224
with the bicubic filter and crops: the least that any loader must do. Ours does
the same for batches of a run (one thread, no workers), and besides reads the
captions and tokenizes them, draws the crops, counts bad records and joins
batches. Rounds alternate; a figure is the median of the ratios within a round,
ours over PIL's images a second: at 1 the loader costs nothing.
"""

import argparse
import io
import os
import pathlib
import platform
import statistics
import tempfile
import time

import numpy as np
import tables  # Beside this script.
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import preprocess, tokenizer
from clip_jax.data import pipeline, sources
from clip_jax.models import variants

WIDTH, HEIGHT, SIZE = 500, 375, 224
FILES, BATCH = 256, 64


def write_pairs(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes pictures as smooth as photographs, and captions beside them."""
  rng = np.random.default_rng(0)
  paths = []
  for i in range(FILES):
    coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC)
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    path = directory / f"{i:04}.jpg"
    Image.fromarray(pixels).save(path, quality=90)
    path.with_suffix(".txt").write_text(f"a photo of thing number {i}")
    paths.append(path)
  return paths


def bare_pil(paths: list[pathlib.Path]) -> float:
  """Returns images a second of decoding, resizing and cropping alone."""
  start = time.perf_counter()
  for path in paths:
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    scale = SIZE / min(image.size)
    size = tuple(round(scale * side) for side in image.size)
    image = image.resize(size, Image.BICUBIC)
    left, top = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
  return len(paths) / (time.perf_counter() - start)


def loader(directory: pathlib.Path, count: int) -> float:
  """Returns images a second of the loader, over `count` batches.

  It runs at the beginning as at the end: what is made ahead cancels out.
  """
  with open_batches(directory) as batches:
    next(batches)
    start = time.perf_counter()
    for _ in range(count):
      next(batches)
    return count * BATCH / (time.perf_counter() - start)


def open_batches(directory: pathlib.Path) -> pipeline.Batches:
  """Returns a run's batches, made by one thread and no further ahead."""
  spec = variants.spec(config_lib.default_config().model, {})
  return pipeline.train_batches(
    sources.open_source(f"folder:{directory}"),
    seed=0,
    batch_size=BATCH,
    rows=np.arange(BATCH),
    start_step=0,
    preprocess=preprocess.Preprocess.from_spec(spec),
    tokenizer=tokenizer.make_tokenizer(
      **spec["tokenizer"], context_length=spec["text"]["context_length"]
    ),
    threads=1,
    prefetch=1,
  )


def main() -> None:
  """Measures in turns; prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=9)
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  # Both on one core: what the loader does ahead would count for nothing.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  found = {"pil": [], "loader": []}
  with tempfile.TemporaryDirectory() as room:
    paths = write_pairs(pathlib.Path(room))
    for i in range(arguments.rounds + 1):
      pil = bare_pil(paths)
      ours = loader(pathlib.Path(room), 2 * FILES // BATCH)
      if i:  # The first round fills caches.
        found["pil"].append(pil)
        found["loader"].append(ours)
  ratios = [a / b for a, b in zip(found["loader"], found["pil"], strict=True)]
  low, middle, high = statistics.quantiles(ratios, n=4)
  pil, ours = (statistics.median(found[name]) for name in ("pil", "loader"))
  text = (
    f"{FILES} JPEGs of {WIDTH} x {HEIGHT}, one core, {platform.machine()}\n\n"
    "| PIL alone, images/s | loader, images/s | ratio | quartiles |\n"
    "|---|---|---|---|\n"
    f"| {pil:.0f} | {ours:.0f} | {middle:.3f} | {low:.3f} to {high:.3f} |\n"
  )
  tables.write(arguments, {**found, "ratio": [low, middle, high]}, text)


if __name__ == "__main__":
  main()
