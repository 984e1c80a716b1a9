"""Resolve the extras on several Pythons and write the exact versions as constraints.

    python .ci/lock.py python3.11 python3.12 python3.13

Two files, because tokamax pins an old typeguard that tyro cannot use: `constraints/main.txt` for
the extras train, test and dev, `constraints/peers.txt` for test and peers. A version that differs
between Pythons gets one line per Python, with an environment marker.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {"main": "train,test,dev", "peers": "test,peers"}


def resolve(python: str, extras: str) -> tuple[str, dict[str, str]]:
    """Returns `python`'s "3.x" and the version pip chooses for each package it would install."""
    with tempfile.TemporaryDirectory() as folder:
        venv, report = Path(folder, "venv"), Path(folder, "report.json")
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--dry-run"]
        subprocess.run([*pip, "--report", report, f"{ROOT}[{extras}]"], check=True)
        found = json.loads(report.read_text())
    packages = [item["metadata"] for item in found["install"]]
    versions = {p["name"].lower().replace("_", "-"): p["version"] for p in packages}
    del versions["attnjax"]
    return found["environment"]["python_version"], versions


def merge(resolved: dict[str, dict[str, str]]) -> str:
    """Returns the constraint lines for the versions found on each Python."""
    lines = []
    for name in sorted(set().union(*resolved.values())):
        versions = {python: found[name] for python, found in resolved.items() if name in found}
        if len(set(versions.values())) == 1:
            lines.append(f"{name}=={next(iter(versions.values()))}")
        else:
            lines += [
                f'{name}=={version} ; python_version == "{python}"'
                for python, version in sorted(versions.items())
            ]
    return "\n".join(lines)


def main() -> None:
    """Writes both constraint files."""
    pythons = sys.argv[1:]
    if not pythons:
        sys.exit("Name the Pythons to resolve for: make lock PYTHONS='python3.11 python3.12'")
    for group, extras in GROUPS.items():
        resolved = dict(resolve(python, extras) for python in pythons)
        header = f"# The versions tested with the extras {extras}; written by `make lock`.\n"
        (ROOT / "constraints" / f"{group}.txt").write_text(header + merge(resolved) + "\n")


if __name__ == "__main__":
    main()
