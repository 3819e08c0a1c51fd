"""Libraries that are too old, or mixed up, are told in one sentence."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import clip_jax
from clip_jax import versions

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(clip_jax.__file__).parent


def _settings():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


def _install(folder, name, version):
  """Makes a package without content that says it is `name` `version`."""
  (folder / name).mkdir(parents=True)
  (folder / name / "__init__.py").write_text(f"__version__ = '{version}'\n")
  info = folder / f"{name}-{version}.dist-info"
  info.mkdir()
  (info / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
  )
  for module in ("numpy", "sharding"):
    (folder / name / f"{module}.py").write_text(
      "def __getattr__(name):\n  return object\n"
    )


def _run(folder, *arguments):
  path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
  return subprocess.run(
    [sys.executable, *arguments],
    env={**os.environ, "PYTHONPATH": path},
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_oldest_versions_are_those_of_setup_cfg():
  required = _settings()["options"]["install_requires"]
  for name, numbers in versions.REQUIRED.items():
    least = re.search(rf"^{name}>=(.*)$", required, re.MULTILINE)[1]
    assert versions._numbers(least) == numbers


def test_the_extras_that_messages_name_are_there():
  extras = _settings()["options.extras_require"]
  assert {"tpu", "cuda12", "cuda13", "plan", "test"} <= set(extras)
  assert versions.install("plan") == "pip install 'jax-clip[plan]'"
  assert _settings()["metadata"]["name"] == versions.DISTRIBUTION


@pytest.mark.parametrize(
  ("name", "version"), [("jax", "0.7.2"), ("flax", "0.11.2"), ("jax", "0.4.35")]
)
@pytest.mark.parametrize(
  "statement",
  ["clip_jax.load", "import clip_jax.models", "from clip_jax import sharding"],
)
def test_an_import_on_old_libraries_ends_in_one_sentence(
  tmp_path, name, version, statement
):
  _install(tmp_path, name, version)
  if name == "flax":  # The tests' own jax would import the tests' own flax.
    _install(tmp_path, "jax", "0.10.0")
    statement = "clip_jax.load"
  program = f"import clip_jax\n{statement}"
  result = _run(tmp_path, "-c", program)
  last = result.stderr.splitlines()[-1]
  assert result.returncode == 1
  assert "clip_jax needs jax 0.10 and flax 0.12 or later" in last
  assert f"{name} is {version}; install them together" in last
  assert "restart" in last


def test_a_command_on_an_old_jax_prints_one_sentence_alone(tmp_path):
  _install(tmp_path, "jax", "0.7.2")
  result = _run(tmp_path, "-m", "clip_jax", "models", "--json")
  assert result.returncode == 1
  assert result.stdout == ""
  (line,) = result.stderr.splitlines()
  assert line.startswith("Error: clip_jax needs jax 0.10")


def test_an_old_jax_that_was_imported_before_an_upgrade_wants_a_restart(
  monkeypatch,
):
  import jax

  monkeypatch.setattr(jax, "__version__", "0.7.2")
  versions.check.cache_clear()
  with pytest.raises(ImportError, match="restart the runtime") as caught:
    versions.check()
  assert "install -U" not in str(caught.value)


def test_the_other_project_of_this_name_is_told(tmp_path):
  # Links would do, but `__file__` of a link is where it points to.
  shutil.copytree(PACKAGE, tmp_path / "clip_jax")
  (tmp_path / "clip_jax" / "partitions.py").touch()
  for arguments in (
    ("-c", "import clip_jax\nclip_jax.load"),
    ("-m", "clip_jax", "models"),
  ):
    result = _run(tmp_path, *arguments)
    assert result.returncode == 1
    assert "pip uninstall clip-jax jax-clip" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_another_distribution_of_this_name_is_told_by_its_metadata(
  tmp_path, last
):
  _install(tmp_path, "clip_jax", "0.0.2")
  (tmp_path / "clip_jax-0.0.2.dist-info" / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: clip-jax\nVersion: 0.0.2\n"
  )
  init = (tmp_path / "clip_jax" / "__init__.py").read_text()
  shutil.rmtree(tmp_path / "clip_jax")
  shutil.copytree(PACKAGE, tmp_path / "clip_jax")
  if last == "theirs":  # Of ours only the command works still.
    (tmp_path / "clip_jax" / "__init__.py").write_text(init)
  result = _run(tmp_path, "-m", "clip_jax", "models")
  assert result.returncode == 1
  assert "pip uninstall clip-jax jax-clip" in result.stderr
  assert "Traceback" not in result.stderr


def test_a_python_that_is_too_old_is_told_in_one_sentence(tmp_path):
  code = "import sys\nsys.version_info = (3, 10, 13)\nimport clip_jax"
  result = _run(tmp_path, "-c", code)
  last = result.stderr.splitlines()[-1]
  assert "needs Python 3.11 or later, and this is 3.10.13" in last
  assert "uv venv --python 3.12" in last
  oldest = _settings()["options"]["python_requires"]
  assert oldest == ">=" + ".".join(map(str, clip_jax._OLDEST_PYTHON))


@pytest.fixture(autouse=True)
def _forget():
  versions.check.cache_clear()
  yield
  versions.check.cache_clear()
