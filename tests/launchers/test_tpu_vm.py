"""The scripts for TPU VMs, with a gcloud whose workers are processes here."""

import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import bucket_stand_in
from clip_jax import buckets, mirrors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.mirrors import manifest as manifest_lib

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ROOT / "tools" / "tpu_vm"
CONFIG = ROOT / "tests" / "configs" / "tiny_bow.py"
VERBS = ("create", "setup", "run", "status", "delete")
WHERE = ("pod", "--zone", "us-east5-b")
# Installs nothing: the workers run this Python and this checkout.
UV = f"""#!/bin/bash
case "$1 $2" in
"pip compile") while [ "$1" != --output-file ]; do shift; done; echo ok >"$2" ;;
"venv --quiet") mkdir -p "${{@: -1}}/bin"
  printf '#!/bin/sh\nexec %s "$@"\n' {shlex.quote(sys.executable)} \
    >"${{@: -1}}/bin/python"
  chmod +x "${{@: -1}}/bin/python" ;;
"pip install") while [ "$1" != --python ]; do shift; done
  printf '#!/bin/sh\\nexec %s -m clip_jax "$@"\\n' \
    {shlex.quote(sys.executable)} >"${{2%/*}}/clip-jax"
  chmod +x "${{2%/*}}/clip-jax" ;;
esac
"""


# Stands in for Python, which checks the slice, and for the training.
CHECKS = """#!/bin/sh
echo worker=$2 workers=2 devices=4 local=2 python=3 jax=0 versions=1
"""
TRAINS = """#!/bin/bash
mkdir -p "$4/checkpoints"
while step=$(ls "$4/checkpoints" | tail -n 1); [ "${step:-0}" -lt 6 ]; do
  sleep 0.3
  [ "$SLURM_PROCID" = 1 ] || mkdir "$4/checkpoints/$((step + 1))"
done
"""


def write_program(path, text):
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
  """A folder for the stand-in, and the environment that finds it."""

  def __init__(self, folder):
    self.folder = folder / "cloud"
    programs = folder / "programs"
    self.folder.mkdir()
    programs.mkdir()
    stand_in = pathlib.Path(__file__).with_name("gcloud.py")
    write_program(
      programs / "gcloud",
      f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE {stand_in} "$@"\n',
    )
    write_program(programs / "uv", UV)
    self.environment = os.environ | {
      "PATH": f"{programs}:{os.environ['PATH']}",
      "GCLOUD_STAND_IN": str(self.folder),
      "CLOUDSDK_CORE_PROJECT": "",
      "XDG_STATE_HOME": str(folder / "state"),
      "CLIP_JAX_POLL_SECONDS": "0.2",
      "CLIP_JAX_SEEN_SECONDS": "1",
      "CLIP_JAX_PAUSE_SECONDS": "0",
      "CLIP_JAX_CHECK_SECONDS": "10",
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
      + os.environ["CLIP_JAX_TEST_XLA_FLAGS"],
    }

  def start(self, verb, *words):
    return subprocess.Popen(
      [SCRIPTS / f"{verb}.sh", *map(str, words)],
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )

  def __call__(self, verb, *words, code=0):
    """Runs a script; returns what it printed."""
    process = self.start(verb, *words)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said
    return said

  def write(self, **states):
    for name, text in states.items():
      (self.folder / name).write_text(text)

  def calls(self):
    path = self.folder / "calls"
    return path.read_text().splitlines() if path.exists() else []

  def has_slice(self):
    """Makes a slice without the scripts."""
    self.write(queue="ACTIVE", node="READY", type="v4-16", name="pod", job="1")
    for worker in range(2):
      (self.folder / f"worker-{worker}").mkdir()

  def computes_nothing(self):
    """Has the workers install stand-ins for Python and for clip-jax."""
    folder = self.folder.parent
    write_program(folder / "python", CHECKS)
    write_program(folder / "clip-jax", TRAINS)
    write_program(
      folder / "programs" / "uv",
      f"""#!/bin/bash
case "$1 $2" in
"pip compile") echo ok >clip_jax.lock ;;
"venv --quiet") mkdir -p clip_jax_venv/bin
  cp {folder}/python {folder}/clip-jax clip_jax_venv/bin ;;
esac
""",
    )

  def preempt(self):
    """Takes the slice away, as Google does, with all that runs on it."""
    for pid in self.folder.glob("worker-*/clip_jax_run/pid"):
      os.killpg(int(pid.read_text()), signal.SIGKILL)
    self.write(queue="SUSPENDED", node="PREEMPTED")


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


# What each script needs beside the name and the zone.
NEEDS = {
  "create": ("--type", "v6e-16"),
  "run": ("--workdir", "/mnt/w", "--", "--config", "configs/demo.py"),
}


def test_every_script_has_help_and_is_shown_without_gcloud(cloud):
  for verb in VERBS:
    said = cloud(verb, "--help")
    assert said.startswith(f"Usage: {verb}.sh NAME --zone ZONE")
    assert max(map(len, said.splitlines())) <= 80
  assert not cloud.calls()


def test_dry_runs_print_the_commands_and_run_none(cloud):
  command = "gcloud compute tpus queued-resources create pod --node-id=pod"
  for kind, runtime in {
    "v4-32": "tpu-ubuntu2204-base",
    "v5litepod-8": "v2-alpha-tpuv5-lite",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-256": "v2-alpha-tpuv6e",
  }.items():
    said = cloud("create", *WHERE, "--type", kind, "--spot", "--dry-run")
    assert said == (
      f"{command} --accelerator-type={kind} --runtime-version={runtime} --spot "
      "--zone=us-east5-b\n"
    )
  said = cloud("delete", *WHERE, "--project=my-project", "--dry-run")
  assert said == (
    "gcloud compute tpus queued-resources delete pod --force --quiet "
    "--zone=us-east5-b --project=my-project\n"
  )
  assert not cloud.calls() and not (cloud.folder.parent / "state").exists()


def test_dry_runs_quote_every_word_for_both_shells(cloud):
  hostile = "--config.data.train=wds:/it's $(touch /tmp/x)/{0..9}.tar"
  words = ("--workdir", "/mnt/a b", "--dry-run", "--", "--config=c.py", hostile)
  lines = cloud("run", *WHERE, *words).splitlines()
  start = shlex.split(lines[1])
  assert start[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
  assert start[-4:-2] == ["pod", "--worker=all"]
  on_worker = shlex.split(start[-2].removeprefix("--command="))
  assert on_worker[2:4] == ["start", "/mnt/a b"]
  assert on_worker[5:] == ["5", "--config=c.py", hostile]
  said = cloud("setup", *WHERE, "--mount=gs://my-data=/mnt/data", "--dry-run")
  for part in ("scp", "lock 3.12 tpu", "mount my-data /mnt/data", "check"):
    assert part in said


def test_the_commands_of_the_page_run_dry(cloud):
  text = (ROOT / "docs" / "tpu_vm.md").read_text()
  block = text.split("```bash\n")[1].split("```")[0].replace("\\\n", " ")
  commands = [shlex.split(line) for line in block.splitlines()]
  assert [pathlib.Path(words[0]).stem for words in commands] == [
    *("create", "status", "setup", "run", "delete")
  ]
  for script, *words in commands:
    said = cloud(pathlib.Path(script).stem, "--dry-run", *words)
    assert "gcloud compute tpus" in said


WRONG = {
  "create": [
    ((*WHERE, "--type=v6e-16"), "This costs money: v6e-16, 16 chips"),
    ((*WHERE, "--type=v4-12", "--yes"), "There is no slice v4-12"),
    ((*WHERE, "--type=v7-8", "--yes"), "--type 'v7-8' is not known"),
    ((*WHERE, "--type=v6e-8;id", "--yes"), "--type 'v6e-8;id' is not"),
    ((*WHERE, "--yes"), "Give --type"),
    (("pod", "--zone=us-east5", "--type=v6e-8"), "--zone 'us-east5' is not"),
    (("pod", "--zone=us-east5-b\n--x", "--type=v6e-8"), "us-east5-b?--x"),
    (("Pod", *WHERE[1:], "--type=v6e-8"), "NAME 'Pod' is not valid"),
    (("--zone=us-east5-b", "--type=v6e-8"), "Give the NAME"),
    (("pod", "--type=v6e-8"), "Give --zone"),
    ((*WHERE, "other", "--type=v6e-8"), "Two names"),
    ((*WHERE, "--typ=v6e-8"), "Unknown flag '--typ=v6e-8'"),
    ((*WHERE, "--type"), "--type takes a value"),
    ((*WHERE, "--type=v6e-8", "--project=a b"), "--project 'a b' is not"),
  ],
  "setup": [
    ((*WHERE, "--python=3.10"), "3.11 is the oldest"),
    ((*WHERE, "--mount=my-bucket:/mnt"), "gs://my-bucket=/mnt/bucket"),
  ],
  "run": [
    ((*WHERE, "--", "--config=c.py"), "Give --workdir"),
    (
      (*WHERE, "--workdir=runs/1", "--", "--config=c.py"),
      "it looks like gs://my-b",
    ),
    ((*WHERE, "--workdir=gs://b", "--", "-c"), "it looks like gs://my-b"),
    ((*WHERE, "--workdir=/w"), "Give the arguments of clip-jax train"),
    ((*WHERE, "--workdir=/w", "--", "--workdir=/v"), "before the --"),
    ((*WHERE, "--workdir=/w", "--", "--distributed"), "Leave --distributed"),
    ((*WHERE, "--workdir=/w", "--recreate", "--", "-c"), "--yes too"),
  ],
  "delete": [(WHERE, "This deletes 'pod'")],
  "status": [((*WHERE, "--wait", "--logs"), "not both")],
}


@pytest.mark.parametrize("verb", WRONG)
def test_wrong_usage_and_what_costs_money_is_refused(cloud, verb):
  for words, message in WRONG[verb]:
    said = cloud(verb, *words, code=2)
    assert said.startswith("Error: ") and message in said
    assert said.endswith(f"See {verb}.sh --help.\n")
  assert not cloud.calls()


FAILURES = {
  # From public reports, and from the SDK itself.
  "HttpError 429: \"Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI'"
  ' has been exceeded. Limit: 0 in region us-east5."': "quota does not allow",
  "ERROR: (gcloud) You do not currently have an active account selected.": (
    "Run: gcloud auth login"
  ),
  "ERROR: (gcloud) There was a problem refreshing your current auth tokens": (
    "Run: gcloud auth login"
  ),
  "ERROR: PERMISSION_DENIED: Permission denied on 'locations/us-east9-z' (or it"
  " may not exist).": "us-central1-b,us-east1-d",
  "ERROR: (gcloud) Failed to find attribute [project]. The attribute can be": (
    "Give --project ID"
  ),
  "ERROR: Insufficient reserved capacity. [EID: 0x7adf]": "no room for this",
  "ERROR: ALREADY_EXISTS: Resource 'pod' already exists": "already. status.sh",
  "ERROR: Cloud TPU API has not been used in project 1 before": (
    "gcloud services enable tpu.googleapis.com"
  ),
  "ERROR: Permission denied on resource project my-projcet (or it may not"
  " exist).": "The project does not exist",
  "ERROR: PERMISSION_DENIED: This API method requires billing to be enabled.": (
    "no billing account"
  ),
  "ERROR: NOT_FOUND: 'projects/p/locations/z/runtimeVersions/a' was not"
  " found": "such as the runtime version, the network",
  "ERROR: gcloud crashed (ConnectionError): Max retries exceeded with url": (
    "Google cannot be reached"
  ),
  "WARNING: Your active project does not match the quota project in your local"
  " credentials, which may result in quota issues.\nERROR: PERMISSION_DENIED:"
  " The caller does not have permission": "needs the role TPU Admin",
  "ERROR: something new": "failed with exit code 1; see its words above",
}


def test_what_google_refuses_is_explained(cloud):
  for text, message in FAILURES.items():
    cloud.write(fail=text)
    said = cloud("create", *WHERE, "--type=v6e-16", "--yes", code=1)
    *_, last = said.splitlines()
    assert (
      said.startswith(f"{text}\n")
      and last.startswith("Error: ")
      and message in last
    )


@pytest.mark.parametrize(
  ("text", "told"),
  [
    (
      "Location us-east5-b is not found or access is unauthorized.",
      "Zone 'us-",
    ),
    ("Resource 'projects/p/locations/us-east5-b/nodes/pod' was not found", ""),
  ],
)
def test_a_zone_that_is_none_is_no_slice_that_is_gone(text, told, cloud):
  cloud.write(fail=f"ERROR: NOT_FOUND: {text}")
  said = cloud("status", *WHERE, code=1 if told else 0)
  assert f"Error: {told}" in said if told else said == "pod: absent\n"
  said = cloud("delete", *WHERE, "--yes", code=1)
  assert f"Error: {told or 'There is no'}" in said


def test_a_missing_gcloud_is_told(cloud, tmp_path):
  # Only what the scripts themselves need.
  programs = tmp_path / "few"
  programs.mkdir()
  for name in ("bash", "dirname", "basename", "mktemp", "rm", "cat"):
    (programs / name).symlink_to(shutil.which(name))
  cloud.environment["PATH"] = str(programs)
  assert "gcloud is not installed" in cloud("status", *WHERE, code=1)


def test_the_queue_and_a_slice_that_is_gone_are_told(cloud):
  assert "status.sh" not in cloud("status", *WHERE)  # "absent" is an answer.
  assert "There is no 'pod'" in cloud("status", *WHERE, "--wait", code=1)
  cloud.write(queue="FAILED")
  said = cloud("status", *WHERE, "--wait", code=1)
  assert "failed: No capacity by the deadline. It never starts now" in said
  cloud.write(queue="SUSPENDED")
  assert "was preempted" in cloud("setup", *WHERE, code=1)
  said = cloud("run", *WHERE, *NEEDS["run"], code=75)
  assert "with --recreate --yes goes on from there" in said
  cloud.write(queue="WAITING_FOR_RESOURCES")
  waiting = cloud.start("status", *WHERE, "--wait")
  assert "nothing is billed yet" in waiting.stdout.readline()
  cloud.write(node="READY", queue="ACTIVE", type="v4-16")
  assert "'pod' is ready" in waiting.communicate(timeout=30)[0]


def test_each_project_has_its_own_slices(cloud):
  """The arguments of a slice are not those of its namesake elsewhere."""
  cloud("create", *WHERE, "--type=v4-8", "--yes")
  kept = cloud.folder.parent / "state/clip_jax/tpu_vm"
  (state,) = kept.glob("**/create")
  assert state.parent == kept / "my-own-project" / "us-east5-b.pod"
  state.with_name("setup").write_text("pod\n--zone\nus-east5-b\n")
  cloud.write(queue="SUSPENDED", project="my-other-project")
  options = ("--recreate", "--yes", *NEEDS["run"])
  for words in ((), ("--project=my-third-project",)):
    said = cloud("run", *WHERE, *words, *options, code=1)
    assert "Nothing is known of how 'pod' was made" in said
  assert "queued-resources delete" not in " ".join(cloud.calls())
  said = cloud("setup", *WHERE, "--project=my-third-project", "--dry-run")
  assert "/my-third-project/us-east5-b.pod/lock-" in said


def test_a_slice_that_is_not_for_certain_gone_is_kept(cloud):
  options = ("--recreate", "--yes", *NEEDS["run"])
  cloud.has_slice()
  for node, told in {"STOPPED": "STOPPED", "\n": "without a state"}.items():
    cloud.write(node=node)
    said = cloud("run", *WHERE, *options, code=1)
    assert f"neither ready nor gone: its node is {told}. " in said
    assert "another one" not in said
  assert not any("queued-resources delete" in call for call in cloud.calls())
  for node in ("PREEMPTED", "TERMINATED", "DELETING"):
    cloud.write(node=node)
    assert cloud("status", *WHERE) == "pod: gone\n"


@pytest.mark.parametrize("moment", ["before", "delete", "create"])
def test_what_the_user_deletes_is_not_created_again(cloud, moment):
  """Whether delete.sh comes before run.sh replaces the slice, or meanwhile."""
  cloud("create", *WHERE, "--type=v4-8", "--yes")
  (state,) = cloud.folder.parent.glob("state/**/create")
  state.with_name("setup").write_text("pod\n--zone\nus-east5-b\n")
  cloud.write(queue="SUSPENDING", node="PREEMPTED")
  running = cloud.start("run", *WHERE, "--recreate", "--yes", *NEEDS["run"])
  assert "getting another one" in running.stdout.readline()
  if moment == "before":
    cloud("delete", *WHERE, "--yes")
  else:  # What delete.sh does first, while gcloud does this.
    cloud.write(meanwhile=f"{moment} {state.parent}", queue="SUSPENDED")
  said = running.communicate(timeout=60)[0]
  created = [x for x in cloud.calls() if "queued-resources create" in x]
  assert len(created) == (2 if moment == "create" else 1)
  assert not (cloud.folder / "queue").exists() and not state.exists()
  told = {"before": "delete.sh was told to delete it", "delete": "was deleted"}
  assert told.get(moment, "was deleted, not preempted") in said
  assert running.returncode == (1 if moment == "before" else 75)


def test_ctrl_c_before_the_run_is_started_is_told(cloud):
  cloud.write(queue="WAITING_FOR_RESOURCES")
  running = cloud.start("run", *WHERE, *NEEDS["run"])
  assert "waits in the queue" in running.stdout.readline()
  os.killpg(running.pid, signal.SIGINT)
  said = running.communicate(timeout=60)[0]
  assert running.returncode == 130
  assert "Ended before the run could be followed" in said
  assert "status.sh pod --zone us-east5-b tells" in said


def test_a_lost_worker_and_workdirs_that_differ_are_told(cloud, tmp_path):
  cloud.has_slice()
  for worker in range(2):
    home = cloud.folder / f"worker-{worker}"
    scripts = home / "clip_jax_checkout" / "tools" / "tpu_vm"
    shutil.copytree(SCRIPTS, scripts)
    (home / "clip_jax_venv" / "bin").mkdir(parents=True)
    write_program(home / "clip_jax_venv" / "bin" / "clip-jax", "#!/bin/true\n")
  (home / "lost").touch()
  said = cloud("status", *WHERE, code=1)
  assert "worker=0 run=absent" in said and "Cannot reach worker 1." in said
  workdir = tmp_path / "work dir"
  options = ("--workdir", workdir, "--restarts=0", "--", "--config=c.py")
  said = cloud("run", *WHERE, *options, code=1)
  assert "Cannot reach worker 1." in said
  (home / "lost").unlink()
  # A file system of its own: the sign of worker 0 is not seen.
  worker = home / "clip_jax_checkout/tools/tpu_vm/worker.sh"
  text = worker.read_text()
  worker.write_text(text.replace('"$1/.seen_by_all"', '"/nowhere/$1"'))
  said = cloud("run", *WHERE, *options, code=1)
  assert "Worker 1: this worker does not see what worker 0 wrote" in said


@pytest.mark.slow  # Some fifty calls of gcloud.
def test_a_slice_that_is_taken_away_is_replaced(cloud, tmp_path):
  cloud.computes_nothing()
  cloud("create", *WHERE, "--type=v4-8", "--spot", "--yes")
  assert "all 4 devices, with the same versions" in cloud("setup", *WHERE)
  options = ("--workdir", tmp_path / "w", "--recreate", "--yes", "--", "-x")
  running = cloud.start("run", *WHERE, *options)
  _wait_for_step(tmp_path / "w", 2, running)
  cloud.preempt()
  said = running.communicate(timeout=60)[0]
  assert running.returncode == 0, said
  assert "getting another one" in said and "Trained: " in said
  created = [x for x in cloud.calls() if "queued-resources create" in x]
  assert len(created) == 2 and created[0] == created[1]
  # Versions were chosen once.
  assert sum("worker.sh lock" in call for call in cloud.calls()) == 1
  # The same command with a finished run is done at once; `--stop` too.
  assert "Trained: " in cloud("run", *WHERE, *options)
  cloud("run", *WHERE, "--stop")
  options = ("--workdir", tmp_path / "v", *options[2:])
  running = cloud.start("run", *WHERE, *options)
  _wait_for_step(tmp_path / "v", 2, running)
  cloud("delete", *WHERE, "--yes")
  said = running.communicate(timeout=60)[0]
  assert running.returncode == 75 and "was deleted, not preempted" in said
  assert sum("queued-resources create" in x for x in cloud.calls()) == 2
  assert cloud("status", *WHERE) == "pod: absent\n"


def test_a_worker_that_is_not_set_up_is_told_at_once(cloud, tmp_path):
  """Such as one that Google has repaired, with an empty disk."""
  cloud.computes_nothing()
  cloud("create", *WHERE, "--type=v4-8", "--yes")
  options = ("--workdir", tmp_path / "w", "--", "--config=c.py")
  told = "Error: Not every worker of 'pod' is set up. Run: setup.sh pod --zone"
  for words in (("run", *options), ("run", "--stop"), ("status", "--logs")):
    assert told in cloud(words[0], *WHERE, *words[1:], code=1)
  cloud("setup", *WHERE)
  said = cloud("status", *WHERE, "--logs", code=1)
  assert said.splitlines()[-1] == "Error: Worker 0: no run was started."
  shutil.rmtree(cloud.folder / "worker-1")
  (cloud.folder / "worker-1").mkdir()
  for words in (("run", *options), ("status",)):
    said = cloud(words[0], *WHERE, *words[1:], code=1)
    assert told in said and "trying again" not in said


def test_a_lock_beside_the_caller_is_found_from_anywhere(
  cloud, tmp_path, monkeypatch
):
  """By run.sh --recreate, which sets another slice up."""
  cloud.computes_nothing()
  cloud("create", *WHERE, "--type=v4-8", "--yes")
  monkeypatch.chdir(tmp_path)
  cloud("setup", *WHERE, "--lock", "my lock.txt")
  assert (tmp_path / "my lock.txt").read_text() == "ok\n"
  (state,) = cloud.folder.parent.glob("state/**/setup")
  again = state.read_text().splitlines()
  monkeypatch.chdir("/")
  said = cloud("setup", *again)
  assert f"Installing Python 3.12 and {tmp_path}/my lock.txt." in said
  assert "Choosing versions" not in said


def supervise(tmp_path, codes, *flags):
  """Runs a command that ends with these codes, one after the other."""
  (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
  command = (
    f"cd {tmp_path}; c=$(head -n 1 codes); sed -i 1d codes; "
    "case $c in s*) kill -${c#s} $$ ;; "
    "p*) mkdir -p p/checkpoints/${c#p}; exit 75 ;; "
    "r*) rmdir p/checkpoints/${c#r}; exit 75 ;; esac; exit $c"
  )
  done = subprocess.run(
    [
      *(SCRIPTS / "supervise.sh", "--pause", "0", "--progress", tmp_path / "p"),
      *(*flags, "--", "bash", "-c", command),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  left = len((tmp_path / "codes").read_text().split())
  return done.returncode, len(codes) - left, done.stderr


@pytest.mark.parametrize(
  ("codes", "code", "runs"),
  [
    ((0,), 0, 1),
    ((1, 0), 1, 1),
    ((2, 0), 2, 1),
    ((130, 0), 130, 1),
    ((75, 143, "s9", "s6", 0), 0, 5),
    ((75, 75, 75, 0), 75, 3),  # No checkpoint: it gives up.
    (("p1", "p2", "p3", "p4", 0), 0, 5),  # One each time.
    (("p800", "p900", "p1000", "p1100", 0), 0, 5),  # Numbers, not text.
    (("p1", "p2", "r2", "r1", 0), 75, 4),  # One that goes is no new one.
  ],
)
def test_the_supervisor_restarts_what_a_restart_mends(
  tmp_path, codes, code, runs
):
  limit = "4" if "s9" in codes else "2"
  got = supervise(tmp_path, codes, "--restarts", limit)
  assert got[:2] == (code, runs), got[2]


def test_the_newest_checkpoint_is_the_highest_number(tmp_path):
  for step in ("800", "900", "1000", "1100", "1200.tmp"):
    (tmp_path / "checkpoints" / step).mkdir(parents=True)
  said = subprocess.check_output(
    [SCRIPTS / "worker.sh", "mark", tmp_path, "token"], text=True
  )
  assert said == "checkpoint=1100\n"


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_the_newest_checkpoint_of_a_bucket_is_found(tmp_path, scheme):
  """By the Python that setup.sh has installed; no sign is left there."""
  (tmp_path / "clip_jax_venv/bin").mkdir(parents=True)
  python = tmp_path / "clip_jax_venv/bin/python"
  write_program(python, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  with bucket_stand_in.serve() as store:
    environment = os.environ | store.environment
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def marked(bucket):
      return subprocess.run(
        [SCRIPTS / "worker.sh", "mark", f"{scheme}://{bucket}/run", "token"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
      )

    store.objects["data-1"] = {}
    assert marked("data-1").stdout == "checkpoint=\n"
    for step in ("800", "900", "1000", "1100", "1200.tmp"):
      store.put("data-1", f"run/checkpoints/{step}/meta", b"x")
    before = dict(store.objects["data-1"])
    found = marked("data-1")
    assert found.stdout == "checkpoint=1100\n", found.stderr
    assert store.objects["data-1"] == before
    # With a list of files, that which is being copied is none.
    files = {f"checkpoints/{step}/meta": 64 * "0" for step in (800, 900)}
    listed = manifest_lib.Manifest(manifest_lib.WORKDIR, files)
    store.put("data-1", f"run/{manifest_lib.NAME}", listed.to_json())
    assert marked("data-1").stdout == "checkpoint=900\n"
    store.refuse = 403
    said = marked("data-1")
    assert said.returncode == 1 and "Error: Access to" in said.stderr
    assert "Storage Object Admin" in said.stderr


def test_a_machine_that_goes_down_does_not_stop_the_run(tmp_path):
  """Its SIGTERM to all processes is no `run.sh --stop`."""
  (tmp_path / "clip_jax_venv" / "bin").mkdir(parents=True)
  write_program(
    tmp_path / "clip_jax_venv" / "bin" / "clip-jax",
    "#!/bin/bash\ntrap 'exit 143' TERM\ntouch ~/began\n"
    "while :; do sleep 0.1; done\n",
  )

  def worker(*words):
    return subprocess.check_output(
      [SCRIPTS / "worker.sh", *words],
      env=os.environ | {"HOME": str(tmp_path), "CLIP_JAX_WORKER": "0"},
      text=True,
    )

  def wait_until(is_true):
    end = time.monotonic() + 30
    while not is_true():
      assert time.monotonic() < end
      time.sleep(0.02)

  began = tmp_path / "began"
  for told, want in (
    ("worker", "ended code=143"),
    ("machine", "absent code=-"),
    ("worker", "ended code=143"),
  ):
    began.unlink(missing_ok=True)
    worker("mark", tmp_path / "w", "token")
    worker("start", tmp_path / "w", "token", "5", "--config=c.py")
    wait_until(began.exists)
    if told == "worker":
      worker("stop")
    else:
      pid = int((tmp_path / "clip_jax_run" / "pid").read_text())
      os.killpg(pid, signal.SIGTERM)
      wait_until(lambda: "running" not in worker("result"))
    assert worker("result") == f"worker=0 run={want}\n"


def _trains(workdir):
  return (
    *(*WHERE, "--workdir", workdir, "--recreate", "--yes", "--"),
    *("--config", CONFIG, "--config.steps=4"),
    *("--config.mesh.data=4", "--heartbeat=5"),
  )


def _is_saved(workdir, step):
  if not buckets.is_address(workdir):
    return (workdir / "checkpoints" / str(step)).exists()
  listed = manifest_lib.read(workdir)
  return listed is not None and step in map(manifest_lib.step, listed.files)


def _wait_for_step(workdir, step, process):
  end = time.monotonic() + 120
  while not _is_saved(workdir, step):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.slow
def test_a_preempted_training_ends_as_an_uninterrupted_one(
  cloud, tmp_path, monkeypatch
):
  """Both workers are killed and the slice is taken away in the middle."""
  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    cloud.environment |= store.environment
    whole, killed = tmp_path / "on a disk", "gs://data-1/runs/killed"
    cloud("create", *WHERE, "--type=v4-8", "--spot", "--yes")
    assert "all 4 devices, with the same" in cloud("setup", *WHERE)
    said = cloud("run", *_trains(whole))
    assert "Trained 4 steps" in said and f"Trained: {whole}. The" in said
    running = cloud.start("run", *_trains(killed))
    _wait_for_step(killed, 2, running)
    cloud.preempt()
    said = running.communicate(timeout=300)[0]
    assert running.returncode == 0, said
    assert "getting another one" in said
    assert sum("queued-resources create" in x for x in cloud.calls()) == 2
    copy = mirrors.fetched(killed)
  got, want = (workdir_lib.load_model(path).variables for path in (copy, whole))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  cloud("delete", *WHERE, "--yes")
  assert cloud("status", *WHERE) == "pod: absent\n"
