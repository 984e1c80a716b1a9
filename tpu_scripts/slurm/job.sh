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
  # 2: the command line or the data is wrong, so another attempt would fail alike.
  ((status != 0 && status != 2 && attempt < restarts)) || break
  echo "attnjax: attempt $((attempt + 1)) ended with status $status; starting again"
done
exit "$status"
