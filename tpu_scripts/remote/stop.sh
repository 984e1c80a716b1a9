# Runs on a host, through `bash -c`: stop.sh JOB
# shellcheck shell=bash
set -euo pipefail
folder=$HOME/attnjax/jobs/$1
if [[ -f $folder/pid && ! -f $folder/status ]] && kill -TERM "$(<"$folder/pid")"; then
  echo "$(hostname): told to stop; it saves a checkpoint first"
else
  echo "$(hostname): not running"
fi
