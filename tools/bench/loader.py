"""Times decoders of JPEGs, and the loader against bare decoding and resizing.

    python tools/bench/loader.py [--json FILE] [--markdown FILE]

Bare is what any loader must do: decode a JPEG of 500 x 375 pixels, resize it to
a shortest side of 224 with Pillow's bicubic filter and crop; decoded by Pillow,
and by simplejpeg (extra `fast`). Ours does the same for batches of a run (one
thread, no workers), and besides reads the captions and tokenizes them, draws
the crops, counts bad records and joins batches. All of that is on one core and
in processor time, so that other jobs disturb it less. Rounds alternate; a ratio
is the median of those within a round, ours over the other's images a second.

Decoders are timed for three sizes, with the largest difference in levels from
Pillow's pixels, after resizing where they shrink while they decode. With two
cores free, the loader's images a second of wall time with one and two threads,
each on a core of its own, are compared, too.
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
import simplejpeg
import tables  # Beside this script.
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import preprocess, tokenizer
from clip_jax.data import pipeline, sources
from clip_jax.models import variants

WIDTH, HEIGHT, SIZE = 500, 375, 224
FILES, BATCH = 256, 64
# Names of the same files: grain's shuffle takes 0.1 ms for one of a few hundred
# records, 0.006 ms for one of these.
LINKS = 16


def picture(number: int, width: int, height: int) -> bytes:
  """Returns a JPEG as smooth as a photograph."""
  rng = np.random.default_rng(number)
  coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
  noise = rng.normal(0, 6, (height, width, 1))
  pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def write_pairs(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes pictures, and captions beside them."""
  paths = []
  for i in range(FILES):
    path = directory / f"{i:04}.jpg"
    path.write_bytes(picture(i, WIDTH, HEIGHT))
    path.with_suffix(".txt").write_text(f"a photo of thing number {i}")
    paths.append(path)
    for link in range(1, LINKS):
      for suffix in (".jpg", ".txt"):
        other = directory / f"{link:02}_{i:04}{suffix}"
        other.hardlink_to(path.with_suffix(suffix))
  return paths


def by_pillow(data: bytes) -> Image.Image:
  """Decodes by Pillow."""
  image = Image.open(io.BytesIO(data))
  image.load()
  return image


def by_draft(data: bytes) -> Image.Image:
  """Decodes by Pillow at a half, a quarter or an eighth, twice the size."""
  image = Image.open(io.BytesIO(data))
  image.draft("RGB", tuple(2 * SIZE * n // min(image.size) for n in image.size))
  image.load()
  return image


def by_simplejpeg(data: bytes) -> Image.Image:
  """Decodes by simplejpeg."""
  return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))


def resized(image: Image.Image) -> Image.Image:
  """Resizes the shortest side."""
  scale = SIZE / min(image.size)
  return image.resize([round(scale * n) for n in image.size], Image.BICUBIC)


def gapped(image: Image.Image) -> Image.Image:
  """Resizes in two steps, the first without a filter."""
  scale = SIZE / min(image.size)
  size = [round(scale * n) for n in image.size]
  return image.resize(size, Image.BICUBIC, reducing_gap=2.0)


WAYS = {
  "Pillow": (by_pillow, resized),
  "Pillow, `reducing_gap=2`": (by_pillow, gapped),
  "Pillow, `draft()`": (by_draft, resized),
  "simplejpeg": (by_simplejpeg, resized),
}


def decoders(rounds: int) -> tuple[dict, str]:
  """Returns images a second of each way and size, and a table of them."""
  found, lines = {}, []
  for width, height, count in ((500, 375, 16), (1280, 960, 4), (4000, 3000, 1)):
    images = [picture(i, width, height) for i in range(count)]
    whole = np.asarray(resized(by_pillow(images[0]))).astype(int)
    times = {name: ([], []) for name in WAYS}
    for _ in range(rounds):
      for name, (decode, resize) in WAYS.items():
        start = time.process_time()
        decoded = [decode(data) for data in images]
        middle = time.process_time()
        for image in decoded:
          resize(image)
        times[name][0].append((middle - start) / count)
        times[name][1].append((time.process_time() - start) / count)
    for name, (decode, resize) in WAYS.items():
      alone, both = (1 / statistics.median(kind) for kind in times[name])
      gap = abs(np.asarray(resize(decode(images[0]))) - whole).max()
      found[f"{width}x{height} {name}"] = [alone, both, int(gap)]
      lines.append(
        f"| {width} x {height} | {name} | {alone:.0f} | {both:.0f} | {gap} |\n"
      )
  head = (
    "| JPEG | decoder | decoded, images/s | and resized, images/s | levels |\n"
    "|---|---|---|---|---|\n"
  )
  return found, head + "".join(lines)


def bare(paths: list[pathlib.Path], decode) -> float:
  """Returns images a second of decoding, resizing and cropping alone."""
  start = time.process_time()
  for path in paths:
    image = resized(decode(path.read_bytes()))
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
  return len(paths) / (time.process_time() - start)


def loader(
  directory: pathlib.Path, count: int, clock, threads: int = 1
) -> float:
  """Returns images a second of the loader, over `count` batches.

  It runs at the beginning as at the end: what is made ahead cancels out.
  """
  with open_batches(directory, threads) as batches:
    next(batches)
    start = clock()
    for _ in range(count):
      next(batches)
    rate = count * BATCH / (clock() - start)
  wait_for_threads()
  return rate


def wait_for_threads() -> None:
  """Waits for what a closed loader still makes, whose time would count."""
  used = -1.0
  while time.process_time() - used > 0.005:
    used = time.process_time()
    time.sleep(0.05)


def scaling(directory: pathlib.Path, rounds: int) -> list[float]:
  """Returns the loader's rates on two cores over those on one, by round."""
  cores = sorted(os.sched_getaffinity(0))[:2]
  ratios = []
  for _ in range(rounds if len(cores) == 2 else 0):
    rates = []
    for count in (1, 2):
      os.sched_setaffinity(0, cores[:count])  # Of threads that start from here.
      rates.append(loader(directory, 8 * count, time.perf_counter, count))
    ratios.append(rates[1] / rates[0])
  return ratios


def open_batches(directory: pathlib.Path, threads: int) -> pipeline.Batches:
  """Returns a run's batches, made no further ahead than the threads need."""
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
    threads=threads,
    prefetch=threads,
  )


def main() -> None:
  """Measures in turns; prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=9)
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  cores = os.sched_getaffinity(0)
  # All on one core: what the loader does ahead would count for nothing.
  os.sched_setaffinity(0, {min(cores)})
  found = {"pillow": [], "simplejpeg": [], "loader": []}
  with tempfile.TemporaryDirectory() as room:
    directory = pathlib.Path(room)
    paths = write_pairs(directory)
    for i in range(arguments.rounds + 1):
      rates = {
        "pillow": bare(paths, by_pillow),
        "simplejpeg": bare(paths, by_simplejpeg),
        "loader": loader(directory, FILES // BATCH, time.process_time),
      }
      for name, rate in rates.items() if i else ():  # The first fills caches.
        found[name].append(rate)
    os.sched_setaffinity(0, cores)
    on_two = scaling(directory, arguments.rounds)
  os.sched_setaffinity(0, {min(cores)})
  ways, table = decoders(arguments.rounds)
  text = (
    f"{FILES} JPEGs of {WIDTH} x {HEIGHT}, one core, {platform.machine()}, "
    f"{preprocess.decoder()}\n\n"
    "| bare, by | images/s | loader, images/s | ratio | quartiles |\n"
    "|---|---|---|---|---|\n"
  )
  ours = statistics.median(found["loader"])
  for name in ("pillow", "simplejpeg"):
    pairs = zip(found["loader"], found[name], strict=True)
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    text += (
      f"| {name} | {statistics.median(found[name]):.0f} | {ours:.0f} | "
      f"{middle:.3f} | {low:.3f} to {high:.3f} |\n"
    )
  if on_two:
    text += (
      f"\nTwo cores over one: {statistics.median(on_two):.2f}, rounds from "
      f"{min(on_two):.2f} to {max(on_two):.2f}.\n"
    )
  found |= {"two_cores": on_two, "decoders": ways}
  tables.write(arguments, found, f"{text}\n{table}")


if __name__ == "__main__":
  main()
