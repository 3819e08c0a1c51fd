"""What other threads import is real while TensorFlow Datasets is imported."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
  import importlib, sys, threading, types
  from etils.epy import lazy_imports_utils
  from PIL import Image

  found, threads = [], []

  def other_thread():
    import json
    found.append(json)
    # Pillow has such imports in its functions.
    exec("from . import TiffImagePlugin", vars(Image) | {"out": found})
    found.append(importlib.import_module("wave"))

  class Noticed(lazy_imports_utils.LazyModule):
    def __init__(self, *arguments, **named):
      if not threads:  # TFDS imports lazily at this moment.
        threads.append(threading.Thread(target=other_thread))
        threads[0].start()
        threads[0].join()
      super().__init__(*arguments, **named)

  lazy_imports_utils.LazyModule = Noticed
  module = importlib.import_module("clip_jax.data.sources." + sys.argv[1])
  assert len(found) == 2, found
  assert all(type(each) is types.ModuleType for each in found), found
  assert __import__ is sys.modules["builtins"].__import__
  import tensorflow_datasets
  assert callable(tensorflow_datasets.builder)
"""


@pytest.mark.parametrize("module", ["tfds", "tfrecord"])
def test_other_threads_import_what_they_name_meanwhile(module):
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(SCRIPT), module],
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
