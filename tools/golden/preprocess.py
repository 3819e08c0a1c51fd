"""Golden hashes of preprocessed images, by the libraries that define them.

    python tools/golden/preprocess.py FAMILY…

writes each family's hashes into tests/golden/preprocess.json. It needs
torchvision, open_clip_torch, timm, transformers or tensorflow, whichever the
family is defined by. torchvision's CUDA build beside a CPU build of torch needs
its missing operators declared first:

    import torch
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(name + "(Tensor a, Tensor b, float c) -> Tensor")
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys

import numpy as np
from PIL import Image

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden/preprocess.json"
IMAGE_SIZE = 56
COUNT = 200

MODES = ("RGB", "RGB", "L", "P", "P+alpha", "LA", "RGBA", "CMYK", "1", "I;16")
# (width, height), a few with each margin modulo 4, either way up; strips.
SIZES = (
  (56, 56),
  (57, 56),
  (56, 58),
  (59, 56),
  (56, 59),
  (227, 224),
  (224, 227),
  (63, 60),
  (255, 64),
  (1, 1),
  (1, 47),
  (61, 1),
  (2, 19),
  (3, 97),
  (120, 4),
  (112, 112),
  (28, 28),
)


def odd_images() -> list[tuple[str, Image.Image]]:
  """Returns names and images, the same on every machine.

  Nothing here depends on a codec or a quantizer, and RandomState's streams are
  frozen.
  """
  images = []
  for i in range(COUNT):
    rng = np.random.RandomState(i)
    # 10 modes and 17 sizes: every pair once in 170; the rest are random sizes.
    mode = MODES[i % len(MODES)]
    size = SIZES[i % len(SIZES)]
    if i >= len(MODES) * len(SIZES):
      size = tuple(rng.randint(1, 300, 2).tolist())
    images.append((f"{i} {mode} {size[0]}x{size[1]}", _draw(mode, size, rng)))
  return images


def _draw(mode, size, rng):
  """Blocks of colour under noise: smooth parts, edges and single pixels."""
  w, h = size
  channels = {"RGB": 3, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 1)
  blocks = rng.randint(0, 256, (h // 9 + 1, w // 9 + 1, channels))
  pixels = np.kron(blocks, np.ones((9, 9, 1), int))[:h, :w]
  noise = rng.randint(0, 256, (h, w, channels))
  pixels = np.where(rng.rand(h, w, 1) < 0.2, noise, pixels).astype(np.uint8)
  if mode == "I;16":
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  if mode == "1":
    return Image.fromarray(pixels[..., 0] > 127)
  if channels == 1:
    image = Image.fromarray(pixels[..., 0])
    if mode.startswith("P"):
      image.putpalette(rng.randint(0, 256, 768).astype(np.uint8).tobytes())
      if mode == "P+alpha":
        image.info["transparency"] = (
          rng.randint(0, 256, 256).astype(np.uint8).tobytes()
        )
    return image
  bands = [Image.fromarray(pixels[..., c]) for c in range(channels)]
  return Image.merge(mode, bands)


def undo_departures(image: Image.Image) -> Image.Image:
  """Returns what the libraries are given: they clip 16 bits, we scale them."""
  if image.mode == "I;16":
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
  return image


def _torchvision():
  from torchvision import transforms

  steps = transforms.Compose(
    [
      transforms.Resize(
        IMAGE_SIZE, interpolation=transforms.InterpolationMode.BICUBIC
      ),
      transforms.CenterCrop(IMAGE_SIZE),
    ]
  )
  return lambda image: np.asarray(steps(image).convert("RGB"))


def _open_clip(**options):
  from open_clip import transform

  steps = transform.image_transform(
    IMAGE_SIZE, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), **options
  )
  return lambda image: _levels(steps(image).numpy())


def _timm(**options):
  """timm converts with its data set's reader, before the transform."""
  from timm.data import transforms_factory

  steps = transforms_factory.transforms_imagenet_eval(
    IMAGE_SIZE, normalize=False, **options
  )
  return lambda image: np.moveaxis(steps(image.convert("RGB")).numpy(), 0, -1)


def _transformers(name, **options):
  """The Pillow backend; the other one differs by rounding."""
  import transformers

  module = transformers.models
  for part in name.split(".")[:-1]:
    module = getattr(module, part)
  processor = getattr(module, name.split(".")[-1])(
    do_rescale=False, do_normalize=False, **options
  )
  return lambda image: np.moveaxis(
    np.asarray(processor(image)["pixel_values"][0]), 0, -1
  )


def _tensorflow():
  """big_vision's `resize`: interpolate, clip, and cast, which truncates."""
  import tensorflow as tf

  def resize(image):
    pixels = tf.constant(np.asarray(image.convert("RGB")))
    resized = tf.image.resize(
      pixels, (IMAGE_SIZE, IMAGE_SIZE), method="bilinear", antialias=False
    )
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()

  return resize


def _levels(scaled):
  return np.moveaxis(np.round(scaled * 255).astype(np.uint8), 0, -1)


SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
# Family: fields of `Preprocess`, what makes the reference, its packages.
FAMILIES = {
  "openai": ({}, _torchvision, ("torchvision",)),
  "open_clip shortest": (
    {"interpolation": "bilinear"},
    lambda: _open_clip(interpolation="bilinear"),
    ("open_clip_torch", "torchvision"),
  ),
  "open_clip squash": (
    {"resize": "squash"},
    lambda: _open_clip(resize_mode="squash"),
    ("open_clip_torch", "torchvision"),
  ),
  "open_clip longest": (
    {"resize": "longest"},
    lambda: _open_clip(resize_mode="longest"),
    ("open_clip_torch", "torchvision"),
  ),
  "open_clip longest fill": (
    {"resize": "longest", "fill": 114, "interpolation": "bilinear"},
    lambda: _open_clip(
      resize_mode="longest", fill_color=114, interpolation="bilinear"
    ),
    ("open_clip_torch", "torchvision"),
  ),
  "timm 0.9": (
    {"crop_fraction": 0.9, "convert_rgb": "before"},
    lambda: _timm(crop_pct=0.9, interpolation="bicubic"),
    ("timm", "torchvision"),
  ),
  "timm 0.875 squash": (
    {"crop_fraction": 0.875, "convert_rgb": "before", "resize": "squash"},
    lambda: _timm(crop_pct=0.875, interpolation="bicubic", crop_mode="squash"),
    ("timm", "torchvision"),
  ),
  "huggingface clip": (
    {"convert_rgb": "before", "crop_rounding": "floor", "alpha": "white"},
    lambda: _transformers(
      "clip.image_processing_pil_clip.CLIPImageProcessorPil",
      size={"shortest_edge": IMAGE_SIZE},
      crop_size=SQUARE,
    ),
    ("transformers",),
  ),
  "huggingface siglip": (
    {"convert_rgb": "before", "resize": "squash", "alpha": "white"},
    lambda: _transformers(
      "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
      size=SQUARE,
    ),
    ("transformers",),
  ),
  "huggingface siglip2": (
    {
      "convert_rgb": "before",
      "resize": "squash",
      "interpolation": "bilinear",
      "alpha": "white",
    },
    lambda: _transformers(
      "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
      size=SQUARE,
      resample=2,
    ),
    ("transformers",),
  ),
  "big_vision": (
    {
      "convert_rgb": "before",
      "resize": "squash",
      "interpolation": "bilinear",
      "antialias": False,
    },
    _tensorflow,
    ("tensorflow_cpu",),
  ),
}


def digest(array: np.ndarray) -> str:
  """Returns the first 12 hexadecimal digits of the SHA-256 of an array."""
  assert array.dtype == np.uint8, array.dtype
  about = repr(array.shape).encode()
  return hashlib.sha256(about + array.tobytes()).hexdigest()[:12]


def source_digest(image: Image.Image) -> str:
  """Returns the digest of what was drawn, to tell that it is the same."""
  about = repr((image.mode, image.size, image.getpalette())).encode()
  about += image.info.get("transparency", b"")
  return hashlib.sha256(about + image.tobytes()).hexdigest()[:12]


def main(names):
  golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
  images = odd_images()
  golden["image_size"] = IMAGE_SIZE
  golden["sources"] = " ".join(source_digest(image) for _, image in images)
  families = golden.setdefault("families", {})
  for name in names or FAMILIES:
    _, make_reference, packages = FAMILIES[name]
    reference = make_reference()
    digests = []
    for _, image in images:
      try:
        digests.append(digest(reference(undo_departures(image))))
      except ValueError:  # A side of no pixels.
        digests.append("refused")
    versions = [
      f"{package} {importlib.metadata.version(package)}"
      for package in (*packages, "pillow")
    ]
    families[name] = {
      "made_by": ", ".join(versions),
      "results": " ".join(digests),
    }
    print(name, digests.count("refused"), "refused")
  GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main(sys.argv[1:])
