#!/usr/bin/env bash
# The batch script that launch.sh submits; runs on the first node. job.sh LOGS DEVICES RESTARTS COMMAND...
set -uo pipefail
logs=$1 devices=$2 restarts=$3
shift 3
# Under SLURM jax gives a process only the GPU of its local number, unless told which it has.
[[ -z $devices ]] || export JAX_LOCAL_DEVICE_IDS=$devices
stopping=''
# Before the time limit sbatch signals this script alone; scancel passes it on to the processes, not to this script.
trap 'stopping=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
for ((attempt = 0; ; attempt++)); do
  srun --kill-on-bad-exit=1 --open-mode=append --output="$logs" "$@" &
  step=$!
  status=0
  wait "$step" || status=$?
  if [[ $stopping ]]; then
    # The signal ended the wait, not the step, which now saves its state.
    status=0
    wait "$step" || status=$?
    break
  fi
  # As in train.launch: done (0), or bound to end so again (2, 3, 4). After a crash srun ends the others, with 143 too.
  [[ $status =~ ^[0234]$ ]] || ((attempt >= restarts)) && break
  echo "attnjax: attempt $((attempt + 1)) ended with status $status; starting again"
done
exit "$status"
