"""Writes the Kubernetes objects that the scripts beside it create, as JSON.

    manifest.py jobset --name N --token T --image I ... -- COMMAND...
    manifest.py pod --name N --token T --claim C --mount M

JSON, because Kubernetes reads it as it reads YAML and nothing in it needs quoting by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any

Objects = list[dict[str, Any]]

PORT = 8476
PROCESS = "ATTNJAX_PROCESS_ID"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def literal(word: str) -> str:
    """Returns `word` so that Kubernetes, which expands $(NAME) in commands, leaves it as it is."""
    return word.replace("$", "$$")


def volumes(claim: str | None, mount: str | None, shared_memory: bool) -> tuple[Objects, Objects]:
    """Returns the volumes of a pod and where its container sees them."""
    pod: Objects = []
    container: Objects = []
    if claim:
        pod.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
        container.append({"name": "runs", "mountPath": mount})
    if shared_memory:  # NCCL needs more than the 64 MiB that a container has
        pod.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        container.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return pod, container


def hosts_of(topology: str, chips: int) -> int:
    """Returns how many hosts of `chips` chips make a slice of `topology`, such as 4x4."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise ValueError(f"--tpu-topology is such as 4x4 or 2x2x4, not {topology!r}")
    total = math.prod(map(int, topology.split("x")))
    if total % chips:
        raise ValueError(f"{total} chips ({topology}) are not whole hosts of {chips} chips")
    return total // chips


def jobset(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the JobSet: one pod a host, one job a slice, all restarted when one fails."""
    tpu = args.tpus is not None
    hosts = hosts_of(args.tpu_topology, args.tpus) if tpu else args.hosts
    command = [literal(word) for word in args.command]
    container: dict[str, Any] = {"name": "worker", "image": args.image, "command": command}
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container]}
    selector: dict[str, str] = {}
    if tpu:
        selector["cloud.google.com/gke-tpu-accelerator"] = args.tpu_accelerator
        selector["cloud.google.com/gke-tpu-topology"] = args.tpu_topology
        resources = {"google.com/tpu": str(args.tpus)}
    else:
        coordinator = f"{args.name}-worker-0-0.{args.name}:{PORT}"
        container["env"] = [{"name": PROCESS, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}}]
        container["ports"] = [{"containerPort": PORT}]
        if args.find_others:
            command += ["--coordinator", coordinator, "--processes", str(hosts)]
            command += ["--process-id", f"$({PROCESS})"]
        if args.gpu_type:
            selector["cloud.google.com/gke-accelerator"] = args.gpu_type
        resources = {"nvidia.com/gpu": str(args.gpus)}
    container["resources"] = {"limits": resources}
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        ]
    if selector:
        pod["nodeSelector"] = selector
    pod["volumes"], container["volumeMounts"] = volumes(args.claim, args.mount, not tpu)
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": args.name, "labels": {"attnjax_token": args.token}}
    if tpu:  # each slice is a node pool; a job must not be spread over two
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": args.restarts},
            "replicatedJobs": [
                {"name": "worker", "replicas": args.slices, "template": {"spec": job}}
            ],
        },
    }


def pod(args: argparse.Namespace) -> dict[str, Any]:
    """Returns a pod that holds the claim open for an hour, so that files can be copied from it."""
    claimed, mounted = volumes(args.claim, args.mount, shared_memory=False)
    container = {
        "name": "fetch",
        "image": "busybox:1.37",
        "command": ["sleep", "3600"],
        "volumeMounts": mounted,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": args.name, "labels": {"attnjax_token": args.token}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 3600,
            "containers": [container],
            "volumes": claimed,
        },
    }


def main() -> None:
    """Prints one object."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    kinds = parser.add_subparsers(required=True)
    for make in (jobset, pod):
        kind = kinds.add_parser(make.__name__, allow_abbrev=False)
        kind.set_defaults(make=make)
        kind.add_argument("--name", required=True)
        kind.add_argument("--token", required=True)
        kind.add_argument("--claim")
        kind.add_argument("--mount")
        if make is jobset:
            kind.add_argument("--image", required=True)
            accelerator = kind.add_mutually_exclusive_group(required=True)
            accelerator.add_argument("--gpus", type=int)
            accelerator.add_argument("--tpus", type=int)
            kind.add_argument("--gpu-type")
            kind.add_argument("--tpu-accelerator")
            kind.add_argument("--tpu-topology")
            kind.add_argument("--hosts", type=int)
            kind.add_argument("--slices", type=int, default=1)
            kind.add_argument("--restarts", type=int, default=0)
            kind.add_argument("--spot", action="store_true")
            kind.add_argument("--find-others", action="store_true")
    # argparse would drop a later `--`, which belongs to the command.
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.command = argv[end + 1 :]
    try:
        print(json.dumps(args.make(args), indent=1))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
