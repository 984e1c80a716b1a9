#!/usr/bin/env bash
# Requests Cloud TPU slices as one queued resource, and records that it did.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'USAGE'
create.sh NAME --project P --zone Z --accelerator-type T --runtime-version V (--spot | --reserved | --on-demand)

Requests TPUs as the queued resource NAME. THEY COST MONEY from the moment the request is granted until
delete.sh has deleted it, whether or not anything runs on them.

  --project P              Google Cloud project
  --zone Z                 zone, such as us-west4-a
  --accelerator-type T     such as v5litepod-16, v5p-512, v6e-256
  --runtime-version V      TPU software version, such as v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
  --spot                   cheaper; may be taken away at any time
  --reserved               from the project's reservation
  --on-demand              neither
  --slices N               several slices in one request (multi-slice); default 1
  --valid-until-duration D give up when the request is not granted in this time, such as 6h; default: never
  --network N, --subnetwork N, --service-account A
                           as for gcloud compute tpus queued-resources create
  --dry-run                print the commands, run nothing, write nothing
  --help                   this text

The record goes to $ATTNJAX_STATE, or else ~/.local/state/attnjax.
USAGE
}

parse_options "project zone accelerator-type runtime-version slices valid-until-duration network subnetwork service-account" \
  "spot reserved on-demand" "$@"
take_name
need project zone accelerator-type runtime-version
check --project "${opt[project]}" '^[a-z][a-z0-9.:-]{4,62}[a-z0-9]$' "a project id: lower case letters, digits, hyphens"
check --zone "${opt[zone]}" '^[a-z]+(-[a-z]+)*[0-9]*-[a-z0-9]+$' "a zone such as us-west4-a"
check --accelerator-type "${opt[accelerator-type]}" '^[a-z0-9]+-[0-9]+$' "such as v5litepod-16"
check --runtime-version "${opt[runtime-version]}" '^[a-z0-9][a-z0-9.-]*$' "lower case letters, digits, points, hyphens"
: "${opt[slices]:=1}"
check_number slices 1 999

tiers="${opt[spot]:+--spot }${opt[reserved]:+--reserved }${opt[on-demand]:+--on-demand }"
case $tiers in
  "--spot " | "--reserved ") tier=("${tiers% }") ;;
  "--on-demand ") tier=() ;;
  *) die 2 "choose one of --spot, --reserved, --on-demand; got: ${tiers:-none}" ;;
esac

nodes=(--node-id="$name")
((opt[slices] == 1)) || nodes=(--node-count="${opt[slices]}" --node-prefix="$name")
extra=()
for option in valid-until-duration network subnetwork service-account; do
  [[ ! ${opt[$option]:-} ]] || extra+=("--$option=${opt[$option]}")
done

token=$(new_token)
if [[ ! ${opt[dry-run]:-} ]]; then
  # Written first: whatever stops this script, what it created can be found and deleted.
  write_record tpu "$name" "token=$token" "project=${opt[project]}" "zone=${opt[zone]}" "slices=${opt[slices]}" \
    "accelerator_type=${opt[accelerator-type]}" "created=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
fi
run gcloud compute tpus queued-resources create "$name" --project="${opt[project]}" --zone="${opt[zone]}" \
  "${nodes[@]}" --accelerator-type="${opt[accelerator-type]}" --runtime-version="${opt[runtime-version]}" \
  "${tier[@]}" "${extra[@]}" --labels="attnjax_token=$token" || {
  code=$?
  echo "create.sh: gcloud failed with code $code. Part of $name may exist, and may be billed.
Look with:     $(quote "$here/watch.sh" "$name")
Delete it with: $(quote "$here/delete.sh" "$name")
If nothing exists, forget the record: $(quote rm -- "$(record_path tpu "$name")")" >&2
  exit "$code"
}
[[ ${opt[dry-run]:-} ]] || echo "requested; wait for ACTIVE: $(quote "$here/watch.sh" "$name")"
