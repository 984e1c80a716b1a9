# Runs on a host, through `bash -c`: look.sh JOB LINES. Fails if the job failed or is not there.
# shellcheck shell=bash
set -euo pipefail
folder=$HOME/attnjax/jobs/$1
say() { echo "== $(hostname): $1"; }
if [[ ! -f $folder/pid ]]; then
  say "no job by that name was started here"
  exit 1
fi
code=0
pid=$(<"$folder/pid")
process=$(ps -o sid=,stat= -p "$pid") || true # before the status, which is written before the process ends
if [[ -f $folder/status ]]; then
  code=$(<"$folder/status")
  say "ended with status $code"
elif [[ $process =~ ^\ *"$pid"\ +[^Z] ]]; then # leads its session still
  say "running"
else
  say "died without a status: killed, or the host was restarted"
  code=1
fi
tail -n "$2" "$folder/log"
exit "$code"
