# Runs on a host, through `bash -c`: stop.sh JOB
# shellcheck shell=bash
set -euo pipefail
folder=$HOME/attnjax/jobs/$1
# The session that start.sh made, and not what has its number by now.
if [[ -f $folder/pid && ! -f $folder/status ]] && pid=$(<"$folder/pid") &&
  [[ $(ps -o sid= -p "$pid") =~ ^\ *"$pid"$ ]] && kill -TERM "$pid"; then
  echo "$(hostname): told to stop; it saves a checkpoint first"
else
  echo "$(hostname): not running"
fi
