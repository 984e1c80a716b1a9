#!/usr/bin/env bash
# Says how a job is that slurm/launch.sh submitted, with the end of its logs.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
slurm/watch.sh NAME

Prints the job's state and the end of its logs. Results need no fetching: they are on the shared file system.

  --lines N   lines of each log; default 5
  --dry-run   print the commands, run nothing
  --help      this text
USAGE
}

parse_options "lines" "" "$@"
take_name
: "${opt[lines]:=5}"
check_number lines 0 999999
read_record slurm "$name" job log_dir
# %i job, %T state, %M time used, %R nodes or the reason for waiting; a job that ended long ago is not known any more.
run squeue --jobs="${record[job]}" --states=all --format='%i %T %M %R' ||
  run sacct --jobs="${record[job]}" --format=JobID,State,ExitCode,Elapsed,NodeList
shopt -s nullglob
files=("${record[log_dir]}/$name-${record[job]}"*.log)
if ((${#files[@]})); then
  run tail -n "${opt[lines]}" -- "${files[@]}"
else
  echo "# no logs yet"
fi
