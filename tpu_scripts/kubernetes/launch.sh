#!/usr/bin/env bash
# Starts a command on GPUs or TPUs of a Kubernetes cluster as a JobSet, and records that it did.
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

usage() {
  cat <<'USAGE'
kubernetes/launch.sh NAME --context C --namespace N --image I --hosts H --gpus G -- COMMAND...
kubernetes/launch.sh NAME --context C --namespace N --image I --tpus T --tpu-accelerator A --tpu-topology X -- COMMAND...

Creates the JobSet NAME (which the cluster must have installed), one pod a host, one process a pod. When a pod
fails, all are restarted. The pods' nodes COST MONEY; clusters that scale by themselves add nodes for them.
`python -m train.TASK ...` gets the flags by which its processes find each other, unless it names --distributed
or --coordinator: on GPUs --coordinator, --processes and --process-id, on TPUs --distributed auto.

  --context C            the cluster, as in kubectl config get-contexts
  --namespace N          namespace
  --image I              container image with attnjax and jax for the accelerator in it
  --hosts H              pods, on GPUs
  --gpus G               GPUs of each pod
  --gpu-type T           GKE's name of the GPU, such as nvidia-h100-80gb; default: any
  --tpus T               TPU chips of each host
  --tpu-accelerator A    GKE's name of the TPU, such as tpu-v5-lite-podslice
  --tpu-topology X       such as 4x4
  --slices N             TPU slices (multi-slice); default 1
  --spot                 GKE's spot nodes only: cheaper, may be taken away at any time
  --claim C, --mount M   a persistent volume claim, and where the pods see it: the place for --run-dir
  --restarts R           restart all pods this often; default 0
  --dry-run              print the command with the manifest, run nothing, write nothing
  --help                 this text
USAGE
}

parse_options "context namespace image hosts gpus gpu-type tpus tpu-accelerator tpu-topology slices claim mount restarts" \
  "spot" "$@"
take_name
take_command
need context namespace image
: "${opt[restarts]:=0}" "${opt[slices]:=1}"
check --namespace "${opt[namespace]}" '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' "lower case letters, digits, hyphens"
check --image "${opt[image]}" '^[A-Za-z0-9][A-Za-z0-9._/:@-]*$' "an image: letters, digits and . _ / : @ -"
check_number restarts 0 9999
check_number slices 1 999
[[ ${opt[claim]:+x} == "${opt[mount]:+x}" ]] || die 2 "--claim and --mount go together"
[[ ${opt[mount]:-/} == /* ]] || die 2 "--mount is a path from /, not $(quote "${opt[mount]}")"

make=(python3 "$here/kubernetes/manifest.py" jobset)
if [[ ${opt[tpus]:-} ]]; then
  need tpu-accelerator tpu-topology
  [[ ! ${opt[gpus]:-}${opt[hosts]:-}${opt[gpu-type]:-} ]] || die 2 "--tpus goes without --gpus, --gpu-type and --hosts"
  check_number tpus 1 99
  find_others
else
  need gpus hosts
  [[ ! ${opt[tpu-accelerator]:-}${opt[tpu-topology]:-} ]] || die 2 "--tpu-accelerator and --tpu-topology go with --tpus"
  ((opt[slices] == 1)) || die 2 "--slices goes with --tpus"
  check_number gpus 1 99
  check_number hosts 1 99999
  if must_find_others; then make+=(--find-others); fi
fi
for option in image hosts gpus gpu-type tpus tpu-accelerator tpu-topology slices claim mount restarts; do
  [[ ! ${opt[$option]:-} ]] || make+=("--$option=${opt[$option]}")
done
token=$(new_token)
manifest=$("${make[@]}" ${opt[spot]:+--spot} --name="$name" --token="$token" -- "${command[@]}")

# create, not apply: apply would change a JobSet of this name that is there already.
create=(kubectl --context="${opt[context]}" --namespace="${opt[namespace]}" create --filename=-)
if [[ ${opt[dry-run]:-} ]]; then
  printf "%s <<'MANIFEST'\n%s\nMANIFEST\n" "$(quote "${create[@]}")" "$manifest"
  exit 0
fi
# Written first: whatever stops this script, what it created can be found and deleted.
write_record kubernetes "$name" "token=$token" "context=${opt[context]}" "namespace=${opt[namespace]}" \
  "claim=${opt[claim]:-}" "mount=${opt[mount]:-}" "created=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
"${create[@]}" <<<"$manifest" || {
  code=$?
  echo "kubernetes/launch.sh: kubectl failed with code $code. $name may exist, and may be billed.
Look with:      $(quote "$here/kubernetes/watch.sh" "$name")
Delete it with: $(quote "$here/kubernetes/delete.sh" "$name")
If nothing exists, forget the record: $(quote rm -- "$(record_path kubernetes "$name")")" >&2
  exit "$code"
}
