# What the Cloud TPU scripts share: the nodes of a queued resource, and commands on their hosts. Sourced, never run.
# shellcheck shell=bash

# shellcheck source=lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# Reads the record of $name; sets place (gcloud's flags for it) and nodes (one a slice).
place=()
nodes=()
find_slices() {
  local i
  read_record tpu "$name" project zone slices
  place=(--project="${record[project]}" --zone="${record[zone]}")
  nodes=("$name")
  if ((record[slices] > 1)); then
    nodes=()
    # The service numbers the nodes of a request with --node-count from 0, after the prefix.
    for ((i = 0; i < record[slices]; i++)); do nodes+=("$name-$i"); done
  fi
}

# remote_text FILE ARGUMENTS...: the command that runs remote/FILE on a host, the arguments as data.
remote_text() {
  local script
  script=$(<"$here/remote/$1")
  quote bash -c "$script" "$@"
}

# on_hosts NODE WORKER TEXT
on_hosts() {
  # gcloud splits the text at spaces and ssh joins it again with spaces: it arrives as it is.
  run gcloud compute tpus tpu-vm ssh "$1" "${place[@]}" --worker="$2" --command="$3"
}

# copy_to_hosts NODE FILE FOLDER
copy_to_hosts() {
  run gcloud compute tpus tpu-vm scp "$2" "$1:$3/" "${place[@]}" --worker=all
}

# on_every_slice FUNCTION ARGUMENTS...: calls FUNCTION NODE ARGUMENTS for all nodes at once; gives the first failure's code.
on_every_slice() {
  local action=$1 i code first=0 pids=() failed=()
  shift
  if [[ ${opt[dry-run]:-} ]] || ((${#nodes[@]} == 1)); then
    for i in "${nodes[@]}"; do "$action" "$i" "$@" || return; done
    return
  fi
  for i in "${nodes[@]}"; do
    "$action" "$i" "$@" &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" && continue
    code=$?
    failed+=("${nodes[i]}")
    ((first)) || first=$code
  done
  ((first == 0)) || echo "${0##*/}: failed on ${failed[*]}" >&2
  return "$first"
}

# take_job: sets job from --job.
take_job() {
  need job
  job=${opt[job]}
  check --job "$job" '^[a-z0-9]([a-z0-9_.-]{0,62})$' \
    "lower case letters, digits, hyphens, points and underscores, from a letter or digit, 63 at most"
}
