#!/usr/bin/env bash
# Submits a command as a SLURM batch job, one process a GPU or a node, and records that it did.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
slurm/launch.sh NAME --nodes N --gpus-per-node G --time T -- COMMAND...

Submits COMMAND with sbatch and runs it with srun. `python -m train.TASK ...` gets `--distributed auto` unless it
names --distributed or --coordinator: jax takes coordinator and process numbers from the job. COMMAND and its
--run-dir must be on a file system that all nodes share. The job is billed or counted as your site does.

  --nodes N            number of nodes
  --gpus-per-node G    GPUs on each
  --time T             time limit, such as 24:00:00; two minutes before it, training is told to save and stop
  --one-process-per W  gpu (default) or node
  --restarts R         start it again this often when it fails; default 0. Not after the statuses 2, 3 and 4, with
                       which training says that it would fail again
  --log-dir DIR        where the logs go, one a process; shared by the nodes; default: this folder
  --partition P, --account A, --constraint C, --cpus-per-task C, --mem M
                       as for sbatch
  --dry-run            print the commands, run nothing, write nothing
  --help               this text
USAGE
}

parse_options "nodes gpus-per-node time one-process-per restarts log-dir partition account constraint cpus-per-task mem" "" "$@"
take_name
take_command
need nodes gpus-per-node time
: "${opt[restarts]:=0}" "${opt[one-process-per]:=gpu}" "${opt[log-dir]:=$PWD}"
check_number nodes 1 99999
check_number gpus-per-node 1 99
check_number restarts 0 9999
check --time "${opt[time]}" '^[0-9]+(-[0-9]+)?(:[0-9]+){0,2}$' "minutes, or such as 24:00:00 or 2-12"
[[ ${opt[log-dir]} == /* ]] || opt[log-dir]=$PWD/${opt[log-dir]}
[[ ${opt[log-dir]} != *[%\\]* ]] || die 2 "--log-dir $(quote "${opt[log-dir]}"): % and \\ mean something else to sbatch there"
find_others

gpus=${opt[gpus-per-node]}
case ${opt[one-process-per]} in
  gpu) tasks=$gpus devices='' ;;
  node) tasks=1 devices=$(seq -s , 0 $((gpus - 1))) ;;
  *) die 2 "--one-process-per is gpu or node, not $(quote "${opt[one-process-per]}")" ;;
esac
extra=()
for option in partition account constraint cpus-per-task mem; do
  [[ ! ${opt[$option]:-} ]] || extra+=("--$option=${opt[$option]}")
done

token=$(new_token)
logs=${opt[log-dir]}/%x-%j
submit=(sbatch --parsable --job-name="$name" --comment="attnjax_token=$token" --nodes="${opt[nodes]}"
  --ntasks-per-node="$tasks" --gpus-per-node="$gpus" --time="${opt[time]}" --requeue --signal=B:TERM@120
  --open-mode=append --output="$logs.log" "${extra[@]}"
  "$here/slurm/job.sh" "$logs-%t.log" "$devices" "${opt[restarts]}" "${command[@]}")
run mkdir -p -- "${opt[log-dir]}"
if [[ ${opt[dry-run]:-} ]]; then
  run "${submit[@]}"
  exit 0
fi
# Written first: whatever stops this script, the job can be found by its comment.
write_record slurm "$name" "token=$token" "log_dir=${opt[log-dir]}" "created=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
path=$(record_path slurm "$name")
job=$("${submit[@]}") || {
  code=$?
  echo "slurm/launch.sh: sbatch failed with code $code. Should a job have been queued after all, its comment is
attnjax_token=$token: squeue --me --format='%i %k'. Then forget the record: $(quote rm -- "$path")" >&2
  exit "$code"
}
job=${job%%;*} # with several clusters, the cluster's name follows
[[ $job =~ ^[0-9]+$ ]] || die 1 "expected a job number from sbatch, got $(quote "$job"); find the job by its comment
attnjax_token=$token: squeue --me --format='%i %k'"
echo "job=$job" >>"$path"
echo "submitted as job $job; look at it with $(quote "$here/slurm/watch.sh" "$name")"
