#!/usr/bin/env bash
# Deletes a TPU slice, or a request for one: nothing is billed any more.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: delete.sh NAME --zone ZONE --yes

Deletes a queued resource with its slice and the disks of its workers. What lies
in a bucket stays.

$COMMON_HELP
  --yes                yes, delete it
END
}

parse "" "--yes=YES" "$@"
[ ${#REST[@]} = 0 ] || wrong "Nothing goes after --."
[ -n "$DRY_RUN$YES" ] ||
  wrong "This deletes '$NAME' and the disks of its workers. Give --yes, or --dry-run to see the command."
needs_gcloud

delete_queue=(compute tpus queued-resources delete "$NAME" --force --quiet)
if [ -n "$DRY_RUN" ]; then
  cloud "${delete_queue[@]}"
  exit
fi
queue=$(queue_state) || explain $?
if [ "$queue" != NONE ]; then
  or_explain "${delete_queue[@]}"
else # Made by hand, without a queue.
  node=$(describe_node "value(state)") || explain $?
  [ "$node" != NONE ] ||
    die "There is no '$NAME' in $ZONE of this project: nothing to delete, and nothing is billed for it."
  or_explain compute tpus tpu-vm delete "$NAME" --quiet
fi
say "Deleted '$NAME'."
