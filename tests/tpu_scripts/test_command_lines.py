"""What holds for every script: help, options, names, dry runs."""

import re

import pytest

from tests.tpu_scripts.bench import HOSTILE, SCRIPTS, TOKEN

LIBRARIES = {"lib.sh", "slices.sh"}
PROGRAMS = sorted(
    str(path.relative_to(SCRIPTS))
    for path in SCRIPTS.rglob("*.sh")
    if path.name not in LIBRARIES | {"job.sh"} and path.parent.name != "remote"
)
CREATE = (
    *("--project", "my-project", "--zone", "us-west4-a", "--accelerator-type", "v5litepod-16"),
    *("--runtime-version", "v2-alpha-tpuv5-lite", "--spot"),
)
SUBMIT = ("--nodes", "2", "--gpus-per-node", "8", "--time", "1:00:00", "--", "train")
GPUS = ("--context", "ctx", "--namespace", "ns", "--image", "img", "--hosts", "2", "--gpus", "8")
# The options with which each script gets as far as calling something.
WORDS = {
    "create.sh": CREATE,
    "setup.sh": ("--git", "https://example.com/x.git", "--ref", "main"),
    "launch.sh": ("--job", "j1", "--", "train"),
    "watch.sh": ("--job", "j1"),
    "stop.sh": ("--job", "j1"),
    "fetch.sh": ("--job", "j1", "--to", "out", "--run-dir", "runs/a b"),
    "delete.sh": (),
    "slurm/launch.sh": SUBMIT,
    "slurm/watch.sh": (),
    "slurm/cancel.sh": (),
    "kubernetes/launch.sh": (*GPUS, "--", "train"),
    "kubernetes/watch.sh": (),
    "kubernetes/fetch.sh": ("--to", "out", "--run-dir", "/runs/a b"),
    "kubernetes/delete.sh": (),
}
# What the services answer, so that each script runs to its end.
ANSWERS = f"""
case "$*" in
  *--parsable*) echo 77 ;;
  *format=%k*) echo attnjax_token={TOKEN} ;;
  *labels.attnjax_token*) echo {TOKEN} ;;
  *state.state*) echo ACTIVE ;;
  *len*) echo 1 ;;
  *--output=name*) echo pod/POD ;;
  *pack.sh* | *' tar '*) tar -czf - -T /dev/null ;;
esac
"""


def _is_new(script):
    return script == "create.sh" or script.endswith("/launch.sh")


def _records(bench, script):
    if not _is_new(script):
        bench.record(script.rpartition("/")[0] or "tpu")


def _snapshot(bench):
    return {path: path.read_bytes() if path.is_file() else None for path in bench.root.rglob("*")}


def test_every_program_is_listed():
    assert sorted(WORDS) == PROGRAMS


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_names_every_option_and_runs_nothing(bench, script):
    parsed = re.search(
        r'^parse_options "(.*?)"\s*(?:\\\n\s*)?"(.*?)" "\$@"$',
        (SCRIPTS / script).read_text(),
        flags=re.MULTILINE,
    )
    options = [*parsed[1].split(), *parsed[2].split(), "dry-run", "help"]
    text = bench.works(script, "--help")
    assert bench.works(script, "run", "-h", *WORDS[script]) == text
    assert [o for o in options if not re.search(rf"--{o}(?![\w-])", text)] == []
    described = re.findall(r"^  --([a-z-]+)", text, flags=re.MULTILINE)
    assert set(described) <= set(options)  # no option is described that there is not
    assert bench.calls() == []


@pytest.mark.parametrize("script", PROGRAMS)
def test_dry_run_changes_nothing_and_prints_what_runs(bench, script):
    """What --dry-run prints, run by a shell, is what the script runs: the same words everywhere."""
    _records(bench, script)
    before = _snapshot(bench)
    cut = WORDS[script].index("--") if "--" in WORDS[script] else len(WORDS[script])
    dry = (*WORDS[script][:cut], "--dry-run", *WORDS[script][cut:])
    printed = bench.works(script, "run", *dry, does="exit 1")
    assert _snapshot(bench) == before
    assert bench.calls() == []

    def same_tokens(calls):
        return [
            ([re.sub(r"\b[0-9a-f]{32}\b", "TOKEN", word) for word in words], text.count("\n"))
            for words, text in calls
        ]

    done = bench.shell(["bash", "-euc", printed], does=ANSWERS)
    assert done.returncode == 0, done.stderr
    as_printed = same_tokens(bench.calls_with_input())
    bench.works(script, "run", *WORDS[script], does=ANSWERS)
    as_run = same_tokens(bench.calls_with_input())
    if script == "kubernetes/fetch.sh":  # a dry run cannot know the pods
        as_run = [call for call in as_run if call[0][-2] != "logs"]
    assert as_printed == as_run != []


@pytest.mark.parametrize("script", PROGRAMS)
def test_hostile_names_are_rejected(bench, script):
    _records(bench, script)
    for name in [*HOSTILE, "", "..", "a/b", "Run", "run-", "1run", "é", "a" * 41]:
        bench.refuses(script, name, *WORDS[script], says="lower case letters, digits and hyphens")


@pytest.mark.parametrize("script", PROGRAMS)
def test_wrong_command_lines(bench, script):
    _records(bench, script)
    bench.refuses(script, *WORDS[script], says="expected one NAME, got 0")
    bench.refuses(
        script, "run", "other", *WORDS[script], says="expected one NAME, got 2: run other"
    )
    bench.refuses(script, "run", "--nonsense", *WORDS[script], says="no such option: --nonsense")
    bench.refuses(script, "run", "-rf", *WORDS[script], says="no such option: -rf")
    bench.refuses(
        script, "--dry-run=no", "run", *WORDS[script], says="no such option: --dry-run=no"
    )


@pytest.mark.parametrize("script", [s for s in PROGRAMS if not _is_new(s)])
def test_only_what_was_recorded_is_touched(bench, script):
    bench.refuses(script, "run", *WORDS[script], code=1, says="no record of run")
    kind = script.rpartition("/")[0] or "tpu"
    bench.record(kind, token="")
    bench.refuses(script, "run", *WORDS[script], code=1, says="has no token: refusing")
    bench.record(kind, token="x" * 32)
    bench.refuses(script, "run", *WORDS[script], code=1, says="token in .* is damaged")
    key = {"tpu": "zone", "slurm": "job", "kubernetes": "context"}[kind]
    bench.record(kind, **{key: ""})
    bench.refuses(script, "run", *WORDS[script], code=1, says=f"has no {key}: refusing")


@pytest.mark.parametrize("script", [s for s in PROGRAMS if _is_new(s)])
def test_nothing_is_created_over_a_record(bench, script):
    kind = script.rpartition("/")[0] or "tpu"
    before = bench.record(kind).read_text()
    bench.refuses(script, "run", *WORDS[script], code=1, says="there is a record of run already")
    assert (bench.state / kind / "run").read_text() == before
