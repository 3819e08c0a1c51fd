#!/usr/bin/env bash
# Deletes a TPU slice, or a request for one: nothing is billed any more.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: delete.sh NAME --zone ZONE --yes

Deletes a queued resource with its slice and the disks of its workers. What lies
in a bucket stays. A run.sh --recreate of this machine gets no other slice.

$COMMON_HELP
  --yes                yes, delete it
END
}

parse "" "--yes=YES" "$@"
[ ${#REST[@]} = 0 ] || wrong "Nothing goes after --."
[ -n "$DRY_RUN$YES" ] ||
  wrong "This deletes '$NAME' and the disks of its workers. Give --yes, or --dry-run to see the command."
needs_gcloud

if [ -n "$DRY_RUN" ]; then
  cloud compute tpus queued-resources delete "$NAME" --force --quiet
  exit
fi
# First, so that no run.sh --recreate takes the slice for preempted.
rm -f "$STATE_DIRECTORY/create" "$STATE_DIRECTORY/recreating"
delete_slice
say "Deleted '$NAME'."
