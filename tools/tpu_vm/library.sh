# What the scripts beside this file share; they source it. For bash 3.2 too,
# which macOS has.
# shellcheck shell=bash
# shellcheck disable=SC2034  # Those scripts read what is set here.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$HERE/../.." && pwd)
# On the workers, seen from the home directory.
REMOTE_CHECKOUT=clip_jax_checkout
REMOTE_LOCK=clip_jax.lock
WORKER=$REMOTE_CHECKOUT/tools/tpu_vm/worker.sh

# A generation, what its accelerator types begin with, what their number counts
# (2 cores a chip, or chips), the runtime version, and zones that have it
# (docs.cloud.google.com/tpu/docs: runtimes, v5e, v5p, v6e, regions-zones).
GENERATIONS="
v4 v4 2 tpu-ubuntu2204-base us-central2-b
v5e v5litepod 1 v2-alpha-tpuv5-lite us-central1-a,us-south1-a,us-west1-c,us-west4-a
v5p v5p 2 v2-alpha-tpuv5 us-central1-a,us-east5-a
v6e v6e 1 v2-alpha-tpuv6e us-central1-b,us-east1-d,us-east5-a,us-east5-b,europe-west4-a
"

POLL_SECONDS=${CLIP_JAX_POLL_SECONDS:-30}
CHECK_SECONDS=${CLIP_JAX_CHECK_SECONDS:-120}

NAME="" ZONE="" PROJECT="" DRY_RUN="" YES="" INTERNAL_IP="" IAP=""
REST=()
COMMON_VALUES="--zone=ZONE --project=PROJECT"
COMMON_SWITCHES="--dry-run=DRY_RUN"
SSH_SWITCHES="--internal-ip=INTERNAL_IP --iap=IAP"

COMMON_HELP="  NAME                 of the slice, and of its queued resource
  --zone ZONE          such as us-east5-b
  --project ID         default: gcloud's own
  --dry-run            print the commands, run none"
SSH_HELP="  --internal-ip        reach the workers by their internal addresses
  --iap                reach them through Identity-Aware Proxy (gcloud alpha)"

say() { printf '%s\n' "$*" >&2; }

die() { # MESSAGE [CODE]
  say "Error: $1"
  exit "${2:-1}"
}

wrong() { # MESSAGE: wrong usage.
  die "$1 See $(basename "$0") --help." 2
}

shown() { # TEXT: short, and without control characters.
  local text=${1//[[:cntrl:]]/?}
  printf '%s' "${text:0:80}"
}

lookup() { # TABLE FLAG: prints the variable of a flag.
  local entry
  for entry in $1; do
    if [ "${entry%%=*}" = "$2" ]; then
      printf '%s' "${entry#*=}"
      return
    fi
  done
  return 1
}

parse() { # VALUES SWITCHES ARGUMENTS...: the tables hold FLAG=VARIABLE.
  local values="$COMMON_VALUES $1" switches="$COMMON_SWITCHES $2" flag variable
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        REST=(${@+"$@"})
        break
        ;;
      -*)
        flag=${1%%=*}
        if variable=$(lookup "$values" "$flag"); then
          if [ "$flag" != "$1" ]; then
            printf -v "$variable" %s "${1#*=}"
            shift
          else
            [ $# -ge 2 ] || wrong "$flag takes a value."
            printf -v "$variable" %s "$2"
            shift 2
          fi
        elif variable=$(lookup "$switches" "$1"); then
          printf -v "$variable" %s 1
          shift
        else
          wrong "Unknown flag '$(shown "$1")'."
        fi
        ;;
      *)
        [ -z "$NAME" ] || wrong "Two names: '$(shown "$NAME")' and '$(shown "$1")'."
        [ -n "$1" ] || wrong "The name is empty."
        NAME=$1
        shift
        ;;
    esac
  done
  [ -n "$NAME" ] || wrong "Give the NAME of the slice."
  [ -n "$ZONE" ] || wrong "Give --zone."
  check NAME "$NAME" '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$' "my-slice"
  check --zone "$ZONE" '^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$' "us-east5-b"
  [ -z "$PROJECT" ] || check --project "$PROJECT" \
    '^([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]$' "my-project-1"
}

check() { # WHAT VALUE PATTERN EXAMPLE
  [[ $2 =~ $3 ]] ||
    wrong "$1 '$(shown "$2")' is not valid; it looks like $4."
}

check_text() { # WHAT VALUE: anything that fits on a line.
  [[ -n $2 && $2 != *[[:cntrl:]]* ]] ||
    wrong "$1 '$(shown "$2")' must be one line of text."
}

quote() { # WORDS...: prints them as a shell reads them.
  local word words=() single="'\\''"
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$single}'" ;;
    esac
    words+=("$word")
  done
  printf '%s' "${words[*]}"
}

generation() { # FIELD TYPE: 1 name, 3 number a chip, 4 runtime, 5 zones.
  local name prefix per_chip runtime zones
  while read -r name prefix per_chip runtime zones; do
    if [ -n "$name" ] && [ "${2%-*}" = "$prefix" ]; then
      set -- "$1" "$2" "$name" "$prefix" "$per_chip" "$runtime" "$zones"
      shift "$(($1 + 1))"
      printf '%s' "$1"
      return
    fi
  done <<<"$GENERATIONS"
  return 1
}

chips() { # TYPE: prints how many chips a slice has; JAX has a device for each.
  echo $((${1##*-} / $(generation 3 "$1")))
}

check_type() { # TYPE
  local size=${1##*-} fine=""
  generation 1 "$1" >/dev/null ||
    wrong "--type '$(shown "$1")' is not known: v4-N and v5p-N (N cores, two a chip), v5litepod-N (v5e) and v6e-N (N chips)."
  check --type "$1" '^[a-z0-9]+-[1-9][0-9]{0,4}$' "v6e-16"
  if [ "$(generation 3 "$1")" = 2 ]; then
    if ((size % 8 == 0)); then fine=1; fi
  else
    case $size in 1 | 4 | 8 | 16 | 32 | 64 | 128 | 256) fine=1 ;; esac
  fi
  [ -n "$fine" ] ||
    wrong "There is no slice $1: v4 and v5p come in multiples of 8 cores, v5litepod and v6e with 1, 4, 8, 16, 32, 64, 128 or 256 chips."
}

# --- gcloud ---------------------------------------------------------------

SAID=$(mktemp "${TMPDIR:-/tmp}/clip_jax_said.XXXXXX") # What it wrote to stderr.
trap 'rm -f "$SAID"' EXIT

needs_gcloud() { # Finds the project, and sets STATE_DIRECTORY, the slice's own.
  local project=${PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}
  if [ -z "$DRY_RUN" ]; then
    command -v gcloud >/dev/null || die \
      "gcloud is not installed, or not on PATH: https://cloud.google.com/sdk/docs/install tells how to get it. --dry-run works without it."
    [ -n "$project" ] || project=$(
      gcloud config get-value project --quiet 2>/dev/null </dev/null
    ) || project=""
    # For scripts that this one calls too, whatever gcloud's own becomes.
    [ -z "$project" ] || export CLOUDSDK_CORE_PROJECT="$project"
  fi
  STATE_DIRECTORY=${XDG_STATE_HOME:-$HOME/.local/state}/clip_jax/tpu_vm
  STATE_DIRECTORY=$STATE_DIRECTORY/${project:-PROJECT}/$ZONE.$NAME
}

cloud() { # WORDS...: runs gcloud in the zone, or prints how it would be run.
  local command=(gcloud "$@" "--zone=$ZONE")
  [ -z "$PROJECT" ] || command+=("--project=$PROJECT")
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "$(quote "${command[@]}")"
    return
  fi
  { "${command[@]}" 2>&1 >&3 3>&- | tee "$SAID" >&2; } 3>&1
}

query() { # WORDS...: prints gcloud's answer; what it says goes to $SAID alone.
  local command=(gcloud "$@" "--zone=$ZONE" --quiet)
  [ -z "$PROJECT" ] || command+=("--project=$PROJECT")
  "${command[@]}" 2>"$SAID" </dev/null
}

or_explain() { # WORDS...: as `cloud`, but ends the script where it fails.
  cloud "$@" || explain $?
}

ssh_words() { # ssh or scp: sets WORDS to gcloud's command.
  WORDS=(compute tpus tpu-vm "$1")
  [ -z "$IAP" ] || WORDS=(alpha "${WORDS[@]}" --tunnel-through-iap)
  [ -z "$INTERNAL_IP" ] || WORDS+=(--internal-ip)
  # A machine that is gone would hold ssh for minutes; gcloud tries ten times.
  [ "$1" = scp ] || WORDS+=(--ssh-flag=-oConnectTimeout=20
    --ssh-flag=-oServerAliveInterval=30)
}

line_on_workers() { # WORKERS LINE: runs a line of a shell on these workers.
  ssh_words ssh
  # Without standard input: ssh would eat it.
  cloud "${WORDS[@]}" "$NAME" "--worker=$1" "--command=$2" </dev/null
}

on_workers() { # WORKERS COMMAND...
  line_on_workers "$1" "$(quote "${@:2}")"
}

NOT_SET_UP="worker.sh: No such file"

is_final_failure() { # Whether the command was understood, but cannot be done.
  grep -q "^Error: \|$NOT_SET_UP" "$SAID"
}

worker_failed() { # CODE: ends the script with what a worker said, or gcloud.
  if grep -q '^Error: ' "$SAID"; then
    die "$(grep -m1 '^Error: ' "$SAID" | sed 's/^Error: //')"
  fi
  explain "$1"
}

copy_to_workers() { # WORKERS FILE TARGET
  ssh_words scp
  or_explain "${WORDS[@]}" "$2" "$NAME:$3" "--worker=$1"
}

explain() { # CODE: ends the script and says what gcloud's words mean.
  local said zones
  # Warnings of quota projects, which gcloud gives whatever fails, tell nothing.
  said=$(grep -v '^WARNING' "$SAID" | sed 's/quota[ _]project//g') || true
  zones="Which zone has what: https://cloud.google.com/tpu/docs/regions-zones"
  if [ -n "${TYPE:-}" ]; then
    zones="Zones with $(generation 1 "$TYPE") include $(generation 5 "$TYPE"). $zones"
  fi
  case $said in
    *"$NOT_SET_UP"*)
      die "Not every worker of '$NAME' is set up. Run: setup.sh $NAME --zone $ZONE${PROJECT:+ --project $PROJECT}" ;;
    *"active account"* | *"gcloud auth login"* | *"auth tokens"* | *eauthentication*)
      die "gcloud is not logged in, or its login has expired. Run: gcloud auth login" ;;
    *"property [project]"* | *"attribute [project]"*)
      die "gcloud knows no project. Give --project ID, or run: gcloud config set project ID" ;;
    *SERVICE_DISABLED* | *"API has not been used"* | *"tpu.googleapis.com"*"not enabled"*)
      die "The project's Cloud TPU API is off. Run: gcloud services enable tpu.googleapis.com" ;;
    *"Invalid choice: 'queued-resources'"*)
      die "This gcloud is too old for queued resources. Run: gcloud components update" ;;
    *"Unable to find the server"* | *"Max retries exceeded"* | *"Name or service not known"* | *"name resolution"*)
      die "Google cannot be reached from this machine. Check the network, then give the same command again." ;;
    *[Bb]illing* | *BILLING_DISABLED*)
      die "The project has no billing account that is open: https://console.cloud.google.com/billing/projects links one." ;;
    *"resource project"* | *"projects instance"* | *CONSUMER_INVALID* | *USER_PROJECT_DENIED*)
      die "The project does not exist, or is closed to this account. Give its ID by --project, or run: gcloud config set project ID" ;;
    *[Qq]uota*)
      die "The project's quota does not allow this in $ZONE (spot and on-demand, each generation and each region or zone have one of their own). Ask for more at https://console.cloud.google.com/iam-admin/quotas (service Cloud TPU API), take a smaller slice, or another zone. $zones" ;;
    *"apacity"* | *RESOURCE_EXHAUSTED*)
      die "There is no room for this in $ZONE now. Try again later, with --spot, a smaller slice or another zone. $zones" ;;
    *"or it may not exist"* | *"nvalid zone"* | *"ocation "*"not found"* | *"ccelerator"*"not found"* | *"nvalid value for"*"zone"*)
      die "Zone '$ZONE' is not known to Cloud TPU, has no such slices, or is closed to this project. $zones" ;;
    *ALREADY_EXISTS*)
      die "There is a '$NAME' in $ZONE already. status.sh shows it; delete.sh removes it." ;;
    *NOT_FOUND* | *"not found"*)
      [ -z "${TYPE:-}" ] ||
        die "Something that was asked for is not in $ZONE of this project, such as the runtime version, the network or the service account; see the words above."
      die "There is no '$NAME' in $ZONE of this project. create.sh makes it; status.sh says how far it is." ;;
    *"terminal state"* | *PREEMPTED*)
      die "'$NAME' was preempted, or is gone for good. run.sh --recreate --yes gets another one; delete.sh removes what is left." ;;
    *PERMISSION_DENIED* | *"ermission"*)
      die "The account may not do that: it needs the role TPU Admin (roles/tpu.admin) in the project, and for ssh Service Account User." ;;
    *"exit status 255"* | *"return code [255]"* | *"timed out"* | *"Connection refused"* | *"Connection closed"*)
      die "$(lost_workers "$said"). It may be starting, rebooting or preempted: status.sh tells. Then give the same command again. (No public address? --internal-ip or --iap.)" ;;
    *)
      die "The command failed with exit code $1; see its words above." ;;
  esac
}

lost_workers() { # TEXT: names the workers that gcloud could not reach.
  local lost
  lost=$(grep -o 'worker [0-9]* failed with exit status 255' <<<"$1" |
    grep -o '[0-9]* failed' | grep -o '[0-9]*' | sort -un | tr '\n' ' ') || true
  if [ -n "$lost" ]; then
    printf 'Cannot reach worker %s' "${lost% }"
  else
    printf 'Cannot reach every worker'
  fi
}

# --- The slice ------------------------------------------------------------

is_missing() { # Whether gcloud has said so of the slice, not of its zone.
  grep -q 'NOT_FOUND\|not found' "$SAID" && ! grep -q 'ocation .*not found' "$SAID"
}

queue_state() { # Prints the queued resource's state; NONE where there is none.
  local state
  if state=$(query compute tpus queued-resources describe "$NAME" \
    "--format=value(state.state)"); then
    printf '%s' "$state"
  elif is_missing; then
    printf NONE
  else
    cat "$SAID" >&2
    return 1
  fi
}

describe_node() { # FORMAT: prints a part of the node, NONE where there is none.
  local answer
  if answer=$(query compute tpus tpu-vm describe "$NAME" "--format=$1"); then
    printf '%s' "$answer"
  elif is_missing; then
    printf NONE
  else
    cat "$SAID" >&2
    return 1
  fi
}

slice_state() { # Prints ready, starting, waiting, failed, gone, absent or node=….
  local queue node
  queue=$(queue_state) || return 1
  case $queue in
    FAILED)
      printf failed
      return
      ;;
    SUSPENDING | SUSPENDED | DELETING)
      printf gone
      return
      ;;
    ACTIVE | NONE) ;;
    *)
      printf waiting
      return
      ;;
  esac
  node=$(describe_node "value(state)") || return 1
  case $node in
    READY) printf ready ;;
    CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING) printf starting ;;
    NONE) if [ "$queue" = NONE ]; then printf absent; else printf gone; fi ;;
    PREEMPTED | TERMINATED | DELETING) printf gone ;;
    # Not for certain gone: what may be there is never deleted for another one.
    *) printf 'node=%s' "${node:-without a state}" ;;
  esac
}

delete_slice() { # Ends the script where there is nothing to delete.
  local queue node
  queue=$(queue_state) || explain $?
  if [ "$queue" != NONE ]; then
    or_explain compute tpus queued-resources delete "$NAME" --force --quiet
  else # Made by hand, without a queue.
    node=$(describe_node "value(state)") || explain $?
    [ "$node" != NONE ] ||
      die "There is no '$NAME' in $ZONE of this project: nothing to delete, and nothing is billed for it."
    or_explain compute tpus tpu-vm delete "$NAME" --quiet
  fi
}

why_failed() { # Prints what Google says of a queued resource that failed.
  query compute tpus queued-resources describe "$NAME" \
    "--format=value(state.failedData.error.message)" || true
}

wait_until_ready() { # Ends the script where the slice will never be ready.
  local state before=""
  while true; do
    state=$(slice_state) || explain $?
    if [ "$state" != "$before" ]; then
      case $state in
        ready) return ;;
        waiting) say "'$NAME' waits in the queue for free chips; nothing is billed yet. It stays there when this script is stopped." ;;
        starting) say "'$NAME' is starting." ;;
        failed) die "The request for '$NAME' failed: $(why_failed) It never starts now. Remove it (delete.sh $NAME --zone $ZONE --yes), then create it anew, perhaps smaller, in another zone or with --spot." ;;
        gone) die "'$NAME' was preempted, or is being deleted. run.sh --recreate --yes gets another one; delete.sh removes what is left." ;;
        absent) die "There is no '$NAME' in $ZONE of this project. create.sh makes it." ;;
        node=*) die "'$NAME' is neither ready nor gone: its node is $(shown "${state#node=}"). Give the same command again in a while; a STOPPED one is started by: gcloud compute tpus tpu-vm start $NAME --zone=$ZONE. delete.sh removes it." ;;
      esac
      before=$state
    fi
    sleep "$POLL_SECONDS"
  done
}

remember() { # FILE WORDS...: keeps the arguments of a script, one a line.
  local file=$1
  shift
  [ -z "$DRY_RUN" ] || return 0
  mkdir -p "$STATE_DIRECTORY"
  printf '%s\n' "$@" >"$STATE_DIRECTORY/$file"
}
