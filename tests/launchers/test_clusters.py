"""The files for Slurm, Kubernetes and Docker, and the style of all scripts."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import pytest

import bucket_stand_in
from clip_jax import config as config_lib
from clip_jax.cli import parser
from clip_jax.train import peers, preemption

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ROOT / "tools"
SBATCH = TOOLS / "slurm" / "train.sbatch"
MANIFESTS = sorted((TOOLS / "kubernetes").glob("*.yaml"))
SCRIPTS = [*sorted((TOOLS / "tpu_vm").glob("*.sh")), SBATCH]


def test_scripts_are_bash_and_fit_the_page():
  for path in SCRIPTS:
    subprocess.run(["bash", "-n", path], check=True)
    assert path.name == "library.sh" or path.stat().st_mode & stat.S_IXUSR
    text = path.read_text()
    assert not re.search(r"[ \t]$|\t", text, re.MULTILINE)
    assert re.search(r"^set -\w*uo pipefail|^\. .*library\.sh", text, re.M)


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  program = beside if beside.exists() else shutil.which("shellcheck")
  if program is None:
    pytest.skip("shellcheck is not installed")
  done = subprocess.run(
    # Without the analysis of how data flow, which takes twice as long.
    [program, "--extended-analysis=false", *SCRIPTS],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.fixture
def slurm(tmp_path):
  """Runs the batch script with stand-ins; returns its code and their calls."""
  for name, text in {
    "srun": 'echo "srun $*" >>"$CALLS"; [ -z "$SAVES" ] ||'
    ' mkdir -p "$SAVES/checkpoints/1000"; exit "$CODE"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "clip-jax": "exit 9",
    "python": f'exec {sys.executable} "$@"',
  }.items():
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
  calls = tmp_path / "calls"

  def run(*words, **variables):
    calls.write_text("")
    done = subprocess.run(
      ["bash", SBATCH, *words],
      capture_output=True,
      text=True,
      check=False,
      env=os.environ
      | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SLURM_JOB_ID": "42",
        "SAVES": "",
      }
      | variables,
    )
    return done.returncode, calls.read_text().splitlines(), done.stderr

  return run


def test_slurm_requeues_what_a_restart_mends(slurm, tmp_path):
  words = (str(tmp_path / "work dir"), "--config", "configs/demo.py")
  train = (
    "srun --kill-on-bad-exit=0 clip-jax train --distributed --workdir "
    f"{words[0]} --config configs/demo.py"
  )
  again = "scontrol requeue 42"
  for code in (0, 1, 2, 130):
    assert slurm(*words, CODE=str(code))[:2] == (code, [train])
  for code in (peers.EXIT_CODE, preemption.EXIT_CODE, 137):
    assert slurm(*words, CODE=str(code))[:2] == (0, [train, again])
  # Many restarts are fine, as long as they bring checkpoints.
  (tmp_path / "work dir" / "checkpoints" / "900").mkdir(parents=True)
  options = {"CODE": "75", "SLURM_RESTART_COUNT": "5"}
  code, calls, said = slurm(*words, **options)
  assert (code, calls) == (75, [train]) and "giving up" in said
  assert slurm(*words, SAVES=words[0], **options)[:2] == (0, [train, again])
  code, calls, said = slurm("--config", "configs/demo.py")
  assert code == 2 and not calls and "Usage: sbatch" in said
  code, calls, said = slurm(*words, RESTARTS="many", CODE="75")
  assert code == 2 and not calls and "RESTARTS='many' is no number" in said
  code, calls, said = slurm(*words, CLIP_JAX="/nowhere/clip-jax")
  assert code == 1 and not calls and "set CLIP_JAX" in said


def test_slurm_sees_the_checkpoints_of_a_bucket(slurm, tmp_path):
  """Without them, a run that goes on would be given up after some restarts."""
  (tmp_path / "srun").write_text(
    '#!/bin/bash\necho "srun $*" >>"$CALLS"\nexec python "$SAVE"\n'
  )
  save = tmp_path / "save.py"
  with bucket_stand_in.serve() as store:
    store.objects["data-1"] = {}
    store.put("data-1", "run/checkpoints/900/meta", b"x")
    words = ("gs://data-1/run", "--config", "configs/demo.py")
    options = store.environment | {
      "PYTHONPATH": str(ROOT),
      "SLURM_RESTART_COUNT": "5",
      "SAVE": str(save),
    }
    save.write_text("raise SystemExit(75)\n")
    code, calls, said = slurm(*words, **options)
    assert code == 75 and len(calls) == 1 and "giving up" in said
    save.write_text(
      "from clip_jax.buckets import writing\n"
      "writing.put('gs://data-1/run/checkpoints/1000/meta', b'x')\n"
      "raise SystemExit(75)\n"
    )
    code, calls, said = slurm(*words, **options)
    assert code == 0 and calls[1:] == ["scontrol requeue 42"], said


def test_slurm_starts_a_process_for_each_gpu():
  lines = re.findall(r"^#SBATCH --(.*)$", SBATCH.read_text(), re.MULTILINE)
  options = {
    name: value for name, _, value in (x.partition("=") for x in lines)
  }
  # JAX takes the GPU of the process's number on its node.
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert options["signal"].startswith("TERM@") and "requeue" in options


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_a_jobset_that_trains(path):
  yaml = pytest.importorskip("yaml")
  jobset = yaml.safe_load(path.read_text())
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] and not spec["backoffLimit"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  # What a restart mends restarts all; the rest ends the job.
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert pod["restartPolicy"] == "Never"  # A condition of podFailurePolicy.
  codes = rule["onExitCodes"]
  assert codes["containerName"] == container["name"]
  assert not {peers.EXIT_CODE, preemption.EXIT_CODE} & set(codes["values"])
  assert {peers.FAILED, 2} == set(codes["values"])
  (rule,) = jobset["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  # JobSet refuses another one (pkg/webhooks/jobset_webhook.go, ruleNameFmt).
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  for name in (jobset["metadata"]["name"], job["name"]):  # Parts of DNS names.
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
  mounts = {mount["name"] for mount in container["volumeMounts"]}
  assert mounts == {volume["name"] for volume in pod["volumes"]}
  words = [word.replace("$(PROCESS)", "1") for word in container["args"]]
  arguments = parser.parse(words)
  config_lib.load(ROOT / arguments.config, arguments.overrides)
  if arguments.coordinator:
    assert arguments.processes == spec["completions"]
    names = jobset["metadata"]["name"], job["name"]
    host = f"{names[0]}-{names[1]}-0-0.{names[0]}"
    assert arguments.coordinator.rpartition(":")[0] == host
  else:
    assert arguments.distributed


def _dockerfile():
  """The instructions, with lines joined and without comments."""
  text = (TOOLS / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
  lines = [line for line in text.splitlines() if line and line[0] != "#"]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_dockerfile_keeps_the_rules():
  steps = _dockerfile()
  names = [name for name, _ in steps]
  values = dict(steps)
  assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", values["FROM"])  # Not `latest`.
  assert "ADD" not in names and "sudo" not in str(steps)
  for name in ("ENTRYPOINT", "CMD"):  # Not through a shell: signals get there.
    assert values[name].startswith('["')
  # Not as root; the user's number is the one that files are given to.
  assert names.index("USER") > max(i for i, n in enumerate(names) if n == "RUN")
  assert values["USER"] != "root"
  user = re.search(r"--uid (\d+)", str(steps))[1]
  assert f"fsGroup: {user}\n" in (TOOLS / "kubernetes/gpu.yaml").read_text()
  for name, command in steps:
    if name != "RUN":
      continue
    assert "apt-get" not in command
    for part in command.split("&&"):
      if re.search(r"\bpip (install|compile)\b", part):
        assert "--no-cache" in part
    for tool in re.findall(r"RUN pip install --\S+ (\S+)", f"RUN {command}"):
      assert re.search(r"==[\d.]+$", tool)


def test_the_dockerfile_copies_what_is_there_and_sent():
  ignore = TOOLS / "docker" / "Dockerfile.dockerignore"
  sent = {
    line[1:] for line in ignore.read_text().splitlines() if line[0] == "!"
  }
  copied = set()
  for name, words in _dockerfile():
    if name == "COPY":
      copied |= set(words.split()[:-1])
  assert copied == sent
  assert all((ROOT / name).exists() for name in copied)
