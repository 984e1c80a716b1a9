#!/usr/bin/env bash
# Deletes a queued resource and its TPUs, if create.sh made it.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
delete.sh NAME

Deletes the queued resource NAME with its nodes AND THE FILES ON THEIR DISKS: fetch.sh first. Refuses unless
there is a record of NAME on this machine and the resource itself carries the label that create.sh gave it.

  --yes      do not ask (gcloud asks otherwise)
  --dry-run  print the commands, run nothing, change nothing
  --help     this text
USAGE
}

parse_options "" "yes" "$@"
take_name
find_slices
only_ours tpu "$name" "${record[token]}" gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
  "--format=value(tpu.nodeSpec[0].node.labels.attnjax_token)"
run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force ${opt[yes]:+--quiet}
[[ ${opt[dry-run]:-} ]] || rm -- "$(record_path tpu "$name")"
