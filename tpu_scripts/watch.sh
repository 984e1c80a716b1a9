#!/usr/bin/env bash
# Says how a queued resource is, and a job on it.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
watch.sh NAME [--job JOB]

Prints the state of NAME (WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED, ...) and, with --job,
whether JOB runs on each host, with the end of its log. Fails if the job failed on a host. To repeat it, use
watch(1): watch -n 60 watch.sh NAME --job JOB

  --job JOB   the job to look at
  --lines N   lines of each log; default 5
  --dry-run   print the commands, run nothing
  --help      this text
USAGE
}

parse_options "job lines" "" "$@"
take_name
: "${opt[lines]:=5}"
check_number lines 0 999999
[[ ! ${opt[job]:-} ]] || take_job
find_slices

describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" "--format=value(state.state)")
if [[ ${opt[dry-run]:-} ]]; then
  run "${describe[@]}"
else
  state=$("${describe[@]}")
  echo "$name: $state"
  [[ ! ${opt[job]:-} || $state == ACTIVE ]] || die 1 "there are no hosts to look at before $name is ACTIVE"
fi
[[ ${opt[job]:-} ]] || exit 0

look() {
  on_hosts "$1" all "$(remote_text look.sh "$job" "${opt[lines]}")"
}
on_every_slice look
