#!/usr/bin/env bash
# Brings this checkout, Python and all packages to the workers of a slice.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: setup.sh NAME --zone ZONE [--mount gs://BUCKET=DIR]

Copies this checkout (with what is not committed, without what git ignores) to
all workers; installs Python by uv, and the same versions of all packages
everywhere; then checks that every worker sees the whole slice. Do it again
after changes.

$COMMON_HELP
$SSH_HELP
  --python VERSION     default: 3.12
  --extra NAME         of this package: tpu, the default
  --lock FILE          versions to install; if it is not there, worker 0
                       chooses them and it is written (default: one for each
                       slice, in ~/.local/state/clip_jax/tpu_vm, kept until
                       setup.cfg, --python or --extra change)
  --mount gs://B=DIR   mount bucket B on DIR of all workers (gcsfuse): for data
                       that are copied otherwise, and larger than a disk
END
}

PYTHON=3.12 EXTRA=tpu LOCK="" MOUNT=""
parse "--python=PYTHON --extra=EXTRA --lock=LOCK --mount=MOUNT" \
  "$SSH_SWITCHES" "$@"
[ ${#REST[@]} = 0 ] || wrong "Nothing goes after --."
check --python "$PYTHON" '^3\.1[1-9](\.[0-9]+)?$' "3.12 (3.11 is the oldest)"
check --extra "$EXTRA" '^[a-z][a-z0-9]*$' tpu
arguments=("$@")
if [ -n "$LOCK" ]; then
  check_text --lock "$LOCK"
  # A run.sh --recreate, which gives them again, may be somewhere else.
  case $LOCK in /*) ;; *) LOCK=$PWD/$LOCK ;; esac
  arguments=("$@" --lock "$LOCK")
fi
if [ -n "$MOUNT" ]; then
  check --mount "$MOUNT" '^gs://[a-z0-9][-a-z0-9_.]+[a-z0-9]=/[A-Za-z0-9_./-]+$' \
    gs://my-bucket=/mnt/bucket
fi
needs_gcloud
if [ -z "$LOCK" ]; then
  # Another one where what is asked for has changed.
  asked=$(printf '%s\n' "$PYTHON" "$EXTRA" | cat - "$CHECKOUT/setup.cfg" | cksum)
  LOCK=$STATE_DIRECTORY/lock-${asked%% *}.txt
fi

folder=${TMPDIR:-/tmp}
if [ -z "$DRY_RUN" ]; then
  folder=$(mktemp -d "$folder/clip_jax_setup.XXXXXX")
  trap 'rm -rf "$SAID" "$folder"' EXIT
fi
archive=$folder/$REMOTE_CHECKOUT.tar.gz

size=""
pack() {
  git -C "$CHECKOUT" rev-parse --git-dir >/dev/null 2>&1 ||
    die "$CHECKOUT is no git checkout; clone the repository first."
  # A file that is deleted, but still in git's index, is left out; so are the
  # files ._NAME that macOS would add.
  (
    cd "$CHECKOUT"
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        if [ -e "$file" ]; then printf '%s\0' "$file"; fi
      done | COPYFILE_DISABLE=1 tar --null --files-from=- -czf "$archive"
  ) || die "The checkout cannot be packed; see above."
}

# One line of a shell, for workers that have no checkout yet. A run goes on with
# the files that it was started with.
unpack="if grep -qs supervise.sh /proc/\$(cat clip_jax_run/pid 2>/dev/null || echo none)/cmdline; \
then echo 'Error: A run is under way; run.sh --stop stops it.' >&2; exit 1; fi; \
rm -rf $REMOTE_CHECKOUT && mkdir $REMOTE_CHECKOUT && \
tar -xzf $REMOTE_CHECKOUT.tar.gz -C $REMOTE_CHECKOUT"

remote() { # WORKERS WHAT COMMAND...: runs a step of worker.sh
  local workers=$1 what=$2
  shift 2
  say "$what"
  on_workers "$workers" bash "$WORKER" "$@" || worker_failed $?
}

if [ -z "$DRY_RUN" ]; then
  wait_until_ready
  node=$(describe_node \
    "value[separator=' '](acceleratorType,networkEndpoints.len())") ||
    explain $?
  read -r type workers <<<"$node"
  say "'$NAME' is ready: $type, $workers worker(s)."
  pack
  size=$(du -h "$archive" | cut -f 1)
fi
say "Copying the checkout${size:+ ($size packed)}."
copy_to_workers all "$archive" "$REMOTE_CHECKOUT.tar.gz"
line_on_workers all "$unpack" || worker_failed $?
if [ ! -s "$LOCK" ]; then
  remote 0 "Choosing versions on worker 0." lock "$PYTHON" "$EXTRA"
  [ -n "$DRY_RUN" ] || mkdir -p "$(dirname "$LOCK")"
  ssh_words scp
  or_explain "${WORDS[@]}" "$NAME:$REMOTE_LOCK" "$LOCK" --worker=0
fi
copy_to_workers all "$LOCK" "$REMOTE_LOCK"
remote all "Installing Python $PYTHON and $LOCK." install "$PYTHON"
if [ -n "$MOUNT" ]; then
  bucket=${MOUNT#gs://}
  remote all "Mounting $MOUNT." mount "${bucket%%=*}" "${MOUNT#*=}"
fi
say "Checking that every worker sees the whole slice."
if [ -n "$DRY_RUN" ]; then
  on_workers all bash "$WORKER" check
  exit
fi
seen=$(on_workers all bash "$WORKER" check) || {
  code=$?
  printf '%s\n' "$seen" >&2
  worker_failed "$code"
}
seen=$(grep '^worker=[0-9]* workers=' <<<"$seen" | sort -t= -k2 -n) || true
printf '%s\n' "$seen"

field() { # NAME: prints its different values, one a line.
  sed -n "s/.* $1=\([^ ]*\).*/\1/p" <<<"$seen" | sort -u
}
answers=$(grep -c . <<<"$seen") || true
[ "$answers" = "$workers" ] ||
  die "$answers of $workers workers answered. A missing one may be rebooting: status.sh tells. Then run setup.sh again."
wanted=$(chips "$type") || die "The type '$type' is not known."
[ "$(field devices)" = "$wanted" ] ||
  die "A $type has $wanted chips, but workers see $(field devices | tr '\n' ' ')of them. Is another program using the TPU (run.sh --stop)? Otherwise delete the slice and create it anew."
[ "$(field versions | grep -c .)" = 1 ] ||
  die "The workers have different versions. Run setup.sh again; if that does not help, remove ~/clip_jax_venv there."
remember setup "${arguments[@]}"
say "All $workers worker(s) see all $wanted devices, with the same versions. Next: run.sh $NAME --zone $ZONE${PROJECT:+ --project $PROJECT} --workdir DIR -- --config FILE"
