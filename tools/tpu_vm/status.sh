#!/usr/bin/env bash
# Shows a TPU slice and the run on it.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: status.sh NAME --zone ZONE [--wait | --logs]

Shows the state of a slice and, where it is ready, of the run on each worker.

$COMMON_HELP
$SSH_HELP
  --wait               return once the slice is ready; fail if it never will be
  --logs               show worker 0's log as it grows, until Ctrl-C
END
}

WAIT="" LOGS=""
parse "" "$SSH_SWITCHES --wait=WAIT --logs=LOGS" "$@"
[ ${#REST[@]} = 0 ] || wrong "Nothing goes after --."
[ -z "$WAIT" ] || [ -z "$LOGS" ] || wrong "Give --wait or --logs, not both."
needs_gcloud

if [ -n "$DRY_RUN" ]; then
  cloud compute tpus queued-resources describe "$NAME" \
    "--format=value(state.state)" --quiet
  cloud compute tpus tpu-vm describe "$NAME" "--format=value(state)" --quiet
  if [ -n "$LOGS" ]; then
    on_workers 0 bash "$WORKER" follow
  elif [ -z "$WAIT" ]; then
    on_workers all bash "$WORKER" result
  fi
  exit
fi

if [ -n "$WAIT" ]; then
  wait_until_ready
  say "'$NAME' is ready. Next: setup.sh $NAME --zone $ZONE${PROJECT:+ --project $PROJECT}"
  exit
fi
state=$(slice_state) || explain $?
if [ "$state" = ready ]; then
  node=$(describe_node \
    "value[separator=' '](acceleratorType,networkEndpoints.len(),health)") ||
    explain $?
  read -r type workers health <<<"$node"
  printf '%s: ready, %s, %s worker(s)%s\n' "$NAME" "$type" "$workers" \
    "${health:+, health $health}"
  if [ -n "$LOGS" ]; then
    on_workers 0 bash "$WORKER" follow || worker_failed $?
  else
    on_workers all bash "$WORKER" result || worker_failed $?
  fi
else
  printf '%s: %s\n' "$NAME" "$state"
  [ "$state" != failed ] || printf '%s\n' "$(why_failed)"
  [ -z "$LOGS" ] || die "There is no log to show: '$NAME' is not ready."
fi
