"""create.sh and delete.sh: what they ask gcloud for, and when they refuse to."""

import pytest

from tests.tpu_scripts.bench import HOSTILE, PLACE, SCRIPTS, TOKEN, fields
from tests.tpu_scripts.gcloud import QUEUED

CREATE = (
    *("--project", "my-project", "--zone", "us-west4-a", "--accelerator-type", "v5litepod-16"),
    *("--runtime-version", "v2-alpha-tpuv5-lite"),
)
KIND = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--spot"], ["--node-id=run", *KIND, "--spot"]),
        (["--reserved"], ["--node-id=run", *KIND, "--reserved"]),
        (["--on-demand", "--slices", "1"], ["--node-id=run", *KIND]),
        (
            ["--spot", "--slices", "4"],
            ["--node-count=4", "--node-prefix=run", *KIND, "--spot"],
        ),
        (
            ["--on-demand", "--valid-until-duration", "6h", "--network=n", "--subnetwork=s"],
            ["--node-id=run", *KIND, "--valid-until-duration=6h", "--network=n", "--subnetwork=s"],
        ),
        *(
            (["--spot", account], ["--node-id=run", *KIND, "--spot", account])
            for account in (f"--service-account={word}" for word in (*HOSTILE, "--force"))
        ),
    ],
)
def test_create(bench, words, flags):
    bench.works("create.sh", "run", *CREATE, *words)
    record = fields(bench.state / "tpu" / "run")
    label = f"--labels=attnjax_token={record['token']}"
    assert bench.calls() == [[*QUEUED, "create", "run", *PLACE, *flags, label]]
    assert record.keys() == {"token", "project", "zone", "slices", "accelerator_type", "created"}
    assert (record["project"], record["zone"]) == ("my-project", "us-west4-a")
    assert record["slices"] == (words[2] if words[1:2] == ["--slices"] else "1")


def test_tokens_differ(bench):
    tokens = set()
    for name in ("one", "two"):
        bench.works("create.sh", name, *CREATE, "--spot")
        tokens.add(fields(bench.state / "tpu" / name)["token"])
    assert len(tokens) == 2


@pytest.mark.parametrize("option", ["project", "zone", "accelerator-type", "runtime-version"])
def test_create_rejects_what_the_service_would(bench, option):
    for word in [*HOSTILE, "..", "a/b", "^:^a"]:
        says = f"--{option} .* is not allowed; the rule:"
        bench.refuses("create.sh", "run", *CREATE, "--spot", f"--{option}={word}", says=says)
    bench.refuses("create.sh", "run", *CREATE, "--spot", f"--{option}=", says="is needed")


def test_create_needs_one_tier_and_whole_slices(bench):
    bench.refuses("create.sh", "run", *CREATE, says="choose one of .* got: none")
    bench.refuses(
        "create.sh", "run", *CREATE, "--spot", "--reserved", says="got: --spot --reserved"
    )
    for slices in ("0", "-1", "1.5", "2x", "1000", "$(touch pwned)", "a[$(touch pwned)]"):
        bench.refuses("create.sh", "run", *CREATE, "--spot", f"--slices={slices}", says="--slices")


def test_a_failed_create_leaves_a_record_and_says_what_to_do(bench):
    done = bench.run("create.sh", "run", *CREATE, "--spot", does="exit 7")
    assert done.returncode == 7
    assert "may exist, and may be billed" in done.stderr
    assert f"{SCRIPTS}/delete.sh run" in done.stderr
    (created,) = bench.calls()
    token = fields(bench.state / "tpu" / "run")["token"]
    assert created[-1] == f"--labels=attnjax_token={token}"
    # What the failed request left behind is deleted by that record, for it carries the label.
    bench.works("delete.sh", "run", "--yes", does=f'case "$*" in *describe*) echo {token} ;; esac')
    assert [words[4] for words in bench.calls()] == ["describe", "delete"]


def test_create_without_a_record_creates_nothing(bench):
    bench.state.write_text("a file where a folder should be")
    done = bench.run("create.sh", "run", *CREATE, "--spot")
    assert done.returncode != 0
    assert bench.calls() == []


def test_create_never_writes_over_a_record(bench):
    # A link to nowhere is what is not there when one looks, and there when one writes: a race.
    record = bench.state / "tpu" / "run"
    record.parent.mkdir(parents=True)
    record.symlink_to(bench.root / "elsewhere")
    bench.refuses("create.sh", "run", *CREATE, "--spot", code=1, says="nothing was created")
    assert not record.exists()


def test_delete_asks_unless_told_not_to(bench):
    bench.record("tpu")
    bench.works("delete.sh", "run", "--yes", does=f"echo {TOKEN}")
    assert [words[-1] for words in bench.calls()][1:] == ["--quiet"]
