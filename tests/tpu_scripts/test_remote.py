"""What the scripts for hosts do on a host: the texts that launch.sh and others send, executed."""

import re
import shlex
import time

import pytest

from tests.tpu_scripts.bench import HOSTILE, TOKEN
from tests.tpu_scripts.gcloud import remote

WAIT = 60  # seconds, on a machine with much else to do


def host(bench, script, *words):
    """Runs the text as sshd does: by the user's shell, which may not be bash."""
    return bench.shell(["sh", "-c", remote(script, *words)])


def start(bench, *command, job="j1", token=TOKEN, restarts=0):
    return host(bench, "start.sh", job, token, str(restarts), *command)


def folder(bench, job="j1"):
    return bench.root / "home" / "attnjax" / "jobs" / job


def until(holds):
    """Waits until `holds()` is true."""
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def status(bench, job="j1"):
    until((folder(bench, job) / "status").exists)
    until(lambda: (folder(bench, job) / "status").read_text())
    return int((folder(bench, job) / "status").read_text())


def test_the_words_of_a_command_arrive_as_they_were(bench):
    words = [*HOSTILE, "", "-n", "--", "é", "${HOME}", "!!", "a\tb", "%s\\n"]
    done = start(bench, "printf", "<%s>", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "started j1" in done.stdout
    assert status(bench) == 0
    assert (folder(bench) / "log").read_text() == "".join(f"<{word}>" for word in words)
    recorded = (folder(bench) / "command").read_text()
    again = bench.shell(["bash", "-c", recorded])
    assert again.stdout == (folder(bench) / "log").read_text()


def test_a_job_runs_in_the_home_folder_with_the_environment_that_setup_made(bench):
    start(bench, "sh", "-c", 'pwd; echo "$PATH"; cat; echo error >&2')
    assert status(bench) == 0
    home = bench.root / "home"
    where, path, error = (folder(bench) / "log").read_text().splitlines()
    assert where == str(home)
    assert path.startswith(f"{home}/attnjax/venv/bin:")
    assert error == "error"


def test_a_job_outlives_the_connection(bench):
    # The text returns while the job still runs, in a session of its own, which no hang-up reaches.
    start(bench, "sh", "-c", "until [ -e go ]; do sleep 0.01; done; ps -o sid= -p $$; echo done")
    assert not (folder(bench) / "status").exists()
    pid = (folder(bench) / "pid").read_text().strip()
    (bench.root / "home" / "go").touch()
    assert status(bench) == 0
    assert (folder(bench) / "log").read_text().split() == [pid, "done"]


def test_a_repeated_start_starts_nothing(bench):
    """gcloud sends the same text again when the connection breaks after it arrived."""
    append = ("sh", "-c", "echo once >>ran")
    assert start(bench, *append).returncode == 0
    again = start(bench, *append)
    assert (again.returncode, "was started already" in again.stdout) == (0, True)
    other = start(bench, *append, token="f" * 32)
    assert (other.returncode, "choose another --job" in other.stderr) == (1, True)
    assert status(bench) == 0
    assert (bench.root / "home" / "ran").read_text() == "once\n"


@pytest.mark.parametrize(
    ("code", "restarts", "runs"),
    [*((code, 3, 1) for code in (0, 2, 3, 4, 130, 143)), (1, 0, 1), (75, 1, 2), (137, 1, 2)],
)
def test_restarts(bench, code, restarts, runs):
    start(bench, "sh", "-c", f"echo run >>ran; exit {code}", restarts=restarts)
    assert status(bench) == code
    assert (bench.root / "home" / "ran").read_text() == "run\n" * runs
    said = re.findall(r"attempt (\d) ended with status (\d+)", (folder(bench) / "log").read_text())
    assert said == [(str(i), str(code)) for i in range(1, runs)]


def test_stop_lets_the_command_save_and_starts_no_other(bench):
    saves = (
        "trap 'echo saving; sleep 0.2; echo saved; exit 143' TERM; echo ready;"
        " while :; do sleep 0.01; done"
    )
    start(bench, "sh", "-c", saves, restarts=5)
    until(lambda: "ready" in (folder(bench) / "log").read_text())
    assert "told to stop" in host(bench, "stop.sh", "j1").stdout
    assert status(bench) == 143
    assert (folder(bench) / "log").read_text() == "ready\nsaving\nsaved\n"
    assert "not running" in host(bench, "stop.sh", "j1").stdout
    assert "not running" in host(bench, "stop.sh", "other").stdout


def test_look(bench):
    assert host(bench, "look.sh", "j1", "5").returncode == 1
    assert "no job by that name" in host(bench, "look.sh", "j1", "5").stdout

    start(bench, "sh", "-c", "echo one; echo two; echo three; until [ -e go ]; do sleep 0.01; done")
    until(lambda: "three" in (folder(bench) / "log").read_text())
    seen = host(bench, "look.sh", "j1", "2")
    assert seen.returncode == 0
    assert re.fullmatch(r"== \S+: running\ntwo\nthree\n", seen.stdout)
    (bench.root / "home" / "go").touch()
    assert status(bench) == 0
    assert "ended with status 0" in host(bench, "look.sh", "j1", "0").stdout

    start(bench, "sh", "-c", "exit 3", job="bad")
    assert status(bench, "bad") == 3
    assert host(bench, "look.sh", "bad", "1").returncode == 3

    start(bench, "sleep", "600", job="killed")
    assert "running" in host(bench, "look.sh", "killed", "1").stdout  # as soon as start.sh returns
    killed = (folder(bench, "killed") / "pid").read_text().strip()
    # The whole session, as a lost host does.
    assert bench.shell(["kill", "-KILL", "--", f"-{killed}"]).returncode == 0
    until(lambda: host(bench, "look.sh", "killed", "1").returncode == 1)
    assert "died without a status" in host(bench, "look.sh", "killed", "1").stdout


# A Python whose venv has a Python that notes its arguments, as pip would get them.
PYTHON = r"""#!/bin/sh
printf '%s\0' "$0" "$@" >>"$HOME/python.log"
case "$*" in "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;; esac
[ ! -e "$HOME/fail" ] || case "$*" in *"$(cat "$HOME/fail")"*) exit 4 ;; esac
"""


def _pythons(bench):
    log = bench.root / "home" / "python.log"
    found = log.read_text().split("\0")[:-1] if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def _install(bench, prepare, source):
    python = bench.root / "bin" / "python9"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return host(bench, "install.sh", prepare, "python9", "jax[tpu]==0.10.2", source)


def test_install(bench):
    home = bench.root / "home"
    pip = ["attnjax/venv/bin/python", "-m", "pip", "install", "--quiet", "--upgrade"]
    source = "attnjax[train] @ git+https://example.com/x@main"
    prepare = 'echo "it\'s $((1 + 1))" >prepared'
    assert _install(bench, prepare, source).returncode == 0
    called = _pythons(bench)
    assert called[1:4] == ["-m", "venv", "attnjax/venv"]
    assert called[4:12] == [*pip, "jax[tpu]==0.10.2", source]
    assert (home / "prepared").read_text() == "it's 2\n"
    # Again, from an archive: the environment is kept, and pip gets the file's whole path.
    assert _install(bench, "", "attnjax/archives/x.whl[train]").returncode == 0
    called = _pythons(bench)
    assert called[:8] == [*pip, "jax[tpu]==0.10.2", f"{home}/attnjax/archives/x.whl[train]"]


@pytest.mark.parametrize("fails", ["-m venv", "-m pip", "-c import"])
def test_install_fails_with_what_it_calls(bench, fails):
    home = bench.root / "home"
    (home / "fail").write_text(fails)
    done = _install(bench, "", "attnjax[train] @ git+https://example.com/x@main")
    assert done.returncode == (1 if fails == "-m venv" else 4)
    assert (home / "attnjax" / "venv").exists() == (fails != "-m venv")


def test_install_says_which_python_is_missing(bench):
    done = host(bench, "install.sh", "", "python0.1", "jax", "attnjax/archives/x.whl")
    assert done.returncode == 1
    assert "there is no python0.1; let setup.sh --prepare install one" in done.stderr


def test_install_stops_when_the_preparation_fails(bench):
    assert _install(bench, "exit 9", "x").returncode == 9
    assert _pythons(bench) == []


def test_texts_survive_what_gcloud_does_to_them():
    text = remote("start.sh", "j1", TOKEN, "0", "echo", *HOSTILE, "  two  spaces  ")
    assert " ".join(text.split(" ")) == text  # gcloud splits at single spaces, ssh joins with them
    assert shlex.split(text)[-1] == "  two  spaces  "
