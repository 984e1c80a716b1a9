# Runs on a host, through `bash -c`: start.sh JOB TOKEN RESTARTS COMMAND...
# shellcheck shell=bash
set -euo pipefail
job=$1 token=$2 restarts=$3
shift 3
cd
folder=attnjax/jobs/$job
mkdir -p attnjax/jobs
if ! mkdir "$folder" 2>/dev/null; then
  # gcloud repeats a command whose connection broke; that must not start the job twice.
  if [[ -f $folder/token && $(<"$folder/token") == "$token" ]]; then
    echo "$(hostname): $job was started already"
    exit 0
  fi
  echo "$(hostname): there is a job $job here already; choose another --job" >&2
  exit 1
fi
printf '%s\n' "$token" >"$folder/token"
printf '%q ' "$@" >"$folder/command"

# Runs the command until it ends well, is told to stop, or has had its restarts; then says how it ended.
keep_running() {
  local folder=$1 restarts=$2 attempt status child='' stopping=''
  shift 2
  trap 'stopping=yes; [[ -z $child ]] || kill -TERM "$child"' TERM
  for ((attempt = 0; ; attempt++)); do
    "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    if [[ $stopping ]]; then
      # The signal ended the wait, not the command, which now saves its state.
      status=0
      wait "$child" || status=$?
      break
    fi
    # As in train.launch: done (0), bound to end so again (2, 3, 4), or told to stop, here or on another host (130, 143).
    [[ $status =~ ^(0|2|3|4|130|143)$ ]] || ((attempt >= restarts)) && break
    echo "attnjax: attempt $((attempt + 1)) ended with status $status; starting again"
    sleep 1
  done
  echo "$status" >"$folder/ended" && mv "$folder/ended" "$folder/status" # so that nobody reads half of it
}

export PATH="$HOME/attnjax/venv/bin:$PATH"
# A session of its own, without the terminal's input: it outlives the ssh connection.
setsid nohup bash -c "$(declare -f keep_running); echo \$\$ >\"\$1/leads\"; keep_running \"\$@\"" \
  attnjax "$folder" "$restarts" "$@" </dev/null >"$folder/log" 2>&1 &
# Who looks for the session, to watch or stop the job, must not come before it.
until [[ -s $folder/leads ]]; do
  kill -0 $! 2>/dev/null || [[ -s $folder/leads ]] || exit 1
  sleep 0.01
done
mv "$folder/leads" "$folder/pid"
echo "$(hostname): started $job"
