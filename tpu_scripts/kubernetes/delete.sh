#!/usr/bin/env bash
# Deletes a JobSet and its pods, if kubernetes/launch.sh made it.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
kubernetes/delete.sh NAME

Deletes the JobSet NAME and its pods; the volume of --claim stays. Refuses unless there is a record of NAME on
this machine and the JobSet carries the label that launch.sh gave it.

  --dry-run  print the commands, run nothing, change nothing
  --help     this text
USAGE
}

parse_options "" "" "$@"
take_name
read_record kubernetes "$name" context namespace
kubectl=(kubectl --context="${record[context]}" --namespace="${record[namespace]}")
only_ours kubernetes "$name" "${record[token]}" "${kubectl[@]}" get jobsets.jobset.x-k8s.io "$name" \
  "--output=jsonpath={.metadata.labels.attnjax_token}"
# By the label, so that what took the name since that look stays.
run "${kubectl[@]}" delete jobsets.jobset.x-k8s.io --selector="attnjax_token=${record[token]}"
[[ ${opt[dry-run]:-} ]] || rm -- "$(record_path kubernetes "$name")"
