"""The command lines of gcloud that the tests expect."""

import shlex

from tests.tpu_scripts.bench import PLACE, SCRIPTS

QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
NODE = ["gcloud", "compute", "tpus", "tpu-vm"]


def remote(script, *words):
    """The text that runs remote/SCRIPT on a host with `words` as its arguments."""
    return shlex.join(["bash", "-c", (SCRIPTS / "remote" / script).read_text().rstrip("\n")]) + (
        " " + shlex.join([script, *words])
    )


def ssh(node, worker, text):
    return [*NODE, "ssh", node, *PLACE, f"--worker={worker}", f"--command={text}"]


def same(calls, expected):
    """Compares command lines; texts for hosts word by word, for words may be quoted in two ways."""
    flag = "--command="

    def split(words):
        return [shlex.split(w[len(flag) :]) if w.startswith(flag) else w for w in words]

    assert [split(words) for words in calls] == [split(words) for words in expected]
