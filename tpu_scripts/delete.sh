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

describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}"
  "--format=value(tpu.nodeSpec[0].node.labels.attnjax_token)")
if [[ ${opt[dry-run]:-} ]]; then
  run "${describe[@]}"
  echo "# and only if that prints ${record[token]}:"
else
  found=$("${describe[@]}") || {
    code=$?
    echo "delete.sh: could not look at $name; nothing was deleted. If gcloud says that it does not exist, forget the
record: $(quote rm -- "$(record_path tpu "$name")")" >&2
    exit "$code"
  }
  [[ $found == "${record[token]}" ]] || die 1 "refused: $name does not carry the label that create.sh gave it
(expected attnjax_token=${record[token]}, found $(quote "${found:-none}")), so something else by that name is there.
If it is yours, delete it with gcloud; then forget the record: $(quote rm -- "$(record_path tpu "$name")")"
fi
run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force ${opt[yes]:+--quiet}
[[ ${opt[dry-run]:-} ]] || rm -- "$(record_path tpu "$name")"
