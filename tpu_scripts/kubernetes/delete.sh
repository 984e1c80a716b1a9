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
path=$(record_path kubernetes "$name")
kubectl=(kubectl --context="${record[context]}" --namespace="${record[namespace]}")
look=("${kubectl[@]}" get jobsets.jobset.x-k8s.io "$name" "--output=jsonpath={.metadata.labels.attnjax_token}")
if [[ ${opt[dry-run]:-} ]]; then
  run "${look[@]}"
  echo "# and only if that prints ${record[token]}:"
else
  found=$("${look[@]}") || {
    code=$?
    echo "delete.sh: could not look at $name; nothing was deleted. If kubectl says that it is not found, forget the
record: $(quote rm -- "$path")" >&2
    exit "$code"
  }
  [[ $found == "${record[token]}" ]] || die 1 "refused: $name does not carry the label that launch.sh gave it
(expected attnjax_token=${record[token]}, found $(quote "${found:-none}")), so something else by that name is there.
If it is yours, delete it with kubectl; then forget the record: $(quote rm -- "$path")"
fi
# By the label, so that what took the name since that look stays.
run "${kubectl[@]}" delete jobsets.jobset.x-k8s.io --selector="attnjax_token=${record[token]}"
[[ ${opt[dry-run]:-} ]] || rm -- "$path"
