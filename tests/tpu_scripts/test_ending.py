"""What ends a resource or a job: only what carries the mark that it was created with."""

import shlex

import pytest

from tests.tpu_scripts.bench import PLACE, TOKEN
from tests.tpu_scripts.gcloud import QUEUED

KUBECTL = ["kubectl", "--context=ctx", "--namespace=ns"]
JOBSETS = "jobsets.jobset.x-k8s.io"
MARK = f"attnjax_token={TOKEN}"
# For each script: the kind of record, the mark, how it looks for it, how it ends what carries it.
ENDINGS = {
    "delete.sh": (
        "tpu",
        TOKEN,
        [
            *(*QUEUED, "describe", "run", *PLACE),
            "--format=value(tpu.nodeSpec[0].node.labels.attnjax_token)",
        ],
        [*QUEUED, "delete", "run", *PLACE, "--force"],
    ),
    "slurm/cancel.sh": (
        "slurm",
        MARK,
        ["squeue", "--jobs=77", "--noheader", "--format=%k"],
        ["scancel", "77"],
    ),
    "kubernetes/delete.sh": (
        "kubernetes",
        TOKEN,
        [*KUBECTL, "get", JOBSETS, "run", "--output=jsonpath={.metadata.labels.attnjax_token}"],
        [*KUBECTL, "delete", JOBSETS, f"--selector={MARK}"],
    ),
}
pytestmark = pytest.mark.parametrize("script", ENDINGS)


def test_what_carries_the_mark_is_ended(bench, script):
    kind, mark, look, end = ENDINGS[script]
    record = bench.record(kind)
    bench.works(script, "run", does=f"echo {mark}")
    assert bench.calls() == [look, end]
    assert not record.exists()


@pytest.mark.parametrize(
    "found", ["", "(null)", "*", "0" * 32, TOKEN[:-1], "{0}0", "{0};{0}", "mark={0}"]
)
def test_what_does_not_is_left(bench, script, found):
    kind, mark, look, _ = ENDINGS[script]
    record = bench.record(kind)
    said = shlex.quote(found.format(mark))
    done = bench.run(script, "run", does=f"printf '%s\\n' {said}")
    assert done.returncode == 1
    assert "does not carry the mark that it was given" in done.stderr
    assert f"rm -- {record}" in done.stderr
    assert (bench.calls(), record.exists()) == ([look], True)


def test_what_cannot_be_looked_at_is_left(bench, script):
    kind, mark, look, _ = ENDINGS[script]
    record = bench.record(kind)
    # Even where the right mark is printed: what failed has not answered.
    done = bench.run(script, "run", does=f"echo {mark}; exit 5")
    assert (done.returncode, bench.calls(), record.exists()) == (5, [look], True)
    assert "nothing was changed" in done.stderr


def test_a_failed_ending_keeps_the_record(bench, script):
    kind, mark, look, end = ENDINGS[script]
    record = bench.record(kind)
    does = f"[ ! -e looked ] || exit 6; touch looked; echo {mark}"
    assert bench.run(script, "run", does=does).returncode == 6
    assert (bench.calls(), record.exists()) == ([look, end], True)
