#!/usr/bin/env bash
# Copies a job's logs from every host, and its run directory from the first.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
fetch.sh NAME --job JOB --to FOLDER [--run-dir DIR]

Copies ~/attnjax/jobs/JOB of every host to FOLDER/NODE-WORKER/, and DIR of the first host to FOLDER/run/.

  --job JOB      the job whose logs to copy
  --to FOLDER    where to put them here; made if it is not there
  --run-dir DIR  the run directory, as it was given to the training command
  --dry-run      print the commands, run nothing
  --help         this text
USAGE
}

parse_options "job to run-dir" "" "$@"
take_name
take_job
need to
to=${opt[to]}
[[ $to == /* ]] || to=$PWD/$to
find_slices

# pull NODE WORKER PATH FOLDER. An archive over ssh, for scp hands the remote path to a shell or not, by its version.
pull() {
  local text
  text=$(remote_text pack.sh "$3")
  run mkdir -p -- "$4"
  if [[ ${opt[dry-run]:-} ]]; then
    echo "$(on_hosts "$1" "$2" "$text") >$(quote "$4.tar.gz")"
  else
    on_hosts "$1" "$2" "$text" >"$4.tar.gz" || {
      code=$?
      rm -- "$4.tar.gz"
      echo "fetch.sh: could not copy $(quote "$3") from worker $2 of $1" >&2
      exit "$code"
    }
  fi
  run tar -xzf "$4.tar.gz" -C "$4"
  run rm -- "$4.tar.gz"
}

for node in "${nodes[@]}"; do
  count=(gcloud compute tpus tpu-vm describe "$node" "${place[@]}" "--format=value(networkEndpoints.len())")
  workers=1
  if [[ ${opt[dry-run]:-} ]]; then
    run "${count[@]}"
    echo "# and then, for every worker of as many as that prints, what follows for worker 0:"
  else
    workers=$("${count[@]}")
    [[ $workers =~ ^[1-9][0-9]*$ ]] || die 1 "expected the number of hosts of $node, got $(quote "$workers")"
  fi
  for ((worker = 0; worker < workers; worker++)); do
    pull "$node" "$worker" "attnjax/jobs/$job" "$to/$node-$worker"
  done
done
[[ ! ${opt[run-dir]:-} ]] || pull "${nodes[0]}" 0 "${opt[run-dir]}" "$to/run"
