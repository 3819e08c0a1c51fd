"""A small config, the devices of the tests, and the command."""

import contextlib
import io

import pytest

from clip_jax import cli
from clip_jax import config as config_lib
from clip_jax.plan import topology

CONFIG = """
from clip_jax import config as config_lib

def get_config():
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides.image = {"width": 24, "depth": 2, "heads": 3}
  config.model_overrides.text = {
    "width": 16, "depth": 1, "heads": 2, "vocab_size": 49408}
  config.model_overrides.embed_dim = 20
  config.batch_size = 32
  config.epochs = 3
  config.precision = "float32"
  config.optim.warmup_steps = 2
  return config
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("plan") / "config.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture(scope="module")
def config(file):
  return config_lib.load(file, ["data.train=nowhere"])


@pytest.fixture(scope="module")
def local():
  return topology.make_topology("local")


def _command(*arguments):
  """Runs `clip-jax plan` and returns its exit code and what it prints."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    code = cli.run(["plan", *map(str, arguments)])
  return code, stdout.getvalue()


@pytest.fixture
def command():
  return _command
