#!/usr/bin/env bash
# Copies the logs of a JobSet's pods, and a run directory from its volume.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
kubernetes/fetch.sh NAME --to FOLDER [--run-dir DIR]

Copies the log of every pod to FOLDER/POD.log, and DIR to FOLDER/run/, through a pod NAME-fetch that holds the
claim of launch.sh --claim meanwhile and is deleted after. A run that does not use a claim: copy from where it wrote.

  --to FOLDER    where to put them here; made if it is not there
  --run-dir DIR  the run directory as the pods see it, from /
  --dry-run      print the commands, run nothing
  --help         this text
USAGE
}

parse_options "to run-dir" "" "$@"
take_name
need to
to=${opt[to]}
[[ $to == /* ]] || to=$PWD/$to
read_record kubernetes "$name" context namespace
directory=${opt[run-dir]:-}
if [[ $directory ]]; then
  [[ ${record[claim]:-} ]] || die 2 "$name was launched without --claim: copy $(quote "$directory") from where it wrote"
  [[ $directory == "${record[mount]}"/* ]] || die 2 "--run-dir $(quote "$directory") is not under ${record[mount]}, where the claim is"
fi
kubectl=(kubectl --context="${record[context]}" --namespace="${record[namespace]}")

list=("${kubectl[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=name)
pods=()
run mkdir -p -- "$to"
if [[ ${opt[dry-run]:-} ]]; then
  run "${list[@]}"
  echo "# and for every POD that it prints: $(quote "${kubectl[@]}" logs POD) >$(quote "$to/POD.log")"
else
  found=$("${list[@]}")
  [[ ! $found ]] || mapfile -t pods <<<"$found"
fi
for pod in "${pods[@]}"; do
  "${kubectl[@]}" logs "$pod" >"$to/${pod#pod/}.log"
done
[[ $directory ]] || exit 0

helper=$name-fetch
manifest=$(python3 "$here/kubernetes/manifest.py" pod --name="$helper" --token="${record[token]}" \
  --claim="${record[claim]}" --mount="${record[mount]}")
remove=("${kubectl[@]}" delete pod "$helper" --wait=false)
pack=("${kubectl[@]}" exec "$helper" -- tar -C "$(dirname -- "$directory")" -czf - -- "$(basename -- "$directory")")
if [[ ${opt[dry-run]:-} ]]; then
  printf "%s <<'MANIFEST'\n%s\nMANIFEST\n" "$(quote "${kubectl[@]}" create --filename=-)" "$manifest"
else
  "${kubectl[@]}" create --filename=- <<<"$manifest"
  trap '"${remove[@]}"' EXIT
fi
run "${kubectl[@]}" wait --for=condition=Ready "pod/$helper" --timeout=300s
run mkdir -p -- "$to/run"
if [[ ${opt[dry-run]:-} ]]; then
  echo "$(quote "${pack[@]}") >$(quote "$to/run.tar.gz")"
else
  "${pack[@]}" >"$to/run.tar.gz"
fi
run tar -xzf "$to/run.tar.gz" -C "$to/run"
run rm -- "$to/run.tar.gz"
[[ ! ${opt[dry-run]:-} ]] || run "${remove[@]}"
