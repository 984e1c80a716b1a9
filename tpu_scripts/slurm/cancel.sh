#!/usr/bin/env bash
# Cancels a job, if slurm/launch.sh submitted it.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
slurm/cancel.sh NAME

Cancels the job: training is told to save and stop, and killed by SLURM's KillWait if it does not. Refuses unless
there is a record of NAME on this machine and the job carries the comment that launch.sh gave it.

  --dry-run  print the commands, run nothing, change nothing
  --help     this text
USAGE
}

parse_options "" "" "$@"
take_name
read_record slurm "$name" job
only_ours slurm "job ${record[job]}" "attnjax_token=${record[token]}" \
  squeue --jobs="${record[job]}" --noheader --format=%k
run scancel "${record[job]}"
[[ ${opt[dry-run]:-} ]] || rm -- "$(record_path slurm "$name")"
