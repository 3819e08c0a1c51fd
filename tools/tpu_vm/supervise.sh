#!/usr/bin/env bash
# Runs a command again for as long as a new start can mend how it ended.
set -uo pipefail

usage() {
  cat <<END
Usage: supervise.sh [--restarts N] [--pause SECONDS] [--progress WORKDIR]
                    [--code FILE] [--stopped FILE] -- COMMAND...

Runs COMMAND, a "clip-jax train …", and again where it ended with

  75       another process of the run is gone
  143      it was told to stop by SIGTERM, somewhere else, and has saved
  128+N    a signal killed it: out of memory, a crash, a lost machine

Other codes end the supervisor too: 0 is done, 1 an error and 2 wrong usage, which
a restart does not mend, 130 Ctrl-C. SIGTERM to the supervisor goes to COMMAND, and
is the end.

  --restarts N      give up after N restarts in a row without a new checkpoint
                    (default 5)
  --pause SECONDS   before a restart (default 10)
  --progress WORKDIR  of the run, also in a bucket
  --code FILE       write the last exit code there
  --stopped FILE    whoever stops the run makes this file first. SIGTERM without
                    it comes from a machine that goes down: no code that a
                    restart mends is written then, for the run is not ended
END
}

restarts=5 pause=10 progress="" code_file="" stopped=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --restarts | --pause | --progress | --code | --stopped)
      if [ $# -lt 2 ]; then
        echo "Error: $1 takes a value." >&2
        exit 2
      fi
      case $1 in
        --restarts) restarts=$2 ;;
        --pause) pause=$2 ;;
        --progress) progress=$2 ;;
        --code) code_file=$2 ;;
        --stopped) stopped=$2 ;;
      esac
      shift 2
      ;;
    --)
      shift
      break
      ;;
    *)
      echo "Error: Unknown flag '$1'. See supervise.sh --help." >&2
      exit 2
      ;;
  esac
done
if [[ $# = 0 || ! $restarts =~ ^[0-9]+$ || ! $pause =~ ^[0-9]+$ ]]; then
  usage >&2
  exit 2
fi

say() { echo "supervise: $(date -u +%FT%TZ) $*" >&2; }

is_final() { # CODE: whether a restart does not mend it.
  [ "$1" = 130 ] || { [ "$1" -le 128 ] && [ "$1" != 75 ]; }
}

finish() { # CODE
  if [ -n "$told" ] && [ -n "$stopped" ] && [ ! -e "$stopped" ] &&
    ! is_final "$1"; then
    say "nobody stopped the run: the machine goes down."
  elif [ -n "$code_file" ]; then
    echo "$1" >"$code_file.new" && mv "$code_file.new" "$code_file"
  fi
  exit "$1"
}

newest() { # The run's last checkpoint.
  [ -z "$progress" ] || bash "$(dirname "${BASH_SOURCE[0]}")/newest.sh" "$progress"
}

child="" told=""
trap 'told=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
in_a_row=0 before=-1
while true; do
  # Where a bucket does not answer, the last one that was found.
  found=$(newest) && before=${found:--1}
  "$@" &
  child=$!
  [ -z "$told" ] || kill -TERM "$child" 2>/dev/null # Told a moment ago.
  while true; do # A trapped signal ends `wait` before the command ends.
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  child=""
  if [ -n "$told" ]; then
    say "told to stop; the command ended with $code."
    finish "$code"
  fi
  case $code in
    0) finish 0 ;;
    75) why="another process of the run is gone" ;;
    143) why="it was told to stop, and has saved" ;;
    130) finish 130 ;;
    *)
      if [ "$code" -le 128 ]; then
        say "the command ended with $code, which a restart does not mend."
        finish "$code"
      fi
      why="signal $((code - 128)) killed it"
      ;;
  esac
  in_a_row=$((in_a_row + 1))
  found=$(newest) && [ "${found:--1}" -gt "$before" ] && in_a_row=1
  if [ "$in_a_row" -gt "$restarts" ]; then
    say "$why (exit code $code), and $restarts restarts brought no checkpoint: giving up."
    finish "$code"
  fi
  say "$why (exit code $code); starting again in $pause s."
  sleep "$pause" &
  wait $!
  if [ -n "$told" ]; then finish 143; fi
done
