"""Stands in for gcloud: a slice whose workers are folders and processes here.

The folder $GCLOUD_STAND_IN holds `queue` and `node`, the states of the queued
resource and of the slice; `type`; `project`, gcloud's own; `calls`, a line for
each call; `fail`, what to fail with; and worker-0, worker-1, …, the workers'
home directories. A worker with a file `lost` in it cannot be reached.
`meanwhile`, a verb and a state directory, has delete.sh begin while that verb
is under way. The printed texts and exit codes are those of gcloud 528
(googlecloudsdk/command_lib/compute/tpus/tpu_vm/ssh.py).
"""

import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["GCLOUD_STAND_IN"])
WORKERS = int(os.environ.get("GCLOUD_STAND_IN_WORKERS", "2"))


def state(name):
  path = FOLDER / name
  return path.read_text().strip() if path.exists() else ""


def fail(text, code=1):
  print(text, file=sys.stderr)
  sys.exit(code)


def home(worker):
  return FOLDER / f"worker-{worker}"


def make_slice(kind):
  for worker in range(WORKERS):
    home(worker).mkdir()
  (FOLDER / "type").write_text(kind)
  (FOLDER / "job").write_text(str(random.SystemRandom().randrange(4096)))
  (FOLDER / "queue").write_text("ACTIVE")
  (FOLDER / "node").write_text("READY")


def delete_slice():
  for worker in range(WORKERS):
    shutil.rmtree(home(worker), ignore_errors=True)
  (FOLDER / "queue").unlink()
  (FOLDER / "node").unlink()


def describe(what, flags):
  if not (FOLDER / what).exists():
    fail(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource '{what}' not found")
  print(
    {
      "value(state.state)": state("queue"),
      "value(state)": state("node"),
      "value(networkEndpoints.len())": WORKERS,
      "value(state.failedData.error.message)": "No capacity by the deadline.",
      "value[separator=' '](acceleratorType,networkEndpoints.len())": (
        f"{state('type')} {WORKERS}"
      ),
      "value[separator=' '](acceleratorType,networkEndpoints.len(),health)": (
        f"{state('type')} {WORKERS} HEALTHY"
      ),
    }[flags["--format"]]
  )


def ssh(workers, command):
  """Runs a command on workers at once, as gcloud does."""
  running = {}
  for worker in workers:
    if (home(worker) / "lost").exists():
      continue
    running[worker] = subprocess.Popen(
      ["bash", "-c", command],
      cwd=home(worker),
      stdin=subprocess.DEVNULL,
      env={
        **os.environ,
        "HOME": str(home(worker)),
        "CLIP_JAX_WORKER": str(worker),
        # JAX finds the other processes by these, as by a TPU's metadata.
        "SLURM_JOB_ID": state("job"),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(WORKERS),
        "SLURM_LOCALID": "0",
        "SLURM_PROCID": str(worker),
      },
    )
  codes = {
    worker: running[worker].wait() if worker in running else 255
    for worker in workers
  }
  for worker, code in codes.items():
    if code and len(codes) > 1:
      print(
        f"##### Command execution on worker {worker} failed with exit status "
        f"{code}. Continuing.",
        file=sys.stderr,
      )
    elif code == 255:
      fail("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with"
           " return code [255].")  # fmt: skip
  sys.exit(next((code for code in codes.values() if code), 0))


def scp(source, target, workers):
  path = source.partition(":")[2]
  for worker in workers:
    if target.partition(":")[0] == state("name"):
      shutil.copyfile(source, home(worker) / target.partition(":")[2])
    else:
      shutil.copyfile(home(worker) / path, target)


def main():
  words = [word for word in sys.argv[1:] if not word.startswith("--")]
  flags = {
    name: value
    for name, _, value in (
      word.partition("=") for word in sys.argv[1:] if word.startswith("--")
    )
  }
  with (FOLDER / "calls").open("a") as calls:
    calls.write(shlex.join(sys.argv[1:]) + "\n")
  if text := state("fail"):
    fail(text)
  verb = " ".join(words[:4])
  moment, _, folder = state("meanwhile").partition(" ")
  if words == ["config", "get-value", "project"]:
    print(state("project") or "my-own-project")
    return
  if moment and verb.endswith(f"queued-resources {moment}"):
    for name in ("create", "recreating"):
      pathlib.Path(folder, name).unlink(missing_ok=True)
  number = flags.get("--worker", "0")
  workers = range(WORKERS) if number == "all" else [int(number)]
  if verb == "compute tpus queued-resources create":
    (FOLDER / "name").write_text(words[4])
    make_slice(flags["--accelerator-type"])
  elif verb == "compute tpus queued-resources delete":
    delete_slice()
  elif verb == "compute tpus queued-resources describe":
    describe("queue", flags)
  elif verb == "compute tpus tpu-vm describe":
    describe("node", flags)
  elif state("node") != "READY":
    fail('ERROR: This TPU has terminal state "PREEMPTED", so it cannot be used'
         " anymore.")  # fmt: skip
  elif verb == "compute tpus tpu-vm ssh":
    ssh(workers, flags["--command"])
  elif verb == "compute tpus tpu-vm scp":
    scp(words[4], words[5], workers)
  else:
    fail(f"ERROR: (gcloud) Invalid choice: {verb!r}.", 2)


main()
