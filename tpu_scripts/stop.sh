#!/usr/bin/env bash
# Stops a job on every host of a queued resource; the TPUs stay, and are billed.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
stop.sh NAME --job JOB

Sends SIGTERM to JOB on every host; a training run saves a checkpoint and ends. The TPUs stay and are billed
until delete.sh deletes them.

  --job JOB   the job to stop
  --dry-run   print the commands, run nothing
  --help      this text
USAGE
}

parse_options "job" "" "$@"
take_name
take_job
find_slices
stop() {
  on_hosts "$1" all "$(remote_text stop.sh "$job")"
}
on_every_slice stop
