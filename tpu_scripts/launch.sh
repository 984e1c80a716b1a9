#!/usr/bin/env bash
# Starts a command on every host of a queued resource.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
launch.sh NAME --job JOB [--restarts N] -- COMMAND...

Starts COMMAND on every host of NAME, in the home folder, with ~/attnjax/venv in front of PATH. It goes on when
the connection ends; its output is in ~/attnjax/jobs/JOB/log on each host. `python -m train.TASK ...` gets
`--distributed auto` unless it names --distributed or --coordinator; any other command runs as it is.
--run-dir must be on a file system that all hosts share (see setup.sh --prepare).

  --job JOB     a name for watch.sh, stop.sh and fetch.sh; new for every launch
  --restarts N  start it again this often on a host where it failed; default 0. Not after the statuses 2, 3 and 4,
                with which training says that it would fail again, nor 130 and 143: it was told to stop
  --dry-run     print the commands, run nothing
  --help        this text
USAGE
}

parse_options "job restarts" "" "$@"
take_name
take_job
: "${opt[restarts]:=0}"
check_number restarts 0 9999
take_command
find_others
find_slices

text=$(remote_text start.sh "$job" "$(new_token)" "${opt[restarts]}" "${command[@]}")
start() {
  on_hosts "$1" all "$text"
}
on_every_slice start || {
  code=$?
  echo "launch.sh: not every host started $job, and those that did wait for the rest until they give up.
Stop them: $(quote "$here/stop.sh" "$name" --job "$job"); then launch again under another --job." >&2
  exit "$code"
}
