"""Runs the scripts of tpu_scripts/ with stubs of the tools that record what reaches them."""

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"
TOOLS = ("gcloud", "kubectl", "sbatch", "squeue", "sacct", "scancel", "srun", "ssh", "scp")
STUB = r"""#!/bin/sh
n=100
while ! mkdir "$CALLS/$n" 2>/dev/null; do n=$((n + 1)); done
printf '%s\0' "${0##*/}" "$@" >"$CALLS/$n/words"
cat >"$CALLS/$n/stdin"
eval "$BEHAVIOUR"
"""
TOKEN = "0123456789abcdef" * 2
PLACE = ["--project=my-project", "--zone=us-west4-a"]
RECORDS = {
    "tpu": "token={}\nproject=my-project\nzone=us-west4-a\nslices=1\n",
    "slurm": "token={}\njob=77\nlog_dir=/logs\n",
    "kubernetes": "token={}\ncontext=ctx\nnamespace=ns\nclaim=disk\nmount=/runs\n",
}
# What breaks a command text that is put together without quoting. Each would leave a file `pwned`.
HOSTILE = (
    "a b",
    "a'b",
    'a"b',
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "a\ntouch pwned",
    "'; touch pwned; '",
    "a & touch pwned",
    "*",
    "\\",
)


@dataclass
class Bench:
    """A home folder, a folder of stubs in front of PATH, and what the stubs recorded."""

    root: Path

    def __post_init__(self) -> None:
        for folder in ("bin", "calls", "home", "here"):
            (self.root / folder).mkdir()
        for tool in TOOLS:
            path = self.root / "bin" / tool
            path.write_text(STUB)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def state(self) -> Path:
        return self.root / "state"

    def record(self, kind: str, name: str = "run", **changes: object) -> Path:
        """Writes the record of a resource; `changes` adds or replaces lines."""
        path = self.state / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = RECORDS[kind].format(TOKEN).splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in changes]
        path.write_text("\n".join([*kept, *(f"{k}={v}" for k, v in changes.items())]) + "\n")
        return path

    def shell(
        self, words: list[str], *, does: str = "", home: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `words`; the stubs execute the sh text `does` after they recorded their call."""
        env = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "HOME": str(home or self.root / "home"),
            "ATTNJAX_STATE": str(self.state),
            "CALLS": str(self.root / "calls"),
            "BEHAVIOUR": does,
        }
        done = subprocess.run(
            words,
            cwd=self.root / "here",
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not list(self.root.rglob("pwned")), "a word was executed"
        return done

    def run(self, script: str, *words: str, does: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a script of tpu_scripts/."""
        return self.shell([str(SCRIPTS / script), *words], does=does)

    def works(self, script: str, *words: str, does: str = "") -> str:
        """Runs a script, which must succeed; returns what it printed."""
        done = self.run(script, *words, does=does)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, script: str, *words: str, code: int = 2, says: str = "") -> None:
        """Runs a script, which must give up without calling anything."""
        done = self.run(script, *words)
        assert done.returncode == code, (done.returncode, done.stderr)
        assert re.search(says, done.stderr, flags=re.DOTALL), done.stderr
        assert self.calls() == []

    def calls(self) -> list[list[str]]:
        """The command lines that reached the stubs, in order, and forgets them."""
        return [words for words, _ in self.calls_with_input()]

    def calls_with_input(self) -> list[tuple[list[str], str]]:
        """The command lines and what was on their standard input; forgets them."""
        found = []
        for folder in sorted((self.root / "calls").iterdir()):
            words = (folder / "words").read_text().split("\0")[:-1]
            found.append((words, (folder / "stdin").read_text()))
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        return found


def fields(path: Path) -> dict[str, str]:
    """The lines of a record."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())
