"""Times retrieval's ranks against the whole matrix of scores.

    python tools/bench/retrieval.py [--images N] [--texts M] [--dims D]
      [--json FILE] [--markdown FILE]

`ours` are the ranks of `clip_jax.evals.retrieval`, both ways, several texts an
image; `recall` besides holds a unit copy of the embeddings.
`brute force` makes all N x M cosines at once, sorts the row of every tenth
query of each way and looks for its first own candidate. Each runs in a process
of its own; memory is the largest resident set less that before the call, which
holds the embeddings. Both must find the same ranks. It runs on Linux.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np
import tables  # Beside this script.

from clip_jax.evals import retrieval

_EVERY = 10  # Queries that brute force sorts.


def made_up(images: int, texts: int, dims: int) -> tuple[np.ndarray, ...]:
  """Returns unit embeddings of images and texts, and each text's image."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(images, dims)).astype(np.float32)
  owner = np.concatenate(
    [np.arange(images), rng.integers(0, images, texts - images)]
  )
  rng.shuffle(owner)
  text = image[owner] + 4 * rng.normal(size=(texts, dims)).astype(np.float32)
  image /= np.linalg.norm(image, axis=1, keepdims=True)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  return image, text, owner


def brute_force(
  image: np.ndarray, text: np.ndarray, owner: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the ranks of every tenth query both ways, by sorting."""
  scores = image @ text.T  # (images, texts)
  texts_of = [np.flatnonzero(owner == i) for i in range(0, len(image), _EVERY)]
  ranks = {}
  for way, rows, own in (
    ("image_to_text", scores[::_EVERY], texts_of),
    ("text_to_image", scores.T[::_EVERY], owner[::_EVERY, None]),
  ):
    places = []
    for row, candidates in zip(rows, own, strict=True):
      order = np.argsort(-row, kind="stable")
      places.append(int(np.flatnonzero(np.isin(order, candidates))[0]))
    ranks[way] = np.array(places)
  return ranks


def measure(kind: str, sizes: tuple[int, int, int]) -> dict:
  """Returns the ranks, seconds and MiB of one way to find them."""
  image, text, owner = made_up(*sizes)
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
  before = _peak_mib()
  start = time.perf_counter()
  if kind == "ours":
    ranks = {
      "image_to_text": retrieval.image_to_text_ranks(image, text, owner),
      "text_to_image": retrieval.text_to_image_ranks(text, image, owner),
    }
    ranks = {way: found[::_EVERY] for way, found in ranks.items()}
  else:
    ranks = brute_force(image, text, owner)
  seconds = time.perf_counter() - start
  return {
    "seconds": seconds,
    "mib": _peak_mib() - before,
    "ranks": {way: found.tolist() for way, found in ranks.items()},
  }


def _peak_mib() -> float:
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _in_a_process(kind: str, sizes: tuple[int, int, int]) -> dict:
  command = [sys.executable, __file__, "--only", kind]
  for name, size in zip(("images", "texts", "dims"), sizes, strict=True):
    command += [f"--{name}", str(size)]
  return json.loads(
    subprocess.run(command, capture_output=True, check=True).stdout
  )


def main() -> None:
  """Compares both and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=20_000)
  parser.add_argument("--texts", type=int, default=100_000)
  parser.add_argument("--dims", type=int, default=512)
  parser.add_argument("--only", choices=("ours", "brute force"))
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  sizes = (arguments.images, arguments.texts, arguments.dims)
  if arguments.only:
    print(json.dumps(measure(arguments.only, sizes)))
    return
  found = {kind: _in_a_process(kind, sizes) for kind in ("ours", "brute force")}
  differ = sum(
    int(a != b)
    for way in ("image_to_text", "text_to_image")
    for a, b in zip(*(one["ranks"][way] for one in found.values()), strict=True)
  )
  looked = sum(map(len, found["ours"]["ranks"].values()))
  rows = "".join(
    f"| {kind} | {one['seconds']:.1f} | {one['mib']:.0f} |\n"
    for kind, one in found.items()
  )
  text = (
    f"{sizes[0]:,} images, {sizes[1]:,} texts, {sizes[2]} dimensions, "
    f"{platform.machine()}; {differ} of {looked} ranks differ.\n\n"
    f"| | s | MiB beyond the embeddings |\n|---|---|---|\n{rows}"
  )
  report = {
    kind: {"seconds": one["seconds"], "mib": one["mib"]}
    for kind, one in found.items()
  }
  tables.write(arguments, {**report, "differ": differ, "looked": looked}, text)


if __name__ == "__main__":
  main()
