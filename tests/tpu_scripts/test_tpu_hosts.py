"""setup.sh, launch.sh, watch.sh, stop.sh and fetch.sh: what they send to the hosts of TPUs."""

import shlex
import tarfile

import pytest

from tests.tpu_scripts.bench import HOSTILE, PLACE, SCRIPTS
from tests.tpu_scripts.gcloud import NODE, QUEUED, remote, same, ssh


def test_setup_from_git(bench):
    bench.record("tpu", slices=2)
    git = ("--git", "https://example.com/x.git", "--ref", "v1.0")
    bench.works("setup.sh", "run", *git)
    source = "attnjax[train] @ git+https://example.com/x.git@v1.0"
    text = remote("install.sh", "", "python3.11", "jax[tpu]>=0.10,<0.13", source)
    same(sorted(bench.calls()), [ssh("run-0", "all", text), ssh("run-1", "all", text)])

    bench.record("tpu")
    for prepare in HOSTILE:
        words = (f"--prepare={prepare}", "--python=python3", f"--jax=jax{prepare}")
        bench.works("setup.sh", "run", *git, *words)
        text = remote("install.sh", prepare, "python3", f"jax{prepare}", source)
        same(bench.calls(), [ssh("run", "all", text)])


@pytest.mark.parametrize("folder", [w for w in HOSTILE if "/" not in w])
def test_setup_from_an_archive(bench, folder):
    bench.record("tpu")
    archive = bench.root / "here" / folder / "attnjax-0.1.0.tar.gz"
    archive.parent.mkdir()
    archive.touch()
    bench.works("setup.sh", "run", f"--archive={folder}/{archive.name}")
    source = f"attnjax/archives/{archive.name}[train]"
    install = remote("install.sh", "", "python3.11", "jax[tpu]>=0.10,<0.13", source)
    same(
        bench.calls(),
        [
            ssh("run", "all", "mkdir -p attnjax/archives"),
            [*NODE, "scp", str(archive), "run:attnjax/archives/", *PLACE, "--worker=all"],
            ssh("run", "all", install),
        ],
    )


def test_setup_rejects(bench):
    bench.record("tpu")
    git = ("--git=https://example.com/x", "--ref=main")
    for word in [*HOSTILE, "-x", "a@b"]:
        bench.refuses("setup.sh", "run", git[0], f"--ref={word}", says="--ref .* not allowed")
        bench.refuses("setup.sh", "run", *git, f"--python={word}", says="--python .* not allowed")
        bench.refuses("setup.sh", "run", f"--git={word}", git[1], says="--git .* not allowed")
        file = bench.root / "here" / f"{word}.whl"
        file.touch()
        says = "the archive's name .* not allowed"
        bench.refuses("setup.sh", "run", f"--archive=./{word}.whl", says=says)
    bench.refuses("setup.sh", "run", *git, "--jax=--index-url=x", says="--jax .* not allowed")
    bench.refuses("setup.sh", "run", "--archive=none.whl", says="no such file: none.whl")
    bench.refuses("setup.sh", "run", git[0], says="--ref is needed")
    bench.refuses("setup.sh", "run", git[1], says="--git is needed")
    bench.refuses("setup.sh", "run", *git, "--archive=x.whl", says="not both")
    colon = bench.root / "here" / "host:" / "x.whl"
    colon.parent.mkdir()
    colon.touch()
    bench.refuses("setup.sh", "run", "--archive=host:/x.whl", says="colon")


def _launched(bench):
    """The nodes and the words after remote/start.sh's token of each launch."""
    found = []
    for words in bench.calls():
        *front, command = words
        text = shlex.split(command.removeprefix("--command="))
        assert front == [*NODE, "ssh", front[5], *PLACE, "--worker=all"]
        assert text[:2] == ["bash", "-c"]
        assert text[2] == (SCRIPTS / "remote" / "start.sh").read_text().rstrip("\n")
        assert text[3:5] == ["start.sh", "j1"]
        assert len(text[5]) == 32
        found.append((front[5], *text[6:]))
    return sorted(found)


def test_launch(bench):
    bench.record("tpu")
    bench.works("launch.sh", "run", "--job", "j1", "--", "echo", *HOSTILE, "", "--", "--dry-run")
    assert _launched(bench) == [("run", "0", "echo", *HOSTILE, "", "--", "--dry-run")]
    bench.record("tpu", slices=3)
    bench.works("launch.sh", "run", "--job=j1", "--restarts=5", "--", "true")
    assert _launched(bench) == [(f"run-{i}", "5", "true") for i in range(3)]


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("python -m train.text_classification --run-dir runs/x --mesh data=8", True),
        ("/opt/venv/bin/python3.11 -m train.tagging", True),
        ("python -m train.text_classification --distributed off", False),
        ("python -m train.text_classification --distributed=auto", False),
        ("python -m train.text_classification --coordinator a:1 --processes 2", False),
        ("python -m train.launch --processes 2 -- python -m train.tagging", False),
        ("python -m trainer.x", False),
        ("python -m train.text_classification.more", False),
        ("python train.py", False),
        ("pythonic", False),
        ("echo -m train.text_classification", False),
    ],
)
def test_training_commands_look_for_the_other_hosts(bench, command, added):
    bench.record("tpu")
    bench.works("launch.sh", "run", "--job", "j1", "--", *command.split())
    expected = [*command.split(), *(["--distributed", "auto"] if added else [])]
    assert _launched(bench) == [("run", "0", *expected)]


@pytest.mark.parametrize("script", ["launch.sh", "watch.sh", "stop.sh", "fetch.sh"])
def test_hostile_job_names_are_rejected(bench, script):
    bench.record("tpu")
    more = {"launch.sh": ["--", "true"], "fetch.sh": ["--to", "out"]}.get(script, [])
    for job in [*HOSTILE, "..", ".x", "a/b", "J", "-x", "a" * 64]:
        bench.refuses(script, "run", f"--job={job}", *more, says="--job .* is not allowed")


def test_launch_rejects(bench):
    bench.record("tpu")
    job = ("--job", "j1")
    bench.refuses("launch.sh", "run", *job, says="no command")
    bench.refuses("launch.sh", "run", *job, "--", says="no command")
    bench.refuses("launch.sh", "run", *job, "--", "-rf", says="not the name of a command: -rf")
    bench.refuses("launch.sh", "run", *job, "--", "", says="not the name of a command: ''")
    bench.refuses("launch.sh", "run", "--", "true", says="--job is needed")
    for n in ("-1", "a", "1e3", "$(touch pwned)", "a[$(touch pwned)]"):
        bench.refuses("launch.sh", "run", *job, f"--restarts={n}", "--", "true", says="--restarts")


@pytest.mark.parametrize("script", ["setup.sh", "launch.sh", "watch.sh", "stop.sh"])
def test_failures_on_some_slices_are_reported(bench, script):
    words = {
        "setup.sh": ["--git=https://example.com/x", "--ref=main"],
        "launch.sh": ["--job", "j1", "--", "true"],
    }.get(script, ["--job", "j1"])
    fails = 'case "$*" in *describe*) echo ACTIVE ;; *" ssh run-1 "*) exit 9 ;; esac'
    bench.record("tpu", slices=3)
    done = bench.run(script, "run", *words, does=fails)
    assert done.returncode == 9
    assert f"{script}: failed on run-1\n" in done.stderr
    tried = sorted(call[5] for call in bench.calls() if call[4] == "ssh")
    assert tried == ["run-0", "run-1", "run-2"]
    if script == "launch.sh":
        assert f"{SCRIPTS}/stop.sh run --job j1" in done.stderr
    bench.record("tpu")
    done = bench.run(script, "run", *words, does=fails.replace("run-1", "run"))
    assert done.returncode == 9


def test_watch(bench):
    bench.record("tpu", slices=2)
    state = [*QUEUED, "describe", "run", *PLACE, "--format=value(state.state)"]
    assert bench.works("watch.sh", "run", does="echo PROVISIONING") == "run: PROVISIONING\n"
    assert bench.calls() == [state]
    done = bench.run("watch.sh", "run", "--job", "j1", does="echo PROVISIONING")
    assert done.returncode == 1
    assert "no hosts to look at before run is ACTIVE" in done.stderr
    assert bench.calls() == [state]
    bench.works("watch.sh", "run", "--job", "j1", "--lines", "20", does="echo ACTIVE")
    first, *rest = bench.calls()
    assert first == state
    text = remote("look.sh", "j1", "20")
    same(sorted(rest), [ssh("run-0", "all", text), ssh("run-1", "all", text)])
    assert bench.run("watch.sh", "run", does="exit 4").returncode == 4


def test_stop(bench):
    bench.record("tpu")
    bench.works("stop.sh", "run", "--job", "j1")
    same(bench.calls(), [ssh("run", "all", remote("stop.sh", "j1"))])


# A node with two hosts; each packs a file of the path that pack.sh was asked for.
PACKS = r"""
case "$*" in
  *'value(networkEndpoints.len())'*) echo 2 ;;
  *pack.sh*) mkdir -p "$HOME/made" && echo "$*" >"$HOME/made/log" && tar -C "$HOME" -czf - made ;;
esac
"""


@pytest.mark.parametrize("word", HOSTILE)
def test_fetch(bench, word):
    bench.record("tpu", slices=2)
    bench.works("fetch.sh", "run", "--job=j1", f"--to={word}", f"--run-dir={word}", does=PACKS)
    count = "--format=value(networkEndpoints.len())"
    expected = []
    for node in ("run-0", "run-1"):
        expected.append([*NODE, "describe", node, *PLACE, count])
        expected += [ssh(node, i, remote("pack.sh", "attnjax/jobs/j1")) for i in (0, 1)]
    same(bench.calls(), [*expected, ssh("run-0", 0, remote("pack.sh", word))])
    to = bench.root / "here" / word
    assert sorted(path.name for path in to.iterdir()) == [
        *("run", "run-0-0", "run-0-1", "run-1-0", "run-1-1")
    ]
    assert "--worker=1" in (to / "run-1-1" / "made" / "log").read_text()


def test_fetch_fails_with_a_broken_copy(bench):
    bench.record("tpu")
    words = ("run", "--job=j1", "--to=out")
    cut = PACKS.replace("made ;;", "made; exit 8 ;;")
    done = bench.run("fetch.sh", *words, does=cut)
    assert done.returncode == 8
    assert "could not copy attnjax/jobs/j1 from worker 0 of run" in done.stderr
    assert list((bench.root / "here" / "out").rglob("*.tar.gz")) == []
    done = bench.run("fetch.sh", *words, does=PACKS.replace("made ;;", "made | head -c 40 ;;"))
    assert done.returncode != 0
    assert bench.run("fetch.sh", *words, does="echo many").returncode == 1
    assert bench.run("fetch.sh", *words, does="exit 3").returncode == 3


def test_pack_is_what_the_host_has(bench):
    """pack.sh's text, run as a host would, packs the folder that was named."""
    for word in [*HOSTILE, "-rf", "--"]:
        folder = bench.root / "home" / "runs" / word
        folder.mkdir(parents=True)
        (folder / "metrics").write_text(word)
        text = remote("pack.sh", f"runs/{word}")
        packed = bench.root / "packed"
        done = bench.shell(["sh", "-c", f"{text} >{shlex.quote(str(packed))}"])
        assert done.returncode == 0, done.stderr
        with tarfile.open(packed) as archive:
            assert archive.getnames() == [word, f"{word}/metrics"]
