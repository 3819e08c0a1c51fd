#!/usr/bin/env bash
# What the other scripts run on a worker of a slice, in its home directory.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$HERE/../.." && pwd)
ENVIRONMENT=$HOME/clip_jax_venv
LOCK=$HOME/clip_jax.lock
# Log of all runs, and of the last one where it begins there (lines), process
# number, exit code, command, and whether it was stopped on purpose.
RUN=$HOME/clip_jax_run
# Of files that another worker wrote; mounted buckets show them late.
SEEN_SECONDS=${CLIP_JAX_SEEN_SECONDS:-60}
STOP_SECONDS=60

usage() {
  cat <<END
Usage: worker.sh COMMAND, on a worker of a TPU slice:

  lock PYTHON EXTRA    choose all versions, and write them to ~/clip_jax.lock
  install PYTHON       install those versions and the checkout
  check                print what this worker sees of the slice
  mount BUCKET DIR     mount a bucket by gcsfuse
  mark WORKDIR TOKEN   leave a sign that the other workers must see, and print
                       the newest checkpoint
  start WORKDIR TOKEN RESTARTS TRAIN_ARGUMENTS...
  follow               print the run's log until the run ends
  result               print how the run stands
  stop                 stop the run; it saves first
END
}

number() { # This worker's: the end of the host's name, as in t1v-n-1a2b-w-3.
  local host
  host=$(hostname)
  if [ -n "${CLIP_JAX_WORKER:-}" ]; then
    echo "$CLIP_JAX_WORKER"
  else
    case $host in *-w-*) echo "${host##*-w-}" ;; *) echo 0 ;; esac
  fi
}

die() {
  echo "Error: Worker $(number): $1" >&2
  exit 1
}

find_uv() { # Sets UV; installs it where it is missing.
  local candidate
  for candidate in uv "$HOME/.local/bin/uv"; do
    if command -v "$candidate" >/dev/null; then
      UV=$candidate
      return
    fi
  done
  {
    python3 -m pip install --quiet --user uv ||
      curl -LsSf https://astral.sh/uv/install.sh | sh
  } >&2 || die "uv cannot be installed. Does this worker reach the internet? One without a public address needs Cloud NAT."
  UV=$HOME/.local/bin/uv
}

lock() { # PYTHON EXTRA
  find_uv
  "$UV" pip compile --quiet --python-version "$1" --extra "$2" \
    --output-file "$LOCK" "$CHECKOUT/setup.cfg" >/dev/null ||
    die "no versions could be chosen; see above."
}

install() { # PYTHON
  find_uv
  [ -s "$LOCK" ] || die "$LOCK is missing or empty."
  # A newer Python than the image's, where needed.
  "$UV" venv --quiet --clear --python "$1" "$ENVIRONMENT" ||
    die "Python $1 cannot be installed; see above. Does this worker reach the internet?"
  {
    "$UV" pip sync --quiet --python "$ENVIRONMENT/bin/python" "$LOCK" &&
      "$UV" pip install --quiet --python "$ENVIRONMENT/bin/python" --no-deps \
        "$CHECKOUT"
  } || die "the packages cannot be installed; see above."
}

check() {
  [ -x "$ENVIRONMENT/bin/python" ] || die "nothing is installed; run setup.sh."
  "$ENVIRONMENT/bin/python" "$HERE/check_slice.py" "$(number)"
}

mount_bucket() { # BUCKET DIR
  if mountpoint -q "$2"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
    local key=/usr/share/keyrings/cloud.google.asc list
    list="deb [signed-by=$key] https://packages.cloud.google.com/apt"
    list+=" gcsfuse-$(lsb_release -c -s) main"
    {
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee "$key" >/dev/null &&
        echo "$list" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
        sudo apt-get -qq update &&
        sudo apt-get -qq install -y gcsfuse
    } >&2 || die "gcsfuse cannot be installed; see above."
  fi
  { sudo mkdir -p "$2" && sudo chown "$(id -u):$(id -g)" "$2"; } ||
    die "$2 cannot be made."
  gcsfuse --implicit-dirs "$1" "$2" >&2 ||
    die "gs://$1 cannot be mounted on $2. Does the workers' service account have the role Storage Object Admin there?"
}

is_alive() { # Not some other process with its number, after a reboot.
  [ -s "$RUN/pid" ] &&
    grep -qs supervise.sh "/proc/$(cat "$RUN/pid")/cmdline"
}

is_address() { # WORKDIR: in a bucket, which all workers see alike.
  case $1 in gs://* | s3://*) ;; *) return 1 ;; esac
}

mark() { # WORKDIR TOKEN: prints the run's newest checkpoint too.
  local newest
  if is_address "$1"; then
    [ -x "$ENVIRONMENT/bin/python" ] || die "nothing is installed; run setup.sh."
    newest=$(bash "$HERE/newest.sh" "$1") ||
      die "$1 cannot be read; see above. Has the workers' service account the role Storage Object Admin there?"
  else
    { mkdir -p "$1" && echo "$2" >"$1/.seen_by_all"; } ||
      die "$1 cannot be written. Is the disk mounted?"
    newest=$(bash "$HERE/newest.sh" "$1")
  fi
  echo "checkpoint=$newest"
}

sees_mark() { # WORKDIR TOKEN
  local waited=0
  until is_address "$1" || [ "$(cat "$1/.seen_by_all" 2>/dev/null)" = "$2" ]; do
    [ "$waited" -lt "$SEEN_SECONDS" ] || return 1
    sleep 1
    waited=$((waited + 1))
  done
}

start() { # WORKDIR TOKEN RESTARTS TRAIN_ARGUMENTS...
  local workdir=$1 token=$2 restarts=$3 command
  shift 3
  command=("$ENVIRONMENT/bin/clip-jax" train --distributed --workdir "$workdir" "$@")
  if is_alive; then
    [ "$(cat "$RUN/command")" = "${command[*]}" ] ||
      die "another run is under way: $(cat "$RUN/command"). Stop it first: run.sh --stop"
    return # Started before; the caller goes on to follow it.
  fi
  [ -x "${command[0]}" ] || die "clip-jax is not installed; run setup.sh."
  sees_mark "$workdir" "$token" ||
    die "this worker does not see what worker 0 wrote in $workdir. All workers need one workdir: gs://BUCKET/FOLDER, or a disk that is mounted on each."
  mkdir -p "$RUN"
  rm -f "$RUN/code" "$RUN/stopped"
  count_lines >"$RUN/lines"
  printf '%s' "${command[*]}" >"$RUN/command"
  cd "$CHECKOUT"
  setsid nohup bash "$HERE/supervise.sh" --restarts "$restarts" \
    --progress "$workdir" --code "$RUN/code" --stopped "$RUN/stopped" \
    --pause "${CLIP_JAX_PAUSE_SECONDS:-10}" -- "${command[@]}" \
    >>"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/pid"
}

follow() { # From the last start on, but no more than 50 lines of the past.
  local first start
  [ -s "$RUN/pid" ] || die "no run was started."
  start=$(($(cat "$RUN/lines") + 1))
  first=$(($(count_lines) - 49))
  if [ "$first" -lt "$start" ]; then first=$start; fi
  tail -n "+$first" -F --pid="$(cat "$RUN/pid")" "$RUN/log" 2>/dev/null
}

count_lines() { # Of the log.
  if [ -e "$RUN/log" ]; then wc -l <"$RUN/log"; else echo 0; fi
}

result() {
  local state=absent code=-
  if is_alive; then
    state=running
  elif [ -s "$RUN/code" ]; then
    state=ended
    code=$(cat "$RUN/code")
  fi
  echo "worker=$(number) run=$state code=$code"
}

stop() {
  local pid waited=0
  is_alive || return 0
  pid=$(cat "$RUN/pid")
  touch "$RUN/stopped" # Without it, the machine goes down.
  kill -TERM "$pid"
  while is_alive; do
    if [ "$waited" -ge "$STOP_SECONDS" ]; then
      kill -KILL -- "-$pid" # Its group: setsid made one of the run.
      break
    fi
    sleep 1
    waited=$((waited + 1))
  done
}

case ${1:-} in
  lock | install | check | mark | start | follow | result | stop) "$@" ;;
  mount) mount_bucket "${@:2}" ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
