#!/usr/bin/env bash
# Says how a JobSet is that kubernetes/launch.sh created, with the end of its pods' logs.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
kubernetes/watch.sh NAME

Prints the JobSet, its pods, and the end of each pod's log.

  --lines N   lines of each log; default 5
  --dry-run   print the commands, run nothing
  --help      this text
USAGE
}

parse_options "lines" "" "$@"
take_name
: "${opt[lines]:=5}"
check_number lines 0 999999
read_record kubernetes "$name" context namespace
kubectl=(kubectl --context="${record[context]}" --namespace="${record[namespace]}")
pods="--selector=jobset.sigs.k8s.io/jobset-name=$name"
run "${kubectl[@]}" get jobsets.jobset.x-k8s.io "$name"
run "${kubectl[@]}" get pods "$pods" --output=wide
run "${kubectl[@]}" logs "$pods" --prefix --ignore-errors --tail="${opt[lines]}"
