"""Times using a ViT-B/32 against what people use on a CPU.

    python tools/bench/inference.py [--json FILE] [--markdown FILE]

One checkpoint with random weights is written in HuggingFace's and OpenCLIP's
format. Every library gets it from there and the same inputs, preprocessed
images and tokens; rounds alternate between the libraries, and a figure is the
median of the ratios within a round, theirs over ours: above 1 we are faster.
"Short texts" are captions of 10 to 14 tokens in rows of 77, as a tokenizer
gives them. Loading runs in processes of their own, from the interpreter's start
to the first embedding; the second of ours finds its programs compiled.

transformers, open_clip, ONNX Runtime and OpenVINO are compared, each where it
is installed: `pip install onnx onnxscript onnxruntime openvino`. A stand-in
takes torchvision's place for open_clip where that is not, for none of its
functions is timed. The two runtimes get transformers' model, exported by
`torch.onnx`, which both read; OpenVINO is asked for float32, since it would
take bfloat16 where the processor has it.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import tables  # Beside this script.
import torch
import transformers

import clip_jax
from clip_jax import convert, host_memory
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import torch_zip
from clip_jax.convert.formats import openai
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

NAME = "ViT-B-32"
BATCH = 16
TASKS = ("images", "texts", "short texts")
OURS = """
import sys, numpy as np, clip_jax
clip = clip_jax.load(sys.argv[1])
clip.encode_image([np.zeros((224, 224, 3), np.uint8)])
"""
THEIRS = """
import sys, torch, transformers
model = transformers.CLIPModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
  model.get_image_features(pixel_values=torch.zeros(1, 3, 224, 224))
"""


def write_checkpoints(directory: pathlib.Path) -> None:
  """Writes one random model as `huggingface`, `open-clip` and `clip-jax`."""
  spec = engine.resolve(variants.VARIANTS[NAME])
  model = variants.create_model(spec)
  inputs = variants.abstract_inputs(model)
  zeros = [np.zeros(x.shape, x.dtype) for x in inputs]
  variables = jax.jit(model.init)(jax.random.key(0), *zeros)
  leaves = {
    path: Tensor.from_array(np.asarray(array))
    for path, array in engine.flatten(variables).items()
  }
  portable = convert.Portable(spec, leaves, report_lib.Report("random"))
  torch_zip.write(directory / "model.pt", openai.state_dict(portable))
  for target in ("huggingface", "open-clip", "clip-jax"):
    convert.convert(
      directory / "model.pt",
      directory / target,
      to=target,
      options=convert.Options(activation="quick_gelu"),
    )


def make_inputs(short: bool):
  """Returns normalised images and tokens that end late or early."""
  rng = np.random.default_rng(0)
  images = rng.standard_normal((BATCH, 224, 224, 3), np.float32)
  tokens = rng.integers(1, 49405, (BATCH, 77), dtype=np.int32)
  ends = rng.integers(10, 15, BATCH) if short else np.full(BATCH, 76)
  for row, end in zip(tokens, ends, strict=True):
    row[0], row[end], row[end + 1 :] = 49406, 49407, 0
  return images, tokens


def our_tasks(directory, images, tokens, short_tokens):
  """Returns functions that embed one batch with this project."""
  clip = clip_jax.load(directory / "clip-jax")
  encoder, variables = clip.encoder, clip.variables
  return {
    "images": lambda: encoder.embed_images(variables, images),
    "texts": lambda: encoder.embed_tokens(variables, tokens),
    "short texts": lambda: encoder.embed_tokens(variables, short_tokens),
  }


def transformers_tasks(directory, images, tokens, short_tokens):
  """Returns the same with transformers' CLIPModel."""
  model = transformers.CLIPModel.from_pretrained(
    directory / "huggingface", attn_implementation="sdpa"
  ).eval()
  return _torch_tasks(
    lambda x: model.get_image_features(pixel_values=x),
    lambda x: model.get_text_features(input_ids=x),
    (images, tokens, short_tokens),
  )


def import_open_clip():
  """Returns the library, or None where it is not installed."""
  path = pathlib.Path(__file__).parents[1] / "golden" / "open_clip_models.py"
  module_spec = importlib.util.spec_from_file_location(path.stem, path)
  golden = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(golden)
  try:
    return golden.import_libraries()[0]
  except ImportError:
    return None


def open_clip_tasks(directory, images, tokens, short_tokens):
  """Returns the same with open_clip; None where it cannot be imported."""
  open_clip = import_open_clip()
  if open_clip is None:
    return None
  model = open_clip.create_model(f"local-dir:{directory / 'open-clip'}").eval()
  return _torch_tasks(
    model.encode_image, model.encode_text, (images, tokens, short_tokens)
  )


def export_onnx(directory, images, tokens):
  """Writes both towers as ONNX; False where its packages are missing."""
  if not (_has("onnx") and _has("onnxscript")):
    return False
  model = transformers.CLIPModel.from_pretrained(
    directory / "huggingface", attn_implementation="eager"
  ).eval()

  class Tower(torch.nn.Module):
    def __init__(self, embed):
      super().__init__()
      self.model, self.embed = model, embed

    def forward(self, x):
      embeds = self.embed(x)
      return getattr(embeds, "pooler_output", embeds)

  towers = {
    "images": (model.get_image_features, _pixels(images)),
    "texts": (model.get_text_features, torch.from_numpy(tokens).long()),
  }
  for name, (embed, example) in towers.items():
    torch.onnx.export(
      Tower(embed), (example,), directory / f"{name}.onnx", dynamo=True
    )
  return True


def onnxruntime_tasks(directory, images, tokens, short_tokens):
  """Returns the same with ONNX Runtime."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = torch.get_num_threads()

  def runner(name):
    session = onnxruntime.InferenceSession(
      directory / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
    )
    inputs = session.get_inputs()[0].name
    return lambda x: session.run(None, {inputs: x})

  return _runtime_tasks(runner, images, tokens, short_tokens)


def openvino_tasks(directory, images, tokens, short_tokens):
  """Returns the same with OpenVINO."""
  import openvino

  options = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    "PERFORMANCE_HINT": "LATENCY",
  }

  def runner(name):
    model = openvino.Core().compile_model(
      directory / f"{name}.onnx", "CPU", options
    )
    return lambda x: model([x])

  return _runtime_tasks(runner, images, tokens, short_tokens)


def _runtime_tasks(runner, images, tokens, short_tokens):
  encode_image, encode_text = runner("images"), runner("texts")
  pixels = _pixels(images).numpy()
  ids, short_ids = (x.astype(np.int64) for x in (tokens, short_tokens))
  return {
    "images": lambda: encode_image(pixels),
    "texts": lambda: encode_text(ids),
    "short texts": lambda: encode_text(short_ids),
  }


def _has(package):
  return importlib.util.find_spec(package) is not None


def _pixels(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _torch_tasks(encode_image, encode_text, inputs):
  images, tokens, short_tokens = inputs
  pixels = _pixels(images)
  ids, short_ids = (torch.from_numpy(x).long() for x in (tokens, short_tokens))
  task = torch.inference_mode()
  return {
    "images": task(lambda: encode_image(pixels)),
    "texts": task(lambda: encode_text(ids)),
    "short texts": task(lambda: encode_text(short_ids)),
  }


def seconds(function) -> float:
  """Returns the wall time of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def measure(libraries, task, rounds) -> dict[str, list[float]]:
  """Times a task in all libraries in turns."""
  for tasks in libraries.values():
    tasks[task]()
    tasks[task]()
  times = {name: [] for name in libraries}
  for i in range(rounds):
    order = list(libraries)
    for name in order if i % 2 else reversed(order):
      times[name].append(seconds(libraries[name][task]))
  return times


def start_up(directory: pathlib.Path, rounds: int) -> dict[str, list[float]]:
  """Times processes from their start to the first embedding."""
  cache = {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
  cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  runs = {
    "transformers": (THEIRS, directory / "huggingface", {}),
    "clip_jax, first": (OURS, directory / "clip-jax", {}),
    "clip_jax, compiled before": (OURS, directory / "clip-jax", cache),
  }
  times = {name: [] for name in runs}
  for i in range(rounds + 1):
    for name, (code, path, environment) in runs.items():
      command = [sys.executable, "-c", code, str(path)]
      taken = seconds(
        lambda command=command, environment=environment: subprocess.run(
          command, check=True, env=os.environ | environment
        )
      )
      if i:  # The first round fills caches.
        times[name].append(taken)
  return times


def main() -> None:
  """Measures in turns; prints and writes the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument(
    "--tasks", nargs="+", choices=TASKS, default=TASKS, help="all by default"
  )
  parser.add_argument(
    "--no-loading", action="store_true", help="leave out the times to start"
  )
  tables.add_outputs(parser)
  arguments = parser.parse_args()
  host_memory.keep_freed()  # As `clip-jax embed` does; for all libraries.
  with tempfile.TemporaryDirectory() as room:
    directory = pathlib.Path(room)
    write_checkpoints(directory)
    images, tokens = make_inputs(short=False)
    inputs = (images, tokens, make_inputs(short=True)[1])
    libraries = {
      "clip_jax": our_tasks(directory, *inputs),
      "transformers": transformers_tasks(directory, *inputs),
      "open_clip": open_clip_tasks(directory, *inputs),
    }
    if export_onnx(directory, images, tokens):
      runtimes = {"onnxruntime": onnxruntime_tasks, "openvino": openvino_tasks}
      for name, make_tasks in runtimes.items():
        if _has(name):
          libraries[name] = make_tasks(directory, *inputs)
    libraries = {k: v for k, v in libraries.items() if v is not None}
    found = {
      task: measure(libraries, task, arguments.rounds)
      for task in arguments.tasks
    }
    loading = {}
    if not arguments.no_loading:
      loading = start_up(directory, rounds=3)
  text = markdown(found, loading)
  tables.write(arguments, {"tasks": found, "loading": loading}, text)


def markdown(found, loading) -> str:
  """Returns rates and times as two tables."""
  lines = [
    f"{NAME}, batch {BATCH}, float32, {torch.get_num_threads()} threads",
    "",
    "| task | library | per second | theirs / ours | quartiles |",
    "|---|---|---|---|---|",
  ]
  for task, times in found.items():
    for name, taken in times.items():
      rate = BATCH / statistics.median(taken)
      ratios = [a / b for a, b in zip(taken, times["clip_jax"], strict=True)]
      low, middle, high = statistics.quantiles(ratios, n=4)
      lines.append(
        f"| {task} | {name} | {rate:.1f} | {middle:.2f} "
        f"| {low:.2f} to {high:.2f} |"
      )
  if loading:
    lines += ["", "| from start to first embedding | seconds |", "|---|---|"]
  lines += [
    f"| {name} | {statistics.median(taken):.1f} |"
    for name, taken in loading.items()
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
