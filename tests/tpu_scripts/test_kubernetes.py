"""The command lines and manifests that the Kubernetes scripts give to kubectl."""

import json

import pytest

from tests.tpu_scripts.bench import HOSTILE, TOKEN, fields

KUBECTL = ["kubectl", "--context=ctx", "--namespace=ns"]
WHERE = ("--context", "ctx", "--namespace", "ns", "--image", "registry/attnjax:1")
GPUS = (*WHERE, "--hosts", "2", "--gpus", "8")
TPUS = (*WHERE, "--tpus=4", "--tpu-accelerator=tpu-v5-lite-podslice", "--tpu-topology=4x4")
JOBSETS = "jobsets.jobset.x-k8s.io"
SELECTOR = "--selector=jobset.sigs.k8s.io/jobset-name=run"


def created(bench, *words):
    """The manifest that launch.sh gives to kubectl, which must carry the record's token."""
    bench.works("kubernetes/launch.sh", "run", *words)
    ((call, manifest),) = bench.calls_with_input()
    assert call == [*KUBECTL, "create", "--filename=-"]
    path = bench.state / "kubernetes" / "run"
    record = fields(path)
    path.unlink()
    assert (record["context"], record["namespace"]) == ("ctx", "ns")
    made = json.loads(manifest)
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["metadata"]["name"] == "run"
    assert made["metadata"]["labels"] == {"attnjax_token": record["token"]}
    return made


def parts(made):
    """The job, the pod and the container of a JobSet."""
    (replicated,) = made["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return replicated, job, pod, container


def test_gpus(bench):
    made = created(
        bench,
        *(*GPUS, "--gpu-type=nvidia-h100-80gb", "--claim=disk", "--mount=/runs", "--restarts=3"),
        *("--", "python", "-m", "train.text_classification", "--run-dir", "/runs/a"),
    )
    replicated, job, pod, container = parts(made)
    assert made["spec"]["failurePolicy"] == {"maxRestarts": 3}
    assert "annotations" not in made["metadata"]
    assert (replicated["name"], replicated["replicas"]) == ("worker", 1)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert container["image"] == "registry/attnjax:1"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    # The process number is the pod's index, which Kubernetes puts in place of the reference.
    (env,) = container["env"]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env == {
        "name": "ATTNJAX_PROCESS_ID",
        "valueFrom": {"fieldRef": {"fieldPath": index}},
    }
    assert container["command"] == [
        *("python", "-m", "train.text_classification", "--run-dir", "/runs/a"),
        *("--coordinator", "run-worker-0-0.run:8476", "--processes", "2"),
        *("--process-id", "$(ATTNJAX_PROCESS_ID)"),
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"runs": "/runs", "shared-memory": "/dev/shm"}
    assert pod["volumes"] == [
        {"name": "runs", "persistentVolumeClaim": {"claimName": "disk"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]


def test_tpus(bench):
    command = ("python", "-m", "train.text_classification")
    made = created(bench, *TPUS, "--slices=3", "--spot", "--", *command)
    replicated, job, pod, container = parts(made)
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert made["metadata"]["annotations"] == exclusive
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (3, 4, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
    ]
    assert container["resources"] == {"limits": {"google.com/tpu": "4"}}
    assert container["command"] == [*command, "--distributed", "auto"]
    assert "env" not in container


def test_other_commands_run_as_they_are(bench):
    own = ["python", "-m", "train.x", "--coordinator", "a:1"]
    for words in (["nvidia-smi", "-L"], own, ["sh", "-c", "a", "--", "--"]):
        assert parts(created(bench, *GPUS, "--", *words))[3]["command"] == words


@pytest.mark.parametrize("word", [*HOSTILE, "$(ATTNJAX_PROCESS_ID)", "$$(A)", "é", "{}: [", "#"])
def test_words_pass_as_data(bench, word):
    line = word.replace("\n", " ")  # what is recorded has one line
    words = (f"--claim={line}", f"--mount=/{line}", f"--gpu-type={word}")
    made = created(bench, *GPUS, *words, "--", "echo", word, "")
    _, _, pod, container = parts(made)
    # Kubernetes replaces $(NAME) by a variable and $$ by $, so that this arrives as it was.
    assert container["command"] == ["echo", word.replace("$", "$$"), ""]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": line}
    assert container["volumeMounts"][0]["mountPath"] == f"/{line}"
    assert list(pod["nodeSelector"].values()) == [word]


@pytest.mark.parametrize("word", [w for w in HOSTILE if "\n" not in w])
def test_the_context_passes_as_data(bench, word):
    bench.works("kubernetes/launch.sh", "run", *GPUS, f"--context={word}", "--", "x")
    bench.works("kubernetes/watch.sh", "run")
    assert [call[1] for call in bench.calls()] == [f"--context={word}"] * 4


def test_records_hold_one_line_a_value(bench):
    for option in ("context", "claim", "mount"):
        words = ("--claim=c", "--mount=/m", f"--{option}=/a\ntoken={'0' * 32}", "--", "x")
        bench.refuses("kubernetes/launch.sh", "run", *GPUS, *words, says="not one line")


def test_launch_rejects(bench):
    end = ("--", "x")
    for option in ("namespace", "image", "hosts", "gpus", "slices", "restarts"):
        for word in (*HOSTILE, "-1", "a[$(touch pwned)]"):
            words = ("run", *GPUS, f"--{option}={word}", *end)
            bench.refuses("kubernetes/launch.sh", *words, says=f"--{option} .* not allowed")
    for words, says in (
        ((*GPUS, "--tpus=4", "--tpu-accelerator=a", "--tpu-topology=2x2"), "--tpus goes without"),
        ((*GPUS, "--tpu-topology=2x2"), "go with --tpus"),
        ((*GPUS, "--slices=2"), "--slices goes with --tpus"),
        ((*GPUS, "--claim=c"), "--claim and --mount go together"),
        ((*GPUS, "--claim=c", "--mount=runs"), "--mount is a path from /"),
        ((*WHERE, "--gpus=8"), "--hosts is needed"),
        ((*WHERE, "--hosts=2"), "--gpus is needed"),
        ((*WHERE, "--tpus=4"), "--tpu-accelerator is needed"),
        ((*TPUS, "--tpu-topology=3x3"), "9 chips .3x3. are not whole hosts of 4"),
        ((*TPUS, "--tpu-topology=16"), "is such as 4x4"),
    ):
        bench.refuses("kubernetes/launch.sh", "run", *words, *end, says=says)
        assert not (bench.state / "kubernetes" / "run").exists()
    bench.refuses("kubernetes/launch.sh", "run", *GPUS, says="no command")


def test_a_failed_create_leaves_a_record_and_says_what_to_do(bench):
    done = bench.run("kubernetes/launch.sh", "run", *GPUS, "--", "x", does="exit 7")
    assert done.returncode == 7
    assert "may exist, and may be billed" in done.stderr
    assert "kubernetes/delete.sh run" in done.stderr
    assert len(bench.calls()) == 1
    token = fields(bench.state / "kubernetes" / "run")["token"]
    bench.works("kubernetes/delete.sh", "run", does=f"echo {token}")


def test_watch(bench):
    bench.record("kubernetes")
    bench.works("kubernetes/watch.sh", "run", "--lines=9")
    logs = ["--prefix", "--ignore-errors", "--tail=9"]
    assert bench.calls() == [
        [*KUBECTL, "get", JOBSETS, "run"],
        [*KUBECTL, "get", "pods", SELECTOR, "--output=wide"],
        [*KUBECTL, "logs", SELECTOR, *logs],
    ]
    assert bench.run("kubernetes/watch.sh", "run", does="exit 3").returncode == 3


FETCHES = r"""
case "$*" in
  *--output=name) printf 'pod/run-worker-0-0-abc\npod/run-worker-0-1-def\n' ;;
  *" logs "*) echo "$*" ;;
  *" exec "*) mkdir -p "$HOME/made" && echo 1 >"$HOME/made/log" && tar -C "$HOME" -czf - made ;;
esac
"""
REMOVE = [*KUBECTL, "delete", "pod", "run-fetch", "--wait=false"]


@pytest.mark.parametrize("word", [*HOSTILE, "-rf"])
def test_fetch(bench, word):
    bench.record("kubernetes")
    words = (f"--to={word}", f"--run-dir=/runs/{word}")
    bench.works("kubernetes/fetch.sh", "run", *words, does=FETCHES)
    calls = bench.calls_with_input()
    assert [call for call, _ in calls] == [
        [*KUBECTL, "get", "pods", SELECTOR, "--output=name"],
        [*KUBECTL, "logs", "pod/run-worker-0-0-abc"],
        [*KUBECTL, "logs", "pod/run-worker-0-1-def"],
        [*KUBECTL, "create", "--filename=-"],
        [*KUBECTL, "wait", "--for=condition=Ready", "pod/run-fetch", "--timeout=300s"],
        [*KUBECTL, "exec", "run-fetch", "--", "tar", "-C", "/runs", "-czf", "-", "--", word],
        REMOVE,
    ]
    pod = json.loads(calls[3][1])
    assert (pod["kind"], pod["metadata"]["name"]) == ("Pod", "run-fetch")
    assert pod["metadata"]["labels"] == {"attnjax_token": TOKEN}
    claim = {"persistentVolumeClaim": {"claimName": "disk"}, "name": "runs"}
    assert pod["spec"]["volumes"] == [claim]
    assert pod["spec"]["containers"][0]["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]
    to = bench.root / "here" / word
    assert (to / "run" / "made" / "log").read_text() == "1\n"
    assert "run-worker-0-1-def" in (to / "run-worker-0-1-def.log").read_text()


def test_fetch_without_a_run_directory_makes_no_pod(bench):
    bench.record("kubernetes", claim="", mount="")
    bench.works("kubernetes/fetch.sh", "run", "--to=out", does=FETCHES)
    assert [call[3] for call in bench.calls()] == ["get", "logs", "logs"]
    words = ("run", "--to=out", "--run-dir=/runs/a")
    bench.refuses("kubernetes/fetch.sh", *words, says="launched without --claim")
    bench.record("kubernetes")
    bench.refuses("kubernetes/fetch.sh", *words[:2], "--run-dir=/other", says="not under /runs")


def test_fetch_removes_its_pod_whatever_fails(bench):
    bench.record("kubernetes")
    words = ("run", "--to=out", "--run-dir=/runs/a")
    for fails, last in (("wait", REMOVE), ("exec", REMOVE)):
        does = FETCHES.replace("in\n", f'in\n  *" {fails} "*) exit 6 ;;\n', 1)
        assert bench.run("kubernetes/fetch.sh", *words, does=does).returncode == 6
        assert bench.calls()[-1] == last
    # A pod of that name which is not from here is neither used nor deleted.
    does = FETCHES.replace("in\n", 'in\n  *" create "*) exit 6 ;;\n', 1)
    assert bench.run("kubernetes/fetch.sh", *words, does=does).returncode == 6
    assert bench.calls()[-1][3] == "create"
