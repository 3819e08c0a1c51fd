#!/usr/bin/env bash
# Asks Google for a TPU slice, by a queued resource.
# shellcheck source-path=SCRIPTDIR source=library.sh
. "$(dirname "${BASH_SOURCE[0]}")/library.sh"

usage() {
  cat <<END
Usage: create.sh NAME --zone ZONE --type TYPE [--spot] --yes

Asks for a TPU slice by a queued resource: Google starts it once chips are free
and bills from then on, until delete.sh. status.sh --wait waits for it.

$COMMON_HELP
  --type TYPE          v4-N or v5p-N (N cores, two a chip), v5litepod-N (v5e) or
                       v6e-N (N chips)
  --spot               cheaper, and may be taken away at any time
  --runtime-version V  default: Google's for the type's generation
  --valid-until TIME   give up if it has not started by then, such as 6h
  --network NET, --subnetwork NET, --service-account ACCOUNT
  --internal-ips       workers without public addresses (they need Cloud NAT to
                       install packages)
  --yes                yes, this costs money
END
}

TYPE="" SPOT="" RUNTIME="" VALID_UNTIL="" NETWORK="" SUBNETWORK="" ACCOUNT=""
INTERNAL_IPS=""
parse "--type=TYPE --runtime-version=RUNTIME --valid-until=VALID_UNTIL
  --network=NETWORK --subnetwork=SUBNETWORK --service-account=ACCOUNT" \
  "--spot=SPOT --internal-ips=INTERNAL_IPS --yes=YES" "$@"
[ ${#REST[@]} = 0 ] || wrong "Nothing goes after --."
[ -n "$TYPE" ] || wrong "Give --type."
case $TYPE in v5e-*) TYPE=v5litepod-${TYPE#v5e-} ;; esac
check_type "$TYPE"
RUNTIME=${RUNTIME:-$(generation 4 "$TYPE")}
check --runtime-version "$RUNTIME" '^[a-z0-9][-a-z0-9.]*$' v2-alpha-tpuv6e

command=(compute tpus queued-resources create "$NAME" "--node-id=$NAME"
  "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME")
[ -z "$SPOT" ] || command+=(--spot)
if [ -n "$VALID_UNTIL" ]; then
  check --valid-until "$VALID_UNTIL" '^[1-9][0-9]*[smhd]$' 6h
  command+=("--valid-until-duration=$VALID_UNTIL")
fi
name_pattern='^[A-Za-z0-9][-A-Za-z0-9_./]*$'
if [ -n "$NETWORK" ]; then
  check --network "$NETWORK" "$name_pattern" default
  command+=("--network=$NETWORK")
fi
if [ -n "$SUBNETWORK" ]; then
  check --subnetwork "$SUBNETWORK" "$name_pattern" default
  command+=("--subnetwork=$SUBNETWORK")
fi
if [ -n "$ACCOUNT" ]; then
  check --service-account "$ACCOUNT" '^[a-z0-9][-a-z0-9.]*@[-a-z0-9.]+$' \
    trainer@my-project.iam.gserviceaccount.com
  command+=("--service-account=$ACCOUNT")
fi
[ -z "$INTERNAL_IPS" ] || command+=(--internal-ips)

n=$(chips "$TYPE")
if [ -z "$DRY_RUN$YES" ]; then
  wrong "This costs money: $TYPE, $n chip$([ "$n" = 1 ] || echo s)${SPOT:+, spot}, billed from its start until delete.sh. Give --yes, or --dry-run to see the command."
fi
needs_gcloud
or_explain "${command[@]}"
remember create "$@"
[ -n "$DRY_RUN" ] ||
  say "Asked for '$NAME' ($TYPE). Next: status.sh $NAME --zone $ZONE${PROJECT:+ --project $PROJECT} --wait"
