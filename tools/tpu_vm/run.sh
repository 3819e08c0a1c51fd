#!/usr/bin/env bash
# Trains on a slice, follows worker 0's log, and starts again where that helps.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: run.sh NAME --zone ZONE --workdir DIR [--recreate --yes] -- ARGUMENTS
       run.sh NAME --zone ZONE --stop

Starts "clip-jax train --distributed --workdir DIR ARGUMENTS" on all workers and
shows worker 0's log. A supervisor on each worker starts it again where that
helps (exit codes 75 and 143, and signals). This script starts it again where
workers were lost, and with --recreate it asks for another slice after a
preemption and sets that up. The run goes on from its last checkpoint. It does
not need this script, which Ctrl-C ends: the same command follows it again.

$COMMON_HELP
$SSH_HELP
  --workdir DIR        gs://BUCKET/FOLDER, or an absolute path that all workers
                       see
  --restarts N         give up after N restarts in a row without a new
                       checkpoint (default 5)
  --detach             start the run and return
  --stop               stop the run; it saves first
  --recreate           after a preemption, create and set up the slice again, as
                       create.sh and setup.sh did here; this costs money
  --yes                yes, this costs money

For example, from a checkout:
  run.sh my-slice --zone us-east5-b --workdir gs://my-bucket/runs/1 -- \\
    --config configs/vit_b32.py \\
    --config.data.train='wds:gs://my-bucket/data/{000..331}.tar'

Exit codes: 0 trained; 1 and 2 those of clip-jax, or what cannot be done here;
75 gave up, or the slice is gone; 130 not followed any more; 143 stopped.
END
}

WORKDIR="" RESTARTS=5 DETACH="" STOP="" RECREATE=""
parse "--workdir=WORKDIR --restarts=RESTARTS" \
  "$SSH_SWITCHES --detach=DETACH --stop=STOP --recreate=RECREATE --yes=YES" "$@"
if [ -n "$STOP" ]; then
  [ ${#REST[@]} = 0 ] || wrong "--stop takes no training arguments."
  needs_gcloud
  on_workers all bash "$WORKER" stop || worker_failed $?
  [ -n "$DRY_RUN" ] || say "Stopped the run on '$NAME'. The slice is still there, and billed."
  exit
fi
[ -n "$WORKDIR" ] || wrong "Give --workdir."
check --workdir "$WORKDIR" '^(/|(gs|s3)://[a-z0-9][-a-z0-9_.]+/.)' \
  gs://my-bucket/runs/1
check_text --workdir "$WORKDIR"
check --restarts "$RESTARTS" '^[0-9]{1,4}$' 5
[ ${#REST[@]} != 0 ] || wrong "Give the arguments of clip-jax train after --."
for word in "${REST[@]}"; do
  [ -z "$word" ] || check_text "The training argument" "$word"
  case $word in
    --workdir | --workdir=*) wrong "Give --workdir before the --." ;;
    --distributed | --coordinator* | --process*)
      wrong "Leave $word out: the workers find each other." ;;
  esac
done
[ -z "$RECREATE" ] || [ -n "$DRY_RUN$YES" ] ||
  wrong "--recreate costs money: it asks for a new slice after each preemption. Give --yes too."
[ -z "$RECREATE" ] || [ -z "$DETACH" ] ||
  wrong "--recreate needs this script to stay: leave out --detach."
needs_gcloud

# Starts in a row without a new checkpoint, and what the last one saw.
starts=0 checkpoint=unknown

start() { # Ends the script where more starts would not help.
  local token seen
  token=$(date -u +%Y%m%dT%H%M%SZ).$$
  if [ -n "$DRY_RUN" ]; then
    on_workers 0 bash "$WORKER" mark "$WORKDIR" "$token"
  else
    seen=$(on_workers 0 bash "$WORKER" mark "$WORKDIR" "$token") || return 1
    seen=$(grep '^checkpoint=' <<<"$seen")
    if [ "$seen" != "$checkpoint" ]; then starts=0; fi
    checkpoint=$seen
    starts=$((starts + 1))
    [ "$starts" -le $((RESTARTS + 1)) ] || die \
      "$RESTARTS new starts in a row brought no checkpoint: giving up. What the run has saved is in $WORKDIR." 75
  fi
  on_workers all bash "$WORKER" start "$WORKDIR" "$token" "$RESTARTS" "${REST[@]}"
}

follow() { on_workers 0 bash "$WORKER" follow; }

if [ -n "$DRY_RUN" ]; then
  start
  [ -n "$DETACH" ] || follow
  [ -n "$DETACH" ] || on_workers all bash "$WORKER" result
  exit
fi

saved() { # FILE: sets SAVED to the arguments that a script was given.
  local line
  SAVED=()
  [ -s "$STATE_DIRECTORY/$1" ] || die \
    "Nothing is known of how '$NAME' was made, or delete.sh was told to delete it: --recreate needs a slice that create.sh and setup.sh of this machine made."
  while IFS= read -r line; do SAVED+=("$line"); done <"$STATE_DIRECTORY/$1"
}

recreate() { # STATE
  local queue node
  if [ -z "$RECREATE" ]; then
    die "'$NAME' was preempted, or is gone. The run's last checkpoint is in $WORKDIR; the same command with --recreate --yes goes on from there on a new slice." 75
  fi
  say "'$NAME' was preempted, or is gone: getting another one."
  while true; do # What is being taken away cannot be deleted yet.
    queue=$(queue_state) || explain $?
    case $queue in SUSPENDING | DELETING) sleep "$POLL_SECONDS" ;; *) break ;; esac
  done
  if [ -n "$ran" ] && [ "$queue" = NONE ]; then
    # What is preempted is still there: somebody has deleted this one.
    node=$(describe_node "value(state)") || explain $?
    [ "$node" != NONE ] || deleted
  fi
  saved create
  local created=("${SAVED[@]}")
  saved setup
  touch "$STATE_DIRECTORY/recreating" # delete.sh removes it.
  [ "$queue" = NONE ] && [ "$1" = absent ] || delete_slice
  [ -e "$STATE_DIRECTORY/recreating" ] || deleted
  "$HERE/create.sh" "${created[@]}"
  if [ ! -e "$STATE_DIRECTORY/recreating" ]; then # Told while it was made.
    "$HERE/delete.sh" "${again[@]}" --yes
    deleted
  fi
  "$HERE/setup.sh" "${SAVED[@]}"
}

deleted() { # Ends the script.
  die "'$NAME' was deleted, not preempted: no other one is made. The run's last checkpoint is in $WORKDIR." 75
}

ensure_ready() { # Returns with a slice that is ready.
  local state
  state=$(slice_state) || explain $?
  case $state in
    gone | absent) recreate "$state" ;;
    *) wait_until_ready ;;
  esac
}

judge() { # RESULTS: prints running, ending, lost, trained or a code.
  local line code worst=0
  if grep -q 'run=absent' <<<"$1"; then
    echo lost
  elif grep -q '^worker=0 run=running' <<<"$1"; then
    echo running
  elif grep -q 'run=running' <<<"$1"; then
    echo ending
  elif [ "$(grep -c . <<<"$1")" -lt "$workers" ]; then
    echo lost
  else
    while read -r line; do
      code=${line##*code=}
      # A code that a restart does not mend says more than the others'.
      if [ "$code" != 0 ] && { [ "$worst" = 0 ] || is_final "$code"; }; then
        worst=$code
      fi
    done <<<"$1"
    if [ "$worst" = 0 ]; then echo trained; else echo "$worst"; fi
  fi
}

is_final() { # CODE: whether supervise.sh does not start again after it.
  [ "$1" = 130 ] || { [ "$1" -le 128 ] && [ "$1" != 75 ]; }
}

follower="" # The process group that shows worker 0's log.
goes_on=""  # Whether the run is under way.

unfollow() {
  [ -n "$follower" ] || return 0
  kill -TERM -- "-$follower" 2>/dev/null || true
  { wait "$follower"; } 2>/dev/null || true
  follower=""
}

saved_project=()
[ -z "$PROJECT" ] || saved_project=(--project "$PROJECT")
again=("$NAME" --zone "$ZONE" ${saved_project[@]+"${saved_project[@]}"})

leave() {
  unfollow
  say ""
  if [ -n "$goes_on" ]; then
    say "Not following any more; the run goes on. The same command follows it again, run.sh --stop stops it."
  else
    say "Ended before the run could be followed; the same command goes on. status.sh ${again[*]} tells what is there, and may be billed."
  fi
  exit 130
}
trap leave INT TERM

watch() { # Follows the run to its end; sets RESULTS and VERDICT.
  local waited=0 ticks state
  VERDICT=running
  while true; do
    if [ "$VERDICT" = running ] && [ -z "$follower" ]; then
      set -m # In a group of its own, so that all of it can be ended.
      follow &
      follower=$!
      set +m
    fi
    # Asks the workers when the log ends, and now and then: the others wait five
    # minutes for one that has lost its run.
    ticks=0
    while [ "$ticks" -lt "$CHECK_SECONDS" ] && [ -n "$follower" ]; do
      kill -0 "$follower" 2>/dev/null || follower=""
      sleep 1
      ticks=$((ticks + 1))
    done
    # Without what gcloud says of each connection.
    RESULTS=$(on_workers all bash "$WORKER" result 2>/dev/null) || true
    RESULTS=$(grep '^worker=' <<<"$RESULTS") || true
    VERDICT=$(judge "$RESULTS")
    case $VERDICT in
      running)
        if [ "$(grep -c . <<<"$RESULTS")" -lt "$workers" ]; then
          state=$(slice_state) || explain $?
          if [ "$state" != ready ]; then
            VERDICT=lost
            break
          fi
        fi
        ;;
      ending)
        waited=$((waited + 1))
        if [ "$waited" -gt 20 ]; then on_workers all bash "$WORKER" stop || true; fi
        sleep "$POLL_SECONDS"
        ;;
      *) break ;;
    esac
  done
  unfollow
}

workers=1 unreached=0 ran=""
while true; do
  goes_on=""
  ensure_ready
  workers=$(describe_node "value(networkEndpoints.len())") || explain $?
  say "Starting the run on $workers worker(s)."
  if ! start; then
    if is_final_failure; then worker_failed 1; fi
    unreached=$((unreached + 1))
    [ "$unreached" -le $((4 * RESTARTS)) ] || explain 255
    say "$(lost_workers "$(cat "$SAID")"); trying again in $POLL_SECONDS s."
    sleep "$POLL_SECONDS"
    continue
  fi
  unreached=0 ran=1 goes_on=1
  if [ -n "$DETACH" ]; then
    say "Started. status.sh ${again[*]} --logs follows it, run.sh ${again[*]} --stop stops it."
    exit
  fi
  watch
  [ -z "$RESULTS" ] || printf '%s\n' "$RESULTS" >&2
  case $VERDICT in
    trained)
      say "Trained: $WORKDIR. The slice is still there, and billed: delete.sh ${again[*]} --yes"
      exit
      ;;
    lost)
      say "Not every worker has the run any more."
      state=$(slice_state) || explain $?
      if [ "$state" = ready ]; then
        on_workers all bash "$WORKER" stop || true
        sleep "$POLL_SECONDS"
      fi
      ;;
    143) die "The run was stopped, and has saved. The same command goes on with it." 143 ;;
    *)
      if is_final "$VERDICT"; then
        die "The run ended with exit code $VERDICT; its log above says why. A restart does not mend it." "$VERDICT"
      fi
      die "The run ended with exit code $VERDICT, and $RESTARTS restarts brought no new checkpoint; see its log above." 75
      ;;
  esac
done
