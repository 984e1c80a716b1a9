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
path=$(record_path slurm "$name")
look=(squeue --jobs="${record[job]}" --noheader --format=%k)
if [[ ${opt[dry-run]:-} ]]; then
  run "${look[@]}"
  echo "# and only if that prints attnjax_token=${record[token]}:"
else
  found=$("${look[@]}") || {
    code=$?
    echo "cancel.sh: could not look at job ${record[job]}; nothing was cancelled. If it ended, forget the record:
$(quote rm -- "$path")" >&2
    exit "$code"
  }
  [[ $found == "attnjax_token=${record[token]}" ]] || die 1 "refused: job ${record[job]} does not carry the comment that
launch.sh gave it (expected attnjax_token=${record[token]}, found $(quote "${found:-none}")): it ended, or is another.
If it ended, forget the record: $(quote rm -- "$path")"
fi
run scancel "${record[job]}"
[[ ${opt[dry-run]:-} ]] || rm -- "$path"
